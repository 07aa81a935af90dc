"""The CUDA kernels of masked average pooling, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, pointer, relative_error
from torch import Tensor

from fssops import reference
from fssops.reference.masked_average_pooling import RESIZE_RULES
from fssops.testing.cases import MASKED_AVERAGE_POOLING, PoolingCase

MASK_TYPES = {torch.uint8: 0, torch.bool: 0, torch.float32: 1, torch.float64: 2, torch.float16: 3, torch.bfloat16: 4}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _run(features: Tensor, masks: Tensor, grad: Tensor, *, eps: float, resize: str, seed: int) -> dict[str, Tensor]:
    library = emulated("masked_average_pooling")
    library.set_order_seed(seed)
    batch, channels, height, width = features.shape
    count, mask_height, mask_width = masks.shape[1:]
    channels_last = not features.is_contiguous()
    accumulator = torch.float64 if features.dtype == torch.float64 else torch.float32
    sizes = (ctypes.c_int64 * 8)(batch, channels, count, height, width, mask_height, mask_width, int(channels_last))
    rule, dtype, mask_type = RESIZE_RULES.index(resize), DTYPES[features.dtype], MASK_TYPES[masks.dtype]
    weights = guarded_empty((batch, count, height, width), accumulator)
    library.mask_sum_parts.restype = ctypes.c_int64
    partial = guarded_empty((batch, count, library.mask_sum_parts()), accumulator)
    divisor = guarded_empty((batch, count), accumulator)
    out = {"prototypes": guarded_empty((batch, count, channels), features.dtype)}
    shared: list[Any] = [pointer(t) for t in (features, masks, weights, partial, divisor, out["prototypes"])]
    library.forward(sizes, rule, ctypes.c_double(eps), dtype, mask_type, *shared)
    scratch = [
        guarded_empty(s, accumulator) for s in ((batch, count, channels), (batch, count), (batch, count, height, width))
    ]
    out["grad_features"] = torch.full_like(features, float("nan"))
    float_masks = masks.is_floating_point()
    out["grad_masks"] = torch.full_like(masks, float("nan")) if float_masks else torch.empty(0)
    targets = [pointer(out["grad_features"]), pointer(out["grad_masks"] if float_masks else None)]
    library.backward(sizes, rule, dtype, mask_type, *shared, pointer(grad), *[pointer(t) for t in scratch], *targets)
    return out


def _expected(features: Tensor, masks: Tensor, grad: Tensor, *, eps: float, resize: str) -> dict[str, Tensor]:
    f = features.double().requires_grad_()
    m = masks.double().requires_grad_()
    prototypes = reference.masked_average_pooling(f, m, eps=eps, resize=resize)
    prototypes.backward(grad.double())
    assert f.grad is not None
    assert m.grad is not None
    return {"prototypes": prototypes.detach(), "grad_features": f.grad, "grad_masks": m.grad}


def _eps(case: PoolingCase) -> float:
    # A quarter of the mask: with eps near 0 and one pixel the mask's gradient is a difference of equal numbers.
    return 0.25 * max(math.prod(case.mask_size), math.prod(case.size))


def _inputs(case: PoolingCase, dtype: torch.dtype, mask_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(case.batch, case.channels, *case.size).to(dtype)
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    masks = torch.rand(case.batch, case.masks, *case.mask_size)
    masks = (masks > 0.5).to(mask_dtype) if mask_dtype in (torch.uint8, torch.bool) else masks.to(mask_dtype)
    return features, masks, torch.randn(case.batch, case.masks, case.channels).to(dtype)


@pytest.mark.parametrize("case", MASKED_AVERAGE_POOLING, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_equal_the_definition(case: PoolingCase, dtype: torch.dtype) -> None:
    features, masks, grad = _inputs(case, dtype, dtype)
    got = _run(features, masks, grad, eps=_eps(case), resize=case.resize, seed=3)
    expected = _expected(features, masks, grad, eps=_eps(case), resize=case.resize)
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MASKED_AVERAGE_POOLING[6:8] + MASKED_AVERAGE_POOLING[11:], ids=lambda c: c.name)
def test_half_types_accumulate_in_float32(case: PoolingCase, dtype: torch.dtype) -> None:
    features, masks, grad = _inputs(case, dtype, dtype)
    got = _run(features, masks, grad, eps=_eps(case), resize=case.resize, seed=4)
    expected = _expected(features, masks, grad, eps=_eps(case), resize=case.resize)
    for name, value in expected.items():
        assert relative_error(got[name], value) < TOLERANCE[dtype], name


@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.bool, torch.float64, torch.bfloat16], ids=str)
def test_masks_may_have_another_dtype_than_features(mask_dtype: torch.dtype) -> None:
    case = MASKED_AVERAGE_POOLING[6]
    features, masks, grad = _inputs(case, torch.float32, mask_dtype)
    got = _run(features, masks, grad, eps=_eps(case), resize=case.resize, seed=5)
    expected = _expected(features, masks, grad, eps=_eps(case), resize=case.resize)
    assert relative_error(got["prototypes"], expected["prototypes"]) < 2e-6
    assert relative_error(got["grad_features"], expected["grad_features"]) < 2e-6


@pytest.mark.parametrize("case", [MASKED_AVERAGE_POOLING[i] for i in (0, 6, 12)], ids=lambda c: c.name)
def test_result_does_not_depend_on_the_order_of_threads(case: PoolingCase) -> None:
    features, masks, grad = _inputs(case, torch.float32, torch.float32)
    runs = [_run(features, masks, grad, eps=_eps(case), resize=case.resize, seed=seed) for seed in (0, 1, 2)]
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(run[name], value), name


def test_empty_mask_gives_zero_prototype() -> None:
    features, masks, grad = _inputs(MASKED_AVERAGE_POOLING[0], torch.float32, torch.float32)
    masks.zero_()
    got = _run(features, masks, grad, eps=0.25, resize="none", seed=6)
    assert torch.equal(got["prototypes"], torch.zeros_like(got["prototypes"]))
