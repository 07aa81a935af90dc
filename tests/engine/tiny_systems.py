"""A tiny recipe for every system, so that tests of the engine run over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn.modules.dropout import _DropoutNd

from fssops.engine.launch import build_fabric, run_on_first
from fssops.engine.random_state import seed_everything
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import Settings, apply_overrides
from fssops.engine.trainer import Trainer
from fssops.tasks import settings_from_tables, task_of
from fssops.tasks.trained_models import build_model

_FEW_SHOT = {
    "source": "generated",
    "folds": "generated",
    "size": [48, 48],
    "options": {"size": 48, "images_per_class": 6},
}
_SCENES = {"source": "generated", "options": {"size": 64, "images": 9}}
_MASKS = {
    "backbone": "resnet18",
    "num_classes": 8,
    "things": [3, 4, 5, 6, 7],
    "num_queries": 8,
    "channels": 32,
    "mask_channels": 32,
    "heads": 4,
    "dropout": 0.0,  # of attention
}

_PROPOSALS = {
    "backbone": "resnet18",
    "backbone_width": 8,
    "tuning": "singular_values",
    "num_queries": 8,
    "channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_hidden": 32,
    "decoder_layers": 1,
    "decoder_hidden": 32,
    "train_points": 128,
}

SYSTEMS: dict[str, dict[str, Any]] = {
    "panet": {"model": {"backbone": "resnet18", "backbone_width": 8, "last_stage": "res4"}, "data": _FEW_SHOT},
    "msanet": {
        "model": {
            "backbone": "resnet18",
            "backbone_width": 8,
            "channels": 16,
            "similarity_channels": 8,
            "head_channels": 16,
            "base_classes": 21,
        },
        "data": {**_FEW_SHOT, "definition": "msanet", "geometry": "letterbox"},
    },
    "pspnet": {
        "model": {
            "backbone": "resnet18",
            "backbone_width": 8,
            "head_channels": 16,
            "base_classes": 21,
            "norm": "frozen",
        },
        "data": _FEW_SHOT,
    },
    "maskformer": {"model": {**_MASKS, "encoder_layers": 1, "decoder_layers": 1}, "data": _SCENES},
    "mask2former": {
        "model": {
            **_MASKS,
            "encoder_layers": 1,
            "encoder_hidden": 32,
            "decoder_layers": 1,
            "decoder_hidden": 32,
            "train_points": 128,
        },
        "data": _SCENES,
    },
    # Noise is drawn for a batch, and a piloted class loss counts the empty places of the batch's longest list.
    "mp_former": {
        "model": {
            **_MASKS,
            "encoder_layers": 1,
            "encoder_hidden": 32,
            "decoder_layers": 1,
            "decoder_hidden": 32,
            "train_points": 128,
            "label_noise": 0.0,
            "classify_piloted": False,
        },
        "data": _SCENES,
    },
    "mask2former_vis": {
        "model": {
            **{name: value for name, value in _MASKS.items() if name != "things"},
            "num_classes": 5,
            "encoder_layers": 1,
            "encoder_hidden": 32,
            "decoder_layers": 1,
            "decoder_hidden": 32,
            "train_points": 128,
        },
        "data": {
            "source": "generated_videos",
            "options": {"size": 64, "videos": 9, "frames": 4},
            "frames": 2,
            "reach": 2,
        },
    },
    "mm_former_segmenter": {"model": _PROPOSALS, "data": {**_FEW_SHOT, "definition": "msanet"}},
    "mm_former": {
        "model": {**_PROPOSALS, "align_heads": 2, "align_hidden": 32, "matching_hidden": 16, "short_side": 3},
        "data": {**_FEW_SHOT, "definition": "msanet"},
    },
    "per_pixel_baseline": {
        "model": {"backbone": "resnet18", "num_classes": 8, "channels": 32, "mask_channels": 32},
        "data": {**_SCENES, "truth": "semantic"},
    },
}
"""What is told of each system's recipe. Normalisation keeps its statistics: new ones would belong to a batch as cut."""

_ENGINE = [
    "schedule.steps=2",
    "optim.lr=0.01",
    "optim.clip_norm=0.5",
    "engine.accelerator=cpu",
    "engine.batch_size=4",
    "engine.workers=0",
    "engine.log_every=1",
    "engine.tensorboard=false",
]


def tiny_settings(system: str, *overrides: str) -> Settings:
    """The tiny recipe of a system with overrides."""
    row = SYSTEMS[system]
    tables = {"name": f"{system}_tiny", "model": {"name": system, **row["model"]}, "data": row["data"]}
    return settings_from_tables(apply_overrides(tables, [*_ENGINE, *overrides]), system)


def tiny_trainer(settings: Settings, folder: Path) -> Trainer:
    """A trainer of a tiny recipe without dropout, in a folder of its own."""
    fabric = build_fabric(settings.engine)
    fabric.launch()
    seed_everything(settings.engine.seed)
    model, task, run = build_model(settings), task_of(settings), RunFolder(folder)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    run_on_first(fabric, run.create)
    dataset, _ = task.training_data()
    return Trainer(settings, fabric, model, dataset, task.collate, run)


def losses_of(system: str, folder: Path, overrides: Sequence[str] = ()) -> list[float]:
    """Train a tiny recipe; the loss of every step."""
    from fssops.engine.metrics_log import read_metrics

    trainer = tiny_trainer(tiny_settings(system, *overrides), folder)
    trainer.fit()
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
