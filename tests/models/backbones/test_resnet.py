"""ResNet backbones: shapes, strides, dilation, watching, and a plain composition of torch layers as the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.models.backbones.resnet import ResNet


def randomise(model: torch.nn.Module) -> None:
    """Statistics and affine parts away from 0 and 1, so that a forgotten one shows."""
    for name, value in model.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if name.endswith(("weight", "var")) else -0.5))


def plain_forward(model: ResNet, x: Tensor, strides: tuple[int, ...], dilations: tuple[int, ...]) -> dict[str, Tensor]:
    """The network written with torch functions on its state dict: convolution, batch_norm, ReLU, step by step."""
    state = model.state_dict()

    def conv_norm(name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)
        statistics = (state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics, training=False, eps=1e-5)

    x = conv_norm("stem.conv1", x, 2).relu()
    for extra in ("stem.conv2", "stem.conv3"):
        if f"{extra}.weight" in state:
            x = conv_norm(extra, x).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    found = {}
    for index, stage in enumerate(("res2", "res3", "res4", "res5")):
        for block in range(len(model.get_submodule(stage))):  # type: ignore[arg-type]
            name = f"{stage}.{block}"
            stride, dilation = (strides[index] if block == 0 else 1), dilations[index]
            if f"{name}.conv3.weight" in state:
                y = conv_norm(f"{name}.conv1", x).relu()
                y = conv_norm(f"{name}.conv2", y, stride, dilation).relu()
                y = conv_norm(f"{name}.conv3", y)
            else:
                y = conv_norm(f"{name}.conv1", x, stride, dilation).relu()
                y = conv_norm(f"{name}.conv2", y, 1, dilation)
            shortcut = conv_norm(f"{name}.shortcut", x, stride) if f"{name}.shortcut.weight" in state else x
            x = (y + shortcut).relu()
        found[stage] = x
    return found


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
@pytest.mark.parametrize(
    ("depth", "deep_stem", "stride", "strides", "dilations"),
    [
        (18, False, 32, (1, 2, 2, 2), (1, 1, 1, 1)),
        (50, True, 8, (1, 2, 1, 1), (1, 1, 2, 4)),
        (34, True, 16, (1, 2, 2, 1), (1, 1, 1, 2)),
    ],
)
def test_features_equal_the_plain_composition(
    norm: str, depth: int, deep_stem: bool, stride: int, strides: tuple[int, ...], dilations: tuple[int, ...]
) -> None:
    model = ResNet(depth, norm=norm, deep_stem=deep_stem, stride=stride, width=4)  # type: ignore[arg-type]
    model = model.double().eval()
    randomise(model)
    images = torch.randn(2, 3, 45, 39, dtype=torch.float64)
    expected = plain_forward(model, images, strides, dilations)
    with torch.no_grad():
        found = model(images)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, feature in found.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-9, atol=1e-9)
        assert feature.shape[1] == model.channels[name]


def test_strides_and_sizes_at_the_published_resolutions() -> None:
    model = ResNet(50, deep_stem=True, stride=8, width=2)
    assert model.strides == {"stem": 4, "res2": 4, "res3": 8, "res4": 8, "res5": 8}
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 473, 473))
    assert [f.shape[-1] for f in features.values()] == [119, 60, 60, 60]


def test_parameter_names_and_shapes_are_those_of_detectron2() -> None:
    state = ResNet(50, norm="frozen").state_dict()
    assert len(state) == 53 * 5
    assert state["stem.conv1.weight"].shape == (64, 3, 7, 7)
    assert state["res2.0.shortcut.norm.running_var"].shape == (256,)
    assert state["res5.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert sum(p.numel() for p in ResNet(50, norm="frozen").parameters()) == 23_454_912


@pytest.mark.parametrize(("depth", "blocks"), [(18, [2, 2, 2, 2]), (101, [3, 4, 23, 3])])
def test_watchers_see_the_blocks_before_their_last_relu(depth: int, blocks: list[int]) -> None:
    model = ResNet(depth, width=2).eval()
    images = torch.randn(1, 3, 33, 33)
    seen: dict[str, list[Tensor]] = {"res3": [], "res4": []}
    with torch.no_grad():
        plain, watched = model(images), model(images, {name: layers.append for name, layers in seen.items()})
    assert [len(seen["res3"]), len(seen["res4"])] == blocks[1:3]
    assert list(model.layer_counts.values()) == blocks
    for name in plain:
        assert torch.equal(plain[name], watched[name])
    assert (seen["res4"][-1] < 0).any()
    assert torch.equal(seen["res4"][-1].relu(), plain["res4"])


def test_only_the_stages_that_are_asked_for_are_built() -> None:
    model = ResNet(18, taps=("res3",), width=2, final_relu=False)
    assert not any(key.startswith(("res4", "res5")) for key in model.state_dict())
    features = model(torch.randn(1, 3, 32, 32))
    assert list(features) == ["res3"]
    assert (features["res3"] < 0).any()


def test_dilations_may_differ_from_block_to_block() -> None:
    model = ResNet(50, dilations=(1, 1, (1, 2), (1, 2, 4)), stride=8, width=2)
    assert [block.conv2.dilation[0] for block in model.res4] == [1, 2, 2, 2, 2, 2]  # type: ignore[union-attr]
    assert [block.conv2.dilation[0] for block in model.res5] == [1, 2, 4]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, got 20"),
        ({"taps": ("res6",)}, "taps must be among"),
        ({"stride": 12}, "stride must be 8, 16 or 32, got 12"),
        ({"dilations": (1, 2)}, "must have 4 entries"),
        ({"norm": "layer"}, "kind must be none, frozen, batch, sync or group"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**options)  # type: ignore[arg-type]
