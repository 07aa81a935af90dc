"""The simple feature pyramid against a definition written out, and which backbones get one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.backbones.build import BACKBONES, vit_row
from fssops.models.backbones.feature_pyramid import SimpleFeaturePyramid, build_multi_scale, multi_scale_maps
from fssops.models.backbones.vit import ViTForm

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def normed(x: Tensor, layer: nn.Module) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-6) over channels, then scale and shift."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scale, shift = (p.view(1, -1, 1, 1) for p in layer.parameters())
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift


def doubled(x: Tensor, layer: nn.Module) -> Tensor:
    """A 2x2 transposed convolution of stride 2: every position becomes its own 2x2 square."""
    weight, bias = layer.weight, layer.bias  # [Cin, Cout, 2, 2]
    squares = torch.einsum("bchw,cokl->bohkwl", x, weight)
    return squares.flatten(2, 3).flatten(3, 4) + bias.view(1, -1, 1, 1)


def test_the_pyramid_equals_its_definition() -> None:
    pyramid = SimpleFeaturePyramid(8, 6).double()
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    made = pyramid(features, (64, 96))
    inner: dict[str, Tensor] = {}
    first, norm, _, second = pyramid.res2[:4]
    inner["res2"] = doubled(F.gelu(normed(doubled(features, first), norm)), second)
    inner["res3"] = doubled(features, pyramid.res3[0])
    inner["res4"] = features
    inner["res5"] = features.view(2, 8, 2, 2, 3, 2).amax((3, 5))
    for name, x in inner.items():
        one, norm_one, three, norm_three = pyramid.get_submodule(name)[-4:]
        x = normed(torch.einsum("bchw,oc->bohw", x, one.weight[:, :, 0, 0]), norm_one)
        x = normed(F.conv2d(x, three.weight, padding=1), norm_three)
        assert made[name].shape[-2:] == (64 // STRIDES[name], 96 // STRIDES[name])
        torch.testing.assert_close(made[name], x)
    assert pyramid.channels == dict.fromkeys(STRIDES, 6)


def test_a_map_of_another_patch_is_resized_to_stride_16() -> None:
    pyramid = SimpleFeaturePyramid(4, 4)
    fine = torch.randn(1, 4, 8, 12)  # patches of 8
    resized = F.avg_pool2d(fine, 2)  # bilinear by a half, between two pixels each way
    for ours, wanted in zip(pyramid(fine, (64, 96)).values(), pyramid(resized, (64, 96)).values(), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("size", [(64, 96), (40, 52)])
def test_every_backbone_of_one_scale_gets_a_pyramid(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", vit_row(ViTForm(14, 16, 4, 2, 16, table=2)))
    backbone, pyramid = build_multi_scale("tiny", 8, norm="frozen", drop_path=0.5)
    assert backbone.taps == ("res5",)
    assert [block.drop_path for block in backbone.blocks][-1] == 0.5
    with pytest.warns(UserWarning, match="multiples of the patch, 14"):
        maps = multi_scale_maps(backbone, pyramid, torch.randn(1, 3, *size))
    assert {name: tuple(x.shape[1:]) for name, x in maps.items()} == {
        "res2": (8, 4 * -(-size[0] // 16), 4 * -(-size[1] // 16)),
        "res3": (8, 2 * -(-size[0] // 16), 2 * -(-size[1] // 16)),
        "res4": (8, -(-size[0] // 16), -(-size[1] // 16)),
        "res5": (8, -(-size[0] // 32), -(-size[1] // 32)),
    }


def test_backbones_with_these_strides_stay_as_they_are() -> None:
    backbone, pyramid = build_multi_scale("resnet18", 8, norm="frozen", drop_path=0.3)
    assert pyramid is None
    images = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    ours, own = (
        multi_scale_maps(backbone, pyramid, images),
        backbone(images),
    )
    assert list(ours) == list(STRIDES)
    assert all(torch.equal(ours[name], own[name]) for name in ours)
