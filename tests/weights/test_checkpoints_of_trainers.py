"""Checkpoints as people have them: what trainers, wrappers and tools for sharding put around a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fssops
from fssops.engine.checkpoints import write_checkpoint
from fssops.tasks import load_task
from fssops.tasks.trained_models import build_model, load_trained
from fssops.weights import CheckpointError, load_weights, read_weights, save_weights
from fssops.weights.layouts.universal import MASK2FORMER
from fssops.weights.transformers_folder import write_transformers

State = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "num_classes": 4,
    "num_queries": 5,
    "channels": 32,
    "mask_channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
}

TINY = ["model.backbone=resnet18", "model.channels=32", "model.mask_channels=32", "model.num_queries=5"]


def mask2former(**options: Any) -> nn.Module:
    """A small model with random weights, biases included."""
    model = fssops.create_model("mask2former", **{**SMALL, **options})
    with torch.no_grad():
        for value in model.state_dict().values():
            value.uniform_(0.1, 1.0)
    return model


def panet(**options: Any) -> nn.Module:
    return fssops.create_model("panet", backbone_width=4, **options)


def assert_loads(source: nn.Module, given: Any, *ignored: str) -> None:
    """The weights load whole into a model of the same kind, and the report lists what was left out."""
    create = mask2former if source.name == "mask2former" else panet
    target = create()
    report = load_weights(target, given)
    assert report.complete
    assert report.ignored == list(ignored)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def saved(folder: Path, content: Any, name: str = "last.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def prefixed(model: nn.Module, prefix: str) -> State:
    return {prefix + key: value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("create", [mask2former, panet])
def test_averaged_weights_load_without_their_counter(tmp_path: Path, create: Any) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(create())
    averaged.update_parameters(create())
    averaged.update_parameters(create())
    assert int(averaged.n_averaged) == 2
    assert_loads(averaged.module, saved(tmp_path, averaged.state_dict()), "n_averaged")
    assert_loads(averaged.module, saved(tmp_path, {"ema": averaged.state_dict(), "updates": 2}), "n_averaged")


def test_of_weights_and_their_average_in_one_file_the_weights_are_read_and_the_average_is_named(tmp_path: Path) -> None:
    source = mask2former()
    content = {"state_dict_ema": mask2former().state_dict(), "state_dict": source.state_dict(), "epoch": 3}
    assert_loads(source, saved(tmp_path, content), "state_dict_ema")


@pytest.mark.parametrize("attribute", ["model", "net", "network"])
def test_a_lightning_checkpoint_loads(tmp_path: Path, attribute: str) -> None:
    source = mask2former()
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(source, f"{attribute}."),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "hyper_parameters": {"lr": 0.1},
    }
    assert_loads(source, saved(tmp_path, content))


def test_what_a_lightning_module_holds_beside_its_model_is_left_out_and_listed(tmp_path: Path) -> None:
    source = mask2former()
    state = {
        **prefixed(source, "model."),
        "loss.weight": torch.ones(5),
        "metrics.confusion": torch.zeros(4, 4),
        **prefixed(mask2former(), "ema_model.module."),
    }
    target = mask2former()
    report = load_weights(target, saved(tmp_path, {"state_dict": state, "pytorch-lightning_version": "2.5.0"}))
    assert report.complete
    assert report.ignored[:2] == ["loss.weight", "metrics.confusion"]
    assert len(report.ignored) == 2 + len(source.state_dict())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_a_lightning_checkpoint_of_the_authors_names_loads(tmp_path: Path) -> None:
    source = mask2former()
    theirs = MASK2FORMER.state_to_theirs(source.state_dict())
    state = {f"model.{key}": value for key, value in theirs.items()} | {"criterion.empty_weight": torch.ones(5)}
    assert_loads(source, saved(tmp_path, {"state_dict": state}), "criterion.empty_weight")


def test_compiled_models_and_compiled_parts_load(tmp_path: Path) -> None:
    source = mask2former()
    assert_loads(source, saved(tmp_path, torch.compile(source).state_dict()))
    state = {
        key.replace("backbone.", "backbone._orig_mod.").replace("layers.", "layers._orig_mod."): value
        for key, value in source.state_dict().items()
    }
    assert sum("_orig_mod" in key for key in state) > 100
    assert_loads(source, saved(tmp_path, state))
    assert_loads(source, saved(tmp_path, {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}}))
    both = state | {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"each tensor once, got backbone\.stem\.conv1\.weight again"):
        load_weights(mask2former(), both)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards_with_their_index_load(tmp_path: Path, suffix: str) -> None:
    source = mask2former()
    stem = "pytorch_model" if suffix == "bin" else "model"
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    places: dict[str, str] = {}
    for number in (1, 2, 3):
        part = dict(list(state.items())[number - 1 :: 3])
        shard = f"{stem}-0000{number}-of-00003.{suffix}"
        (torch.save if suffix == "bin" else save_file)(part, tmp_path / shard)
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    assert_loads(source, tmp_path)
    (tmp_path / f"{stem}-00002-of-00003.{suffix}").unlink()
    with pytest.raises(CheckpointError, match=rf"{stem}-00002-of-00003\.{suffix} .* is missing"):
        load_weights(mask2former(), tmp_path)


def test_a_shard_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must hold tensors by name"):
        read_weights(tmp_path)


def test_what_deepspeed_consolidates_loads_and_what_it_has_not_is_told(tmp_path: Path) -> None:
    """``zero_to_fp32.py`` writes one state dict of float32, in a file or a folder; Lightning's form wraps it."""
    source = mask2former()
    assert_loads(source, saved(tmp_path, dict(source.state_dict()), "pytorch_model.bin"))
    assert_loads(source, tmp_path)
    content = {"state_dict": prefixed(source, "_forward_module.model."), "zero_stage": 2}
    assert_loads(source, saved(tmp_path, content, "consolidated.pt"))
    raw = tmp_path / "raw"
    (raw / "global_step10").mkdir(parents=True)
    (raw / "latest").write_text("global_step10")
    with pytest.raises(CheckpointError, match=r"consolidate a DeepSpeed checkpoint with its zero_to_fp32\.py"):
        read_weights(raw)


# Folders of runs and of transformers.


def run_folder(folder: Path, source: nn.Module, name: str = "last") -> Path:
    """The folder of a run that was stopped at step 7."""
    tables = {"name": "r", "model": {"name": source.name, "weights": "", **SMALL}}
    state = {"model": source.state_dict(), "step": 7, "settings": json.dumps(tables)}
    write_checkpoint(folder / "checkpoints" / f"{name}.pt", state, spare=False)
    return folder


def test_the_newest_whole_checkpoint_of_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    source, earlier = mask2former(), mask2former()
    run_folder(tmp_path, earlier, "last.previous")
    run_folder(tmp_path, source)
    assert_loads(source, tmp_path)
    assert_loads(source, tmp_path / "checkpoints")
    checkpoint = read_weights(tmp_path)
    assert checkpoint.source == str(tmp_path / "checkpoints" / "last.pt")
    assert checkpoint.described_model() == ("mask2former", SMALL)
    assert (checkpoint.step, checkpoint.settings["name"], checkpoint.passed_over) == (7, "r", [])
    newest = tmp_path / "checkpoints" / "last.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert_loads(earlier, tmp_path)
    report = load_weights(mask2former(), tmp_path)
    assert report.source.endswith("last.previous.pt")
    assert "last.pt must match its checksum" in report.passed_over[0]
    assert "passed over" in str(report)
    with pytest.raises(CheckpointError, match=r"last\.pt must match its checksum, got other bytes"):
        load_weights(mask2former(), newest)
    newest.write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"last\.pt must end in its checksum, got none: truncated"):
        read_weights(newest)


def test_a_run_without_a_whole_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"must hold a checkpoint, got .*best\.pt must be whole, got 7 bytes"):
        load_weights(panet(), tmp_path)


def test_training_starts_from_a_run(tmp_path: Path) -> None:
    settings = load_task("mask2former_generated", TINY).settings
    source = fssops.create_model("mask2former", **settings.model.options)
    state = {"model": source.state_dict(), "step": 7, "settings": json.dumps(settings.as_tables())}
    write_checkpoint(tmp_path / "checkpoints" / "last.pt", state)
    built = build_model(load_task("mask2former_generated", [*TINY, f"model.weights={tmp_path}"]).settings).state_dict()
    assert all(torch.equal(built[key], value) for key, value in source.state_dict().items())


def test_files_of_ours_and_folders_of_transformers_say_what_model_they_are_of(tmp_path: Path) -> None:
    source = mask2former()
    save_weights(source, tmp_path / "m.safetensors")
    name, options = read_weights(tmp_path / "m.safetensors").described_model()
    assert fssops.create_model(name, **options).config == source.config  # type: ignore[attr-defined]
    write_transformers(source, tmp_path / "folder")
    assert_loads(source, tmp_path / "folder", *read_ignored(tmp_path / "folder"))
    name, options = read_weights(tmp_path / "folder").described_model()
    assert (name, options["num_queries"]) == ("mask2former", 5)
    with pytest.raises(ValueError, match="must say which model it is of, got tensors alone"):
        read_weights(source.state_dict()).described_model()


def read_ignored(folder: Path) -> list[str]:
    """What transformers' folder of a ResNet holds beside the weights."""
    names = read_weights(folder).state
    return [name for name in names if name.endswith(("num_batches_tracked", "empty_weight"))]


@pytest.mark.parametrize("recipe", ["mask2former_generated", None])
def test_a_folder_of_transformers_is_a_checkpoint_and_a_recipe_says_the_data(
    tmp_path: Path, recipe: str | None
) -> None:
    settings = load_task("mask2former_generated", TINY).settings
    source: Any = fssops.create_model("mask2former", **settings.model.options)
    write_transformers(source, tmp_path)
    trained = load_trained(tmp_path, recipe, TINY if recipe else [])
    model = trained.model
    assert trained.label == f"{recipe or 'mask2former'} {tmp_path.name}"
    # Without a recipe normalisation is frozen, which counts no batches.
    held = [key for key in source.state_dict() if not key.endswith("num_batches_tracked") or recipe]
    assert set(held) <= set(model.state_dict())
    assert all(torch.equal(model.state_dict()[key], source.state_dict()[key]) for key in held)
