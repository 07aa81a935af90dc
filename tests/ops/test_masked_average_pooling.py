"""Masked average pooling on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fssops import ops, reference
from fssops.testing.cases import MASKED_AVERAGE_POOLING, PoolingCase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = pytest.mark.parametrize("case", MASKED_AVERAGE_POOLING, ids=lambda c: c.name)


def _inputs(case: PoolingCase, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    features = torch.randn(case.batch, case.channels, *case.size, dtype=torch.float64).to(device, dtype)
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    return features, torch.rand(case.batch, case.masks, *case.mask_size, dtype=torch.float64).to(device, dtype)


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@CASES
def test_values_and_gradients_equal_the_definition(case: PoolingCase, dtype: torch.dtype, device: str) -> None:
    features, masks = _inputs(case, device, dtype)
    # A quarter of the mask: with eps near 0 the gradient of a mask of one pixel is a difference of equal numbers.
    eps = 0.25 * max(math.prod(case.mask_size), math.prod(case.size))
    got_features, got_masks = features.clone().requires_grad_(), masks.clone().requires_grad_()
    want_features, want_masks = features.double().requires_grad_(), masks.double().requires_grad_()
    got = ops.masked_average_pooling(got_features, got_masks, eps=eps, resize=case.resize)
    want = reference.masked_average_pooling(want_features, want_masks, eps=eps, resize=case.resize)
    assert got.dtype == dtype
    grad = torch.randn_like(want).to(dtype)
    got.backward(grad)
    want.backward(grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}[dtype]
    for name, value, expected in (
        ("prototypes", got, want),
        ("grad_features", got_features.grad, want_features.grad),
        ("grad_masks", got_masks.grad, want_masks.grad),
    ):
        assert value is not None
        assert expected is not None
        error = (value.double() - expected).norm() / expected.norm()
        assert error < tolerance, name


@pytest.mark.parametrize("device", DEVICES)
@CASES
def test_gradients_pass_gradcheck(case: PoolingCase, device: str) -> None:
    small = (min(case.channels, 3), min(case.masks, 2))
    features, masks = _inputs(case, device, torch.float64)
    features, masks = features[:1, : small[0]].clone().requires_grad_(), masks[:1, : small[1]].clone().requires_grad_()

    def pool(f: Tensor, m: Tensor) -> Tensor:
        return ops.masked_average_pooling(f, m, eps=1.0, resize=case.resize)

    assert torch.autograd.gradcheck(pool, (features, masks))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.bool, torch.uint8], ids=str)
def test_registration_passes_opcheck(mask_dtype: torch.dtype, device: str) -> None:
    features = torch.randn(2, 5, 6, 7, device=device, requires_grad=True)
    masks = (torch.rand(2, 3, 12, 14, device=device) > 0.4).to(mask_dtype)
    if masks.is_floating_point():
        masks.requires_grad_()
    # Raises if the schema, the fake kernel or the autograd registration disagree with the kernel.
    result = torch.library.opcheck(torch.ops.fssops.masked_average_pooling, (features, masks, 1e-5, 4))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_backward_registration_passes_opcheck(device: str) -> None:
    features, masks = torch.randn(2, 5, 6, 7, device=device), torch.rand(2, 3, 6, 7, device=device)
    prototypes, divisor = torch.ops.fssops.masked_average_pooling(features, masks, 1e-5, 0)
    for need_features, need_masks in ((True, True), (True, False), (False, True)):
        arguments = (torch.randn_like(prototypes), features, masks, prototypes, divisor, 0, need_features, need_masks)
        result = torch.library.opcheck(torch.ops.fssops.masked_average_pooling_backward, arguments)
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["transposed", "channels_last_of_one_column", "every_other_image"])
def test_backward_registration_knows_the_layout_of_the_gradient(layout: str, device: str) -> None:
    shape = {"transposed": (2, 5, 7, 6), "channels_last_of_one_column": (2, 7, 5, 1), "every_other_image": (4, 5, 6, 7)}
    features = torch.randn(shape[layout], device=device)
    if layout == "transposed":
        features = features.transpose(2, 3)
    elif layout == "channels_last_of_one_column":
        features = features.permute(0, 2, 1, 3)  # as tokens [B, S, C] become features [B, C, S, 1]
    else:
        features = features.to(memory_format=torch.channels_last)[::2]
    masks = torch.rand(len(features), 3, *features.shape[2:], device=device)
    prototypes, divisor = torch.ops.fssops.masked_average_pooling(features, masks, 1e-5, 0)
    arguments = (torch.randn_like(prototypes), features, masks, prototypes, divisor, 0, True, False)
    result = torch.library.opcheck(torch.ops.fssops.masked_average_pooling_backward, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_graph_break(device: str) -> None:
    features, masks = (
        torch.randn(1, 4, 5, 5, device=device, requires_grad=True),
        torch.rand(1, 2, 10, 10, device=device),
    )

    def pool(f: Tensor, m: Tensor) -> Tensor:
        return ops.masked_average_pooling(f * 2, m, eps=1e-5, resize="bilinear").square().sum()

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")(features, masks)
    (grad,) = torch.autograd.grad(compiled, features)
    eager = pool(features, masks)
    (eager_grad,) = torch.autograd.grad(eager, features)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(grad, eager_grad)


@pytest.mark.parametrize("device", DEVICES)
def test_hand_derived_prototype(device: str) -> None:
    # Two channels, 1 x 2 pixels, mask weights 1 and 3: (1 * 10 + 3 * 20) / (4 + 1) = 14, (1 * 1 + 3 * 2) / 5 = 1.4.
    features = torch.tensor([[[[10.0, 20.0]], [[1.0, 2.0]]]], device=device)
    masks = torch.tensor([[[[1.0, 3.0]]]], device=device)
    got = ops.masked_average_pooling(features, masks, eps=1.0)
    torch.testing.assert_close(got, torch.tensor([[[14.0, 1.4]]], device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8], ids=str)
def test_integer_masks_weigh_as_numbers(mask_dtype: torch.dtype, device: str) -> None:
    features = torch.randn(1, 3, 4, 4, device=device)
    masks = (torch.rand(1, 2, 8, 8, device=device) > 0.5).to(mask_dtype)
    got = ops.masked_average_pooling(features, masks, eps=1e-5, resize="nearest")
    torch.testing.assert_close(
        got, reference.masked_average_pooling(features, masks.float(), eps=1e-5, resize="nearest")
    )


@pytest.mark.parametrize("device", DEVICES)
def test_empty_mask_gives_zero_and_finite_gradients(device: str) -> None:
    features = torch.randn(1, 3, 4, 4, device=device, requires_grad=True)
    masks = torch.zeros(1, 1, 4, 4, device=device, requires_grad=True)
    got = ops.masked_average_pooling(features, masks, eps=1e-5)
    got.sum().backward()
    assert torch.equal(got, torch.zeros_like(got))
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert masks.grad is not None
    assert torch.isfinite(masks.grad).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)], ids=["no_images", "no_channels", "no_masks"])
def test_empty_dimensions_give_empty_results(shape: tuple[int, int, int], device: str) -> None:
    batch, channels, count = shape
    features = torch.randn(batch, channels, 4, 5, device=device, requires_grad=True)
    masks = torch.rand(batch, count, 8, 10, device=device, requires_grad=True)
    got = ops.masked_average_pooling(features, masks, eps=1e-5, resize="upsample_features")
    assert got.shape == (batch, count, channels)
    got.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_inputs_give_the_same_result(device: str) -> None:
    features = torch.randn(2, 7, 6, 5, device=device).permute(0, 2, 3, 1)
    masks = torch.rand(2, 10, 14, 4, device=device).permute(0, 3, 1, 2)[:, ::2]
    got = ops.masked_average_pooling(features, masks, eps=1e-5, resize="bilinear")
    want = ops.masked_average_pooling(features.contiguous(), masks.contiguous(), eps=1e-5, resize="bilinear")
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_stay_visible(value: float, device: str) -> None:
    features = torch.randn(1, 2, 4, 4, device=device)
    features[0, 1, 2, 2] = value
    got = ops.masked_average_pooling(features, torch.ones(1, 1, 4, 4, device=device), eps=1e-5)
    assert torch.isfinite(got[0, 0, 0])
    assert not torch.isfinite(got[0, 0, 1])


@pytest.mark.parametrize("device", DEVICES)
def test_levels_are_pooled_in_one_call(device: str) -> None:
    levels = [torch.randn(1, 6, s, s, device=device) for s in (4, 8)]
    masks = torch.rand(1, 3, 16, 16, device=device)
    got = ops.masked_average_pooling(levels, masks, eps=5e-4, resize="bilinear")
    for value, level in zip(got, levels, strict=True):
        torch.testing.assert_close(value, reference.masked_average_pooling(level, masks, eps=5e-4, resize="bilinear"))


@pytest.mark.parametrize("device", DEVICES)
def test_same_result_twice(device: str) -> None:
    features, masks = torch.randn(2, 64, 33, 35, device=device), torch.rand(2, 9, 120, 130, device=device)
    runs = [ops.masked_average_pooling(features, masks, eps=1e-5, resize="upsample_features") for _ in range(2)]
    assert torch.equal(runs[0], runs[1])


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    features, masks = torch.randn(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.masked_average_pooling(features, masks, eps=1e-5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, reference.masked_average_pooling(features, masks, eps=1e-5))


def test_backend_reference_is_chosen_on_purpose() -> None:
    features, masks = torch.randn(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    got = ops.masked_average_pooling(features, masks, eps=1e-5, backend="reference")
    assert torch.equal(got, reference.masked_average_pooling(features, masks, eps=1e-5))
    with pytest.raises(ValueError, match="backend must be one of native, reference, got 'cuda'"):
        ops.masked_average_pooling(features, masks, eps=1e-5, backend="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3, 4, 4)}, r"features must have shape \[B, C, h, w\], got \[3, 4, 4\]"),
        ({"masks": torch.zeros(1, 4, 4)}, r"masks must have shape \[B, N, H, W\], got \[1, 4, 4\]"),
        ({"masks": torch.zeros(2, 1, 4, 4)}, r"masks must have the batch size of features, 1, got \[2, 1, 4, 4\]"),
        ({"masks": torch.zeros(1, 1, 8, 8)}, r"masks must have the size of features, \[4, 4\].*got \[8, 8\]"),
        ({"masks": torch.zeros(1, 1, 0, 4)}, r"masks must have at least one pixel, got \[1, 1, 0, 4\]"),
        ({"resize": "cubic"}, "resize must be one of none, nearest.*got 'cubic'"),
        ({"eps": -1.0}, "eps must be 0 or more, got -1.0"),
        ({"eps": math.nan}, "eps must be 0 or more, got nan"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"features": torch.zeros(1, 3, 4, 4), "masks": torch.zeros(1, 1, 4, 4), "eps": 1e-5}
    with pytest.raises(ValueError, match=message):
        ops.masked_average_pooling(**{**arguments, **change})  # type: ignore[call-overload]


def test_integer_features_are_refused() -> None:
    with pytest.raises(TypeError, match=r"features must be float32, float64, float16 or bfloat16, got torch\.int64"):
        ops.masked_average_pooling(torch.zeros(1, 3, 4, 4, dtype=torch.int64), torch.zeros(1, 1, 4, 4), eps=1e-5)


def test_raw_operator_names_the_bad_argument_too() -> None:
    with pytest.raises(RuntimeError, match=r"masked_average_pooling: masks must have the size of features"):
        torch.ops.fssops.masked_average_pooling(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 8, 8), 1e-5, 0)
    with pytest.raises(RuntimeError, match=r"features must be less than 32768 pixels.*got \[1, 1, 1, 40000\]"):
        torch.ops.fssops.masked_average_pooling(torch.zeros(1, 1, 1, 40000), torch.zeros(1, 1, 1, 4), 1e-5, 1)
