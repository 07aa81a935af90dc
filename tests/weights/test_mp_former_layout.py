"""Checkpoints of MP-Former, and the relatives that do not fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from authors_layout import to_authors

import fssops
from fssops.command_line import exit_code_of
from fssops.convert import main as convert
from fssops.models.universal import UniversalModel
from fssops.weights import CheckpointError, save_weights
from fssops.weights.layouts.universal import MASK2FORMER, PREDICTOR

OPTIONS: dict[str, Any] = {
    "backbone": "resnet18",
    "num_classes": 4,
    "num_queries": 5,
    "channels": 32,
    "mask_channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
}


def small(name: str = "mp_former", **options: Any) -> UniversalModel:
    """A small model with random weights, biases included."""
    model = fssops.create_model(name, **{**OPTIONS, **options})
    assert isinstance(model, UniversalModel)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.uniform_(0.1, 1.0)
    return model


@pytest.mark.parametrize("backbone", ["resnet18", "swin_tiny"])
def test_authors_names_load_whole_and_are_written_back(backbone: str) -> None:
    source, target = small(backbone=backbone), small(backbone=backbone)
    state = to_authors(source.state_dict(), MASK2FORMER, 0.1)
    assert PREDICTOR + "label_enc.weight" in state
    assert PREDICTOR + "query_embed.weight" not in state
    report = fssops.load_weights(target, {"model": state})
    assert report.complete
    assert report.layout == "authors (IDEA-Research/MP-Former)"
    again = to_authors(target.state_dict(), MASK2FORMER, 0.1)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_another_number_of_classes_starts_the_classifier_and_the_class_contents_anew() -> None:
    state = to_authors(small().state_dict(), MASK2FORMER, 0.1)
    report = fssops.load_weights(small(num_classes=6), state, new_head="tell")
    assert sorted(name for name, _, _ in report.reinitialised) == [
        "transformer_decoder.class_embed.bias",
        "transformer_decoder.class_embed.weight",
        "transformer_decoder.label_enc.weight",
    ]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layout", ["fssops", "authors", "file"])
def test_mask2former_does_not_fit_and_the_error_says_why(layout: str, strict: bool, tmp_path: Path) -> None:
    source, target = small("mask2former"), small()
    given: Any = source.state_dict()
    if layout == "authors":
        given = to_authors(given, MASK2FORMER, 0.1)
    elif layout == "file":
        given = tmp_path / "mask2former.safetensors"
        save_weights(source, given)
    before = target.transformer_decoder.query_feat.weight.clone()  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match=r"MP-Former's carry none.*build mask2former for them, or train"):
        fssops.load_weights(target, given, strict=strict)
    assert torch.equal(before, target.transformer_decoder.query_feat.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("other", ["mask2former", "mask2former_vis"])
@pytest.mark.parametrize("layout", ["fssops", "authors"])
def test_mp_former_does_not_fit_mask2former(layout: str, other: str) -> None:
    given = small().state_dict()
    if layout == "authors":
        given = to_authors(given, MASK2FORMER, 0.1)
    with pytest.raises(CheckpointError, match=r"these are weights of MP-Former.*build mp_former"):
        fssops.load_weights(small(other), given)


def test_a_backbone_loads_alone() -> None:
    source = small()
    report = fssops.load_weights(small(), source.backbone.state_dict())
    assert report.target == "backbone"


def test_the_verb_converts_and_tells_a_misfit_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [part for key, value in OPTIONS.items() for part in ("--set", f"{key}={value}")]
    first, second = tmp_path / "authors.pth", tmp_path / "ours.safetensors"
    torch.save({"model": to_authors(small().state_dict(), MASK2FORMER, 0.1)}, first)
    assert convert([str(first), str(second), "--model", "mp_former", *sets]) == 0
    assert fssops.load_weights(small(), second).complete
    capsys.readouterr()
    misfit = [str(second), str(tmp_path / "x.safetensors"), "--model", "mask2former", *sets]
    assert exit_code_of("convert", convert, misfit) == 2
    told = capsys.readouterr().err
    assert "these are weights of MP-Former" in told
    assert told.count("\n") == 1
    folder = [str(second), str(tmp_path / "hf"), "--model", "mp_former", "--layout", "transformers", *sets]
    assert exit_code_of("convert", convert, folder) == 2
    assert "must be mask2former or maskformer, got mp_former" in capsys.readouterr().err
