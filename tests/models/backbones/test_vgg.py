"""VGG-16 in its two forms: sizes of the fact sheets, watched layers, and normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fssops.models.backbones.vgg import VGG16


@pytest.mark.parametrize(("side", "expected"), [(417, 53), (97, 13), (129, 17), (161, 21), (8, 1)])
def test_panets_form_has_stride_8_and_the_published_sizes(side: int, expected: int) -> None:
    model = VGG16(stride=8, width=1)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, side, side))["res5"].shape == (1, 8, expected, expected)
    assert model.strides["res5"] == 8


def test_msanets_form_has_the_published_sizes() -> None:
    taps = ("res1", "res2", "res3", "res4", "res5")
    model = VGG16(norm="batch", taps=taps, width=1).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 473, 473))
    assert [features[name].shape[-1] for name in taps] == [237, 119, 60, 30, 30]


def test_the_published_network_has_the_published_parameters() -> None:
    assert sum(p.numel() for p in VGG16(stride=8).parameters()) == 14_714_688
    assert len(VGG16().state_dict()) == 26
    assert len(VGG16(norm="batch").state_dict()) == 26 + 13 * 5


def test_only_the_last_stage_of_panets_form_can_be_negative() -> None:
    torch.manual_seed(3)
    images = torch.randn(1, 3, 32, 32)
    assert (VGG16(stride=8, final_relu=False, width=4)(images)["res5"] < 0).any()
    assert (VGG16(width=4)(images)["res5"] >= 0).all()


def test_watchers_see_raw_convolutions_and_leave_the_features_as_they_are() -> None:
    model = VGG16(norm="batch", width=2).double().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    images = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {"res4": [], "res5": []}
    with torch.no_grad():
        plain = model(images)["res5"]
        watched = model(images, {name: layers.append for name, layers in seen.items()})["res5"]
        assert [len(seen["res4"]), len(seen["res5"])] == [3, 3]
        torch.testing.assert_close(watched, plain)
        last = model.stage5[2]  # type: ignore[index]
        torch.testing.assert_close(last.norm(seen["res5"][2]).relu(), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 4}, "stride must be 8 or 16, got 4"),
        ({"taps": ("stage6",)}, "taps must be among"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGG16(**options)  # type: ignore[arg-type]
