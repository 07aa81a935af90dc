"""Weights that would load and give wrong results: other classes, other options, values that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_layout import to_authors
from torch import nn

import fssops
from fssops.command_line import exit_code_of
from fssops.convert import main as convert
from fssops.engine.checkpoints import write_checkpoint
from fssops.tasks import load_task
from fssops.tasks.trained_models import build_model
from fssops.weights import CheckpointError, load_weights, save_weights
from fssops.weights.layouts.universal import MASK2FORMER

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
FEW_SHOT: dict[str, Any] = {"backbone_width": 4, "head_channels": 16}


def mask2former(**options: Any) -> nn.Module:
    return fssops.create_model("mask2former", **{**SMALL, **options})


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# A head for other classes.


@pytest.mark.parametrize("layout", ["fssops", "authors"])
@pytest.mark.parametrize(("given", "built"), [(4, 7), (7, 4)])
def test_a_head_for_other_classes_is_refused_with_both_numbers_and_the_way_out(
    layout: str, given: int, built: int
) -> None:
    state: Any = mask2former(num_classes=given).state_dict()
    if layout == "authors":
        state = to_authors(state, MASK2FORMER, 0.1)
    model = mask2former(num_classes=built)
    before = copied(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state)
    told = str(caught.value)
    assert f"class_embed.weight must be for {built} classes, as the model's is, got one for {given};" in told
    assert f"build the model with num_classes={given}, or train from these weights" in told
    assert "\n" not in told
    assert unchanged(model, before)
    report = load_weights(model, state, new_head="tell")
    assert [name.rpartition(".")[2] for name, _, _ in report.reinitialised] == ["weight", "bias"]
    assert torch.equal(
        model.get_parameter("transformer_decoder.class_embed.weight"), before[report.reinitialised[0][0]]
    )


@pytest.mark.parametrize("strict", [True, False])
def test_not_being_strict_makes_no_random_head(strict: bool) -> None:
    with pytest.raises(CheckpointError, match="must be for 5 classes, as the model's is, got one for 4"):
        load_weights(mask2former(num_classes=5), mask2former().state_dict(), strict=strict)


@pytest.mark.parametrize(("system", "option"), [("pspnet", "base_classes"), ("per_pixel_baseline", "num_classes")])
def test_heads_of_every_kind_are_counted_in_classes(system: str, option: str) -> None:
    size = FEW_SHOT if system == "pspnet" else {"backbone": "resnet18", "channels": 32, "mask_channels": 32, "heads": 4}
    source, target = (fssops.create_model(system, **{**size, option: count}) for count in (15, 21))
    with pytest.raises(CheckpointError, match=f"for 21 classes, .* got one for 15; build the model with {option}=15"):
        load_weights(target, source.state_dict())


@pytest.mark.parametrize("new_head", ["refuse", "tell"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_frozen_base_learner_never_starts_anew(new_head: Any, wrapped: bool) -> None:
    base = fssops.create_model("pspnet", **FEW_SHOT, base_classes=15)
    state: Any = base.state_dict()
    if wrapped:
        state = {"model": state, "settings": json.dumps({"model": {"name": "pspnet", **FEW_SHOT, "base_classes": 15}})}
    system = fssops.create_model("msanet", **FEW_SHOT, base_classes=21)
    before = copied(system)
    with pytest.raises(
        CheckpointError,
        match=r"base_learner\.head\.classifier\.weight must be for 21 classes, .* got one for 15, and it is frozen",
    ):
        load_weights(system, state, new_head=new_head)
    assert unchanged(system, before)


def test_a_head_that_the_settings_freeze_is_refused_in_training_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = ["model.backbone=resnet18", "model.channels=32", "model.mask_channels=32", "model.num_queries=5"]
    options = {**load_task("mask2former_generated", tiny).settings.model.options, "num_classes": 4, "things": None}
    save_weights(fssops.create_model("mask2former", **options), tmp_path / "m.safetensors")
    overrides = [*tiny, f"model.weights={tmp_path}/m.safetensors"]
    settings = load_task("mask2former_generated", overrides).settings
    with caplog.at_level("INFO", logger="fssops"):
        build_model(settings, new_head="tell")
    assert "starts anew, other classes: transformer_decoder.class_embed.weight [5, 32] -> [9, 32]" in caplog.text
    with pytest.raises(CheckpointError, match="got one for 4; build"):
        build_model(settings)
    frozen = load_task("mask2former_generated", [*overrides, 'optim.frozen=["*class_embed*"]']).settings
    with pytest.raises(CheckpointError, match="got one for 4, and it is frozen, so training would leave it random"):
        build_model(frozen, new_head="tell")


def test_a_head_of_another_width_is_no_head_for_other_classes() -> None:
    state = mask2former().state_dict()
    state["transformer_decoder.class_embed.weight"] = torch.zeros(5, 16)
    with pytest.raises(CheckpointError, match=r"class_embed.weight is \[5, 16\] and must be \[5, 32\]"):
        load_weights(mask2former(), state, new_head="tell")


def test_convert_writes_no_random_head_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(mask2former(), tmp_path / "a.safetensors")
    arguments = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--set", "num_classes=6"]
    assert exit_code_of("convert", convert, arguments) == 2
    assert "must be for 6 classes, as the model's is, got one for 4" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    assert exit_code_of("convert", convert, [*arguments, "--allow-mismatch"]) == 0
    assert "other classes, starts anew" in capsys.readouterr().out


# Values that are not finite.


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("transformer_decoder.query_feat.weight", float("nan"), 3),
        ("pixel_decoder.level_embed", float("-inf"), 1),
        ("backbone.res2.0.conv1.norm.running_var", float("inf"), 2),
    ],
)
def test_values_that_are_not_finite_are_refused_with_tensor_and_number(
    tmp_path: Path, name: str, value: float, count: int, strict: bool
) -> None:
    source, model = mask2former(), mask2former()
    before = copied(model)
    tensor = source.state_dict()[name]
    tensor.view(-1)[:count] = value
    torch.save(source.state_dict(), tmp_path / "m.pth")
    told = rf"m\.pth: {name} must be finite, got {count} of {tensor.numel()} values that are NaN or infinite; take"
    with pytest.raises(CheckpointError, match=told):
        load_weights(model, tmp_path / "m.pth", strict=strict)
    assert unchanged(model, before)


def test_the_first_of_several_is_named_and_the_others_are_counted() -> None:
    state = mask2former().state_dict()
    for key in list(state)[3:6]:
        state[key] = torch.full_like(state[key], float("nan"))
    with pytest.raises(
        CheckpointError, match=rf"{list(state)[3]} must be finite, .*and 2 more tensors hold such values"
    ):
        load_weights(mask2former(), state)


def test_a_part_is_named_within_the_model_and_what_is_ignored_may_be_anything() -> None:
    source, model = mask2former(), mask2former()
    state = {f"backbone.bottom_up.{key}": value for key, value in source.get_submodule("backbone").state_dict().items()}
    state["proposal_generator.anchors"] = torch.full((3,), float("inf"))
    load_weights(model, state, strict=False)
    state["backbone.bottom_up.res3.0.conv1.weight"] = torch.full((128, 64, 3, 3), float("nan"))
    with pytest.raises(CheckpointError, match=r"backbone\.res3\.0\.conv1\.weight must be finite, got 73728 of 73728"):
        load_weights(model, state, strict=False)


def test_singular_values_that_are_not_finite_are_told_as_such() -> None:
    options = {"backbone_width": 4, "num_queries": 6, "channels": 32, "heads": 4, "tuning": "singular_values"}
    model = fssops.create_model("mm_former_segmenter", **options)
    plain = fssops.create_model("mm_former_segmenter", **{**options, "tuning": "none"})
    state = plain.state_dict()
    state["backbone.res3.0.conv1.weight"].fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"res3\.0\.conv1\.weight must be finite"):
        load_weights(model, state)


# Our own weights of a model with other options.


@pytest.mark.parametrize(
    "options",
    [{"num_queries": 6}, {"decoder_layers": 4}, {"channels": 64}, {"backbone": "resnet50"}, {"backbone": "swin_tiny"}],
    ids=str,
)
@pytest.mark.parametrize("form", ["run", "file", "tensors"])
def test_our_weights_of_a_model_with_other_options_are_told_as_ours(
    tmp_path: Path, form: str, options: dict[str, Any]
) -> None:
    source = mask2former()
    given: Any = source.state_dict()
    if form == "run":
        tables = {"model": {"name": "mask2former", "weights": "start.pth", **SMALL}}
        given = tmp_path / "checkpoints" / "last.pt"
        write_checkpoint(given, {"model": source.state_dict(), "step": 1, "settings": json.dumps(tables)})
    elif form == "file":
        given = tmp_path / "m.safetensors"
        save_weights(source, given)
    with pytest.raises(CheckpointError) as caught:
        load_weights(mask2former(**options), given)
    told = str(caught.value)
    assert "detectron2" not in told
    assert "strict" not in told
    assert "load_weights" not in told
    assert "(layout fssops); build the model with the options that these weights have" in told
    if form != "tensors":
        ((option, value),) = options.items()
        assert f"it was made with {option}={SMALL[option]!r}, and the model has {option}={value!r};" in told


def test_options_that_change_no_tensor_are_not_blamed(tmp_path: Path) -> None:
    save_weights(mask2former(num_queries=7, tasks=("instance",), class_weight=3.0), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="made with num_queries=7, and the model has num_queries=5; 2 of"):
        load_weights(mask2former(dropout=0.1), tmp_path / "m.safetensors")


def test_our_weights_of_another_system_are_named_by_it(tmp_path: Path) -> None:
    save_weights(mask2former(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="is of mask2former, and the model is panet with backbone vgg16"):
        load_weights(fssops.create_model("panet"), tmp_path / "m.safetensors")
    other = {key: value for key, value in SMALL.items() if key != "encoder_layers"}
    with pytest.raises(CheckpointError, match="does not fit maskformer: it is of mask2former; "):
        load_weights(fssops.create_model("maskformer", **other), tmp_path / "m.safetensors")


def test_a_backbone_of_ours_is_no_backbone_of_detectron2() -> None:
    small, large = (fssops.create_model("panet", backbone=f"resnet{depth}", backbone_width=4) for depth in (18, 50))
    for source, target in ((small, large), (large, small)):
        with pytest.raises(CheckpointError, match=r"does not fit panet: .*\(layout fssops\)"):
            load_weights(target, source.state_dict())
