"""The CUDA kernels of cosine correlation, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, pointer, relative_error
from torch import Tensor

from fssops import reference
from fssops.reference.cosine_correlation import EPS_RULES, REDUCTIONS
from fssops.testing.cases import COSINE_CORRELATION, CorrelationCase

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
EPS = 0.3


def _inputs(case: CorrelationCase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query = torch.randn(case.batch, case.channels, *case.size).to(dtype)
    support = torch.randn(case.batch * case.shots, case.channels, *case.support_size).to(dtype)
    if case.channels_last:
        query, support = (t.to(memory_format=torch.channels_last) for t in (query, support))
    support = support.unflatten(0, (case.batch, case.shots))
    masks = torch.rand(case.batch, case.masks, case.shots, *case.support_size, dtype=torch.float64)
    kept = masks <= case.kept
    values = torch.rand_like(masks) + 0.5 if case.soft else torch.ones_like(masks)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    shots = 1 if case.shots_rule == "joint" else case.shots
    grad = torch.randn(case.batch, case.masks, shots, *case.size).to(accumulator)
    return query, support, torch.where(kept, values, 0).to(accumulator), grad


def _run(
    case: CorrelationCase, layers: list[tuple[Tensor, Tensor, Tensor, Tensor]], *, seed: int, late: bool = False
) -> list[dict[str, Tensor]]:
    """Values and gradients. ``late``: asynchronous copies are made at the last moment, and not at once."""
    library = emulated("cosine_correlation")
    library.set_order_seed(seed)
    library.set_late_copies(late)
    joint = case.shots_rule == "joint"
    reduction = REDUCTIONS.index(case.reduction)
    k = (0, 1, case.k)[reduction]
    rule = (ctypes.c_int64 * 9)(
        case.batch, case.masks, case.shots, reduction, EPS_RULES.index(case.eps_rule), k, case.divisor == "all",
        case.relu, joint,
    )  # fmt: skip
    sizes: list[int] = []
    for query, support, _, _ in layers:
        position, support_position = (t.stride(-1) if t.shape[-1] > 1 else t.stride(-2) for t in (query, support))
        sizes += [query.shape[1], query[0, 0].numel(), support[0, 0, 0].numel()]
        sizes += [query.stride(0), query.stride(1), position, *support.stride()[:3], support_position]
    grads = [g for *_, g in layers]
    values = guarded_empty((sum(g.numel() for g in grads),), grads[0].dtype)
    chosen = torch.full((k * values.numel(),), -7, dtype=torch.int32)
    grad = torch.cat([g.flatten() for g in grads])
    outs = [{"grad_query": guarded_empty(q.shape, q.dtype), "grad_support": guarded_empty(s.shape, s.dtype)}
            for q, s, _, _ in layers]  # fmt: skip

    def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])

    library.run(
        rule, ctypes.c_double(EPS), DTYPES[layers[0][0].dtype], len(layers), (ctypes.c_int64 * len(sizes))(*sizes),
        *[pointers([layer[i] for layer in layers]) for i in range(3)],
        pointer(values), pointer(chosen), pointer(grad),
        pointers([o["grad_query"] for o in outs]), pointers([o["grad_support"] for o in outs]),
    )  # fmt: skip
    for out, part, g in zip(outs, values.split([g.numel() for g in grads]), grads, strict=True):
        out["values"] = part.view(g.shape)
    return outs


def _expected(case: CorrelationCase, layer: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    query, support, masks, grad = (t.double() for t in layer)
    query, support = query.requires_grad_(), support.requires_grad_()
    values = reference.cosine_correlation(
        query, support, masks, reduction=case.reduction, k=case.k, divisor=case.divisor, relu=case.relu, eps=EPS,
        eps_rule=case.eps_rule, shots=case.shots_rule,
    )  # fmt: skip
    values.backward(grad)
    assert query.grad is not None
    assert support.grad is not None
    return {"values": values.detach(), "grad_query": query.grad, "grad_support": support.grad}


def _compare(case: CorrelationCase, dtype: torch.dtype, seed: int, late: bool = False) -> None:
    layer = _inputs(case, dtype)
    (got,) = _run(case, [layer], seed=seed, late=late)
    for name, value in _expected(case, layer).items():
        assert relative_error(got[name], value) < TOLERANCE[dtype], name


@pytest.mark.parametrize("case", COSINE_CORRELATION, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_equal_the_definition(case: CorrelationCase, dtype: torch.dtype) -> None:
    _compare(case, dtype, seed=3)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("case", COSINE_CORRELATION, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_matrix_units_equal_the_definition(case: CorrelationCase, dtype: torch.dtype, late: bool) -> None:
    _compare(case, dtype, seed=4, late=late)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_tiles_of_rows_columns_and_channels(dtype: torch.dtype, late: bool) -> None:
    # More than one row tile, more column tiles than splits, and more channel steps than pipeline stages.
    case = replace(COSINE_CORRELATION[11], channels=136, size=(12, 13), support_size=(28, 29))
    _compare(case, dtype, seed=5, late=late)


@pytest.mark.parametrize("size", [(8, 16), (4, 8), (5, 5)], ids=str)
def test_query_is_read_in_place_where_its_rows_are_aligned(size: tuple[int, int]) -> None:
    _compare(replace(COSINE_CORRELATION[0], size=size), torch.bfloat16, seed=6)


def test_layers_of_different_sizes_go_in_one_launch() -> None:
    case = COSINE_CORRELATION[0]
    cases = [
        case,
        replace(case, channels=16, size=(4, 4), support_size=(3, 3)),
        replace(case, channels=65, size=(12, 11)),
    ]
    layers = [_inputs(c, torch.float32) for c in cases]
    for got, layer in zip(_run(case, layers, seed=7), layers, strict=True):
        for name, value in _expected(case, layer).items():
            assert relative_error(got[name], value) < TOLERANCE[torch.float32], name


@pytest.mark.parametrize("name", ["msanet", "prior_mask", "topk", "joint_shots"])
def test_result_does_not_depend_on_the_order_of_threads(name: str) -> None:
    case = next(c for c in COSINE_CORRELATION if c.name == name)
    layer = _inputs(case, torch.bfloat16)
    runs = [_run(case, [layer], seed=seed)[0] for seed in (0, 1, 2)]
    for run in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(run[key], value), key


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("divisor", ["all", "kept"])
def test_no_kept_position_gives_zero(reduction: str, divisor: str) -> None:
    case = replace(COSINE_CORRELATION[0], kept=-1.0, reduction=reduction, k=2, divisor=divisor)
    (got,) = _run(case, [_inputs(case, torch.float32)], seed=8)
    for name, value in got.items():
        assert torch.equal(value, torch.zeros_like(value)), name


@pytest.mark.parametrize("joint", [False, True])
def test_addresses_beyond_two_to_the_31_are_64_bit(joint: bool) -> None:
    images, masks, shots, channels, positions = 3, 2, 4, 2048, 1_000_003  # 24 billion elements
    library = emulated("cosine_correlation")
    library.column_address.restype = ctypes.c_int64
    rule = (ctypes.c_int64 * 9)(images, masks, shots, 0, 0, 0, 0, 1, joint)
    strides = (shots * channels * positions, channels * positions, positions, 1)
    sizes = (ctypes.c_int64 * 10)(channels, 1, positions, channels, 1, 1, *strides)
    last = images * masks * (1 if joint else shots) - 1
    column = (shots if joint else 1) * positions - 1
    got = library.column_address(
        rule, sizes, ctypes.c_int64(last), ctypes.c_int64(column), ctypes.c_int64(channels - 1)
    )
    assert got == images * shots * channels * positions - 1
