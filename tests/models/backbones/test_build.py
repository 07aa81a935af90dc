"""The table of backbones: every row is what it says, and systems get the maps that they ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fssops.models.backbones.build import BACKBONES, backbones_with, build_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_says_what_its_backbone_gives(name: str) -> None:
    row = BACKBONES[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert backbone.taps == tuple(row.channels)
    assert {tap: backbone.channels[tap] for tap in row.channels} == row.channels
    assert {tap: backbone.strides[tap] for tap in row.strides} == row.strides
    assert row.built_for[0] == max(row.strides.values())
    assert row.watchable == bool(backbone.layer_counts)
    if name.startswith("swin"):  # its windows need real indices
        return
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96, device="meta"))
    for tap, stride in row.strides.items():
        assert features[tap].shape == (1, row.channels[tap], 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", backbones_with(8))
def test_a_backbone_at_stride_8_goes_no_further(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, stride=8, width=4, norm="none", final_relu=False)
    assert backbone.strides["res5"] == 8
    assert backbone(torch.zeros(1, 3, 64, 96, device="meta"))["res5"].shape[-2:] == (8, 12)


def test_maps_are_asked_for_by_name_or_by_stride() -> None:
    assert build_backbone("resnet18", taps=(4, 32), width=2).taps == ("res2", "res5")
    assert build_backbone("resnet18", taps=(8,), stride=8, width=2).taps == ("res5",)  # the deepest of three
    assert build_backbone("vgg16", taps=("res3", 2), width=2).taps == ("res3", "res1")


def test_systems_find_the_backbones_that_have_what_they_need() -> None:
    resnets = ("resnet18", "resnet34", "resnet50", "resnet101")
    assert backbones_with(8) == ("vgg16", *resnets)
    assert backbones_with(4, 8, options=("deep_stem",)) == resnets
    assert "swin_tiny" not in backbones_with(4, 8, 16, 32, watchable=True)
    assert backbones_with(4, 8, 16, 32) == tuple(name for name in BACKBONES if name != "vgg16")


def test_a_frozen_backbone_trains_nothing() -> None:
    assert not any(p.requires_grad for p in build_backbone("resnet18", width=2, norm="batch", frozen=True).parameters())
    assert all(p.requires_grad for p in build_backbone("resnet18", width=2, norm="batch").parameters())


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet20", {}, "name must be one of vgg16, resnet18, .*, got 'resnet20'"),
        ("swin_tiny", {"stride": 8}, "stride of swin_tiny must be one of 32, got 8"),
        ("swin_tiny", {"width": 32}, "width of swin_tiny must be 64, got 32"),
        ("vgg16", {"taps": (32,)}, r"taps of vgg16 must be among res1, .*, got \(32,\)"),
        ("resnet18", {"taps": ("stage5",)}, r"taps of resnet18 must be among res2, .*, got \('stage5',\)"),
    ],
)
def test_what_a_backbone_cannot_be_is_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"build_backbone: {told}"):
        build_backbone(name, **options)
