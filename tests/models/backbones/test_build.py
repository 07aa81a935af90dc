"""The table of backbones: every row is what it says, and systems get the maps that they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fssops.models.backbones.build import BACKBONES, build_backbone, check_backbone, finest_stride


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_says_what_its_backbone_gives(name: str) -> None:
    row = BACKBONES[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert backbone.taps == tuple(row.channels)
    assert {tap: backbone.channels[tap] for tap in row.channels} == row.channels
    assert {tap: backbone.strides[tap] for tap in row.strides} == row.strides
    assert row.built_for[0] == max(row.strides.values())
    if name.startswith("swin"):  # its windows need real indices
        return
    height, width = (4 * row.strides["res5"], 6 * row.strides["res5"]) if row.one_scale else (64, 96)
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, height, width, device="meta"))
    for tap, stride in row.strides.items():
        assert features[tap].shape == (1, row.channels[tap], height // stride, width // stride)


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if 8 in row.built_for and not row.one_scale])
def test_a_backbone_at_stride_8_goes_no_further(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, stride=8, width=4, norm="none", final_relu=False)
    assert backbone.strides["res5"] == 8
    assert backbone(torch.zeros(1, 3, 64, 96, device="meta"))["res5"].shape[-2:] == (8, 12)


def test_maps_are_asked_for_by_name_or_by_stride() -> None:
    assert build_backbone("resnet18", taps=(4, 32), width=2).taps == ("res2", "res5")
    assert build_backbone("resnet18", taps=(8,), stride=8, width=2).taps == ("res5",)  # the deepest of three
    assert build_backbone("vgg16", taps=("res3", 2), width=2).taps == ("res3", "res1")


def test_a_backbone_is_built_for_the_stride_next_to_what_is_wanted() -> None:
    found = {name: finest_stride(name, 8) for name in BACKBONES}
    assert found["vgg16"] == found["resnet50"] == found["dino_vits8"] == 8
    assert found["efficientnet_lite2"] == found["dinov3_vits16"] == 16
    assert found["dinov2_vits14"] == 14
    assert found["swin_tiny"] == found["resnet50_deeplab"] == 32
    assert finest_stride("dino_vits8", 16) == 8  # all that it has


@dataclass(frozen=True)
class Options:
    backbone: str
    backbone_width: int = 64
    drop_path: float = 0.3


def test_configurations_take_backbones_with_the_maps_they_need_or_of_one_scale() -> None:
    refused = {name for name in BACKBONES if name == "vgg16"}
    for name in BACKBONES:
        if name in refused:
            with pytest.raises(ValueError, match="backbone must have maps at strides 4, 8, 16, 32, or of one scale"):
                check_backbone(Options(name), 4, 8, 16, 32)
        else:
            check_backbone(Options(name), 4, 8, 16, 32)
        check_backbone(Options(name))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options("dinov2_vits15"), "backbone must be one of vgg16, .*, got 'dinov2_vits15'; did you mean 'dinov2_vits"),
        (Options("swin_tiny", backbone_width=32), "backbone_width of swin_tiny must be 64, got 32"),
        (Options("resnet50", drop_path=0.1), "drop_path of resnet50 must be 0, since it has none, got 0.1"),
    ],
)
def test_configurations_are_told_what_a_backbone_has_not(options: Options, told: str) -> None:
    with pytest.raises(ValueError, match=f"Options: {told}"):
        check_backbone(options)


def test_rates_that_a_backbone_lacks_may_be_none_or_the_default() -> None:
    for options in (Options("resnet50"), Options("resnet50", drop_path=0.0), Options("dino_vits8", drop_path=0.1)):
        check_backbone(options)


LAYERS = {
    "resnet18": ("stem", "res2", "res3", "res4", "res5"),
    "vgg16": ("stage1", "stage2", "stage3", "stage4", "stage5"),
    "efficientnet_lite0": ("stem", *(f"stage{n}" for n in range(1, 8))),
    "swin_tiny": ("patch_embed", "layers.0", "layers.1", "layers.2", "layers.3"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_layers_are_frozen_with_their_statistics(name: str) -> None:
    norm: Any = {} if name == "swin_tiny" else {"norm": "batch"}
    backbone = build_backbone(name, **norm, drop_path=0.2 if name == "swin_tiny" else 0.0).train()
    assert backbone.layers_by_depth == LAYERS[name]
    backbone.freeze(2)
    backbone.eval().train()
    trained = {parameter: p.requires_grad for parameter, p in backbone.named_parameters()}
    for parameter, open_to_training in trained.items():
        frozen = any(parameter.startswith(f"{layer}.") for layer in LAYERS[name][:2])
        assert open_to_training == (not frozen), parameter
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(x.square().mean() for x in maps.values()).backward()
    for parameter, p in backbone.named_parameters():
        assert (p.grad is not None) == trained[parameter], parameter
    after = backbone.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == any(key.startswith(f"{layer}.") for layer in LAYERS[name][:2]), key


def test_freezing_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="layers of resnet must be at most 3 or all, got 4"):
        build_backbone("resnet18", taps=("res3",), width=2).freeze(4)


def test_every_parameter_has_a_depth_that_grows_from_the_images_on() -> None:
    for name in (*LAYERS, "dinov3_vits16"):
        with torch.device("meta"):
            backbone = build_backbone(name)
        depths = {parameter: backbone.layer_of(parameter) for parameter, _ in backbone.named_parameters()}
        assert set(depths.values()) >= set(range(len(backbone.layers_by_depth)))
        late = {parameter.split(".")[0] for parameter, d in depths.items() if d == len(backbone.layers_by_depth)}
        assert late <= {"norm", "norm0", "norm1", "norm2", "norm3"}


def test_a_frozen_backbone_trains_nothing() -> None:
    assert not any(p.requires_grad for p in build_backbone("resnet18", width=2, norm="batch", frozen=True).parameters())
    assert all(p.requires_grad for p in build_backbone("resnet18", width=2, norm="batch").parameters())


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet20", {}, "backbone must be one of vgg16, resnet18, .*, got 'resnet20'; did you mean"),
        ("swin_tiny", {"stride": 8}, "stride of swin_tiny must be one of 32, got 8"),
        ("swin_tiny", {"width": 32}, "width of swin_tiny must be 64, got 32"),
        ("vgg16", {"taps": (32,)}, r"taps of vgg16 must be among res1, .*, got \(32,\)"),
        ("resnet18", {"taps": ("stage5",)}, r"taps of resnet18 must be among res2, .*, got \('stage5',\)"),
    ],
)
def test_what_a_backbone_cannot_be_is_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"build_backbone: {told}"):
        build_backbone(name, **options)
