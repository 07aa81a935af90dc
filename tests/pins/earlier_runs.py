"""Run folders that an earlier state of the package has left, one of each kind of system, as small as they can be.

``runs/<name>.tar.xz`` holds ``run/`` (of a system in two stages with the first stage's folder in it) and ``pictures/``,
what prediction is asked about. The models are trained as far as scores and masks need to say something. To be small,
backbones whose width is no option have few channels that are not 0 (and are not trained), and every number of a
checkpoint is rounded to a few binary places.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "runs"

_COMMON = [
    "engine.accelerator=cpu",
    "engine.workers=0",
    "engine.tensorboard=false",
    "engine.save_every=1000",
    "eval.pictures=1",
    "eval.baseline=false",
]
_FEW_SHOT = [
    *_COMMON,
    "data.size=[48,48]",
    "data.options={size=48,images_per_class=20}",
    "eval.episodes=40",
    "eval.validation_episodes=0",
    "engine.validate_every=0",
    "engine.best_metric=loss",
    "engine.best_mode=min",
]
_BASE = (
    'base.overrides=["data.size=[48,48]","data.drop_novel=false","data.augment=flip","data.geometry=square",'
    '"optim.name=adamw","optim.lr=1e-2","optim.weight_decay=1e-2","optim.backbone_lr_scale=1.0","model.dropout=0.0",'
    '"schedule.steps=500","schedule.name=cosine","schedule.warmup_steps=20",'
    '"engine.batch_size=16","engine.save_every=1000","engine.validate_every=0","engine.best_metric=loss",'
    '"engine.best_mode=min","eval.checkpoint=last","eval.images=40","eval.pictures=1"]'
)
_SEGMENTER = (
    'segmenter.overrides=["data.size=[48,48]","schedule.steps=200","engine.save_every=1000","eval.episodes=30",'
    '"eval.pictures=1"]'
)
_MASKS = [
    *_COMMON,
    "model.num_queries=8",
    "model.channels=32",
    "model.mask_channels=32",
    "model.heads=4",
    "model.decoder_layers=1",
    "model.object_threshold=0.3",
    "model.overlap_threshold=0.3",
    "optim.frozen=['backbone.*']",
    "optim.lr=2e-3",
    "optim.clip_norm=1.0",
    "data.options={size=64,images=200}",
    "eval.options={size=64,images=24}",
    "engine.validate_every=0",
    "engine.best_metric=loss",
    "engine.best_mode=min",
]
_MASKED_ATTENTION = [
    *_MASKS,
    "model.encoder_layers=1",
    "model.encoder_hidden=32",
    "model.decoder_hidden=32",
    "model.train_points=256",
]
_MASKFORMER = [
    "model.backbone=resnet18",
    "model.backbone_norm=batch",
    "model.num_classes=8",
    "data.source=generated",
    "data.augment=flip",
    "data.short_sides=[]",
    "eval.short_side=0",
    "engine.batch_size=8",
    "schedule.name=poly",
    "schedule.warmup_steps=0",
]


@dataclass(frozen=True)
class EarlierRun:
    """How a run was made.

    Attributes:
        recipe: by name.
        overrides: ``table.key=value`` each.
        steps: of the last stage.
        stage: folder of the first stage in the run, whose training is a kind of its own.
        sparse: its backbone has few channels that are not 0.
    """

    recipe: str
    overrides: list[str] = field(default_factory=list)
    steps: int = 200
    stage: str = ""
    sparse: bool = False


RUNS = {
    "panet": EarlierRun(
        "panet_generated", [*_FEW_SHOT, "model.backbone_width=4", "data.ways=1", "schedule.end_factor=0.2"], steps=300
    ),
    "msanet": EarlierRun(
        "msanet_generated",
        [
            *_FEW_SHOT,
            "model.backbone_width=4",
            "model.channels=16",
            "model.similarity_channels=8",
            "model.head_channels=16",
            "model.foreground_weight=8.0",
            "optim.lr=4e-3",
            _BASE,
        ],
        stage="base",
    ),
    "mm_former": EarlierRun(
        "mm_former_generated",
        [
            *_FEW_SHOT,
            "model.backbone_width=4",
            "model.num_queries=8",
            "model.channels=32",
            "model.encoder_layers=1",
            "model.encoder_hidden=32",
            "model.decoder_layers=1",
            "model.decoder_hidden=32",
            "model.train_points=128",
            "model.align_layers=1",
            "model.align_hidden=32",
            "model.matching_hidden=16",
            "model.short_side=3",
            _SEGMENTER,
        ],
        stage="segmenter",
    ),
    "mask2former": EarlierRun("mask2former_generated", _MASKED_ATTENTION, sparse=True),
    "mp_former": EarlierRun("mp_former_generated", _MASKED_ATTENTION, sparse=True),
    "maskformer": EarlierRun(
        "maskformer_ade20k_panoptic_r50",
        [
            *_MASKFORMER,
            "data.truth=panoptic",
            "model.encoder_layers=1",
            "model.hidden=32",
            'model.tasks=["panoptic","instance","semantic"]',
            "model.things=[3,4,5,6,7]",
            *_MASKS,
            "model.dropout=0.0",
            "optim.lr=1e-3",
        ],
        sparse=True,
    ),
    "per_pixel_baseline": EarlierRun(
        "per_pixel_baseline_ade20k_semantic_r50",
        [*_MASKFORMER, "data.truth=semantic", *(o for o in _MASKS if "model" not in o or "channels" in o)],
        sparse=True,
    ),
    "mask2former_vis": EarlierRun(
        "mask2former_vis_generated",
        [
            *(o for o in _MASKED_ATTENTION if "options" not in o),
            "data.options={size=48,videos=100,frames=6}",
            "eval.options={size=48,videos=12,frames=6}",
        ],
        sparse=True,
    ),
}


def unpack(name: str, folder: Path) -> Path:
    """Unpack an archive into a folder; the run's folder."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"
