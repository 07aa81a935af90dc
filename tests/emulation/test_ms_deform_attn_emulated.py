"""The CUDA kernels of multi-scale deformable attention, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, relative_error
from torch import Tensor

from fssops import reference
from fssops.testing.cases import DEFORMABLE, DeformableCase
from fssops.testing.deformable_inputs import deformable_inputs, gradients

CASES = pytest.mark.parametrize("case", DEFORMABLE, ids=lambda c: c.name)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


class _Array(ctypes.Structure):
    """CudaArray of ms_deform_attn.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("batch_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    )

    @classmethod
    def of(cls, tensor: Tensor | None) -> _Array:
        if tensor is None:
            return cls(None, 0, 0, 0)
        return cls(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride(0), tensor.stride(1))


def _sizes(case: DeformableCase) -> ctypes.Array[ctypes.c_int64]:
    levels, starts, first = [], case.starts, 0
    for index, (height, width) in enumerate(case.shapes):
        levels += [height, width, first if starts is None else starts[index]]
        first += height * width
    tokens = case.tokens or first
    tiled = case.queries == tokens and starts is None
    numbers = [
        case.batch,
        tokens,
        case.heads,
        case.channels,
        case.queries,
        len(case.shapes),
        case.points,
        tiled,
        *levels,
    ]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _run(
    case: DeformableCase, tensors: list[Tensor], grad: Tensor, *, seed: int = 1, deterministic: bool = False
) -> list[Tensor]:
    """Output and the gradient of each tensor, as the operator's CUDA registration would call the kernels."""
    library = emulated("ms_deform_attn")
    library.set_order_seed(seed)
    value = tensors[0]
    accumulator = torch.float64 if value.dtype == torch.float64 else torch.float32
    sizes = _sizes(case)
    placement = {0: 0, 2: 1, 4: 2}[case.reference]
    refs, points, weights = (None, *tensors[1:]) if placement == 0 else tensors[1:]
    output = guarded_empty((case.batch, case.queries, case.heads * case.channels), value.dtype)
    results = [torch.full_like(t, float("nan"), memory_format=torch.contiguous_format) for t in tensors]
    grad_value = results[0]
    grad_refs, grad_points, grad_weights = (None, *results[1:]) if placement == 0 else results[1:]
    arrays = [_Array.of(t) for t in (value, points, refs, weights, output)]
    arrays += [_Array.of(t) for t in (grad, grad_value, grad_points, grad_refs, grad_weights)]
    packed = (_Array * len(arrays))(*arrays)
    library.forward(sizes, placement, packed)

    in_place = value.dtype == accumulator and not deterministic
    sums = grad_value if in_place else torch.empty(value.shape, dtype=torch.int64 if deterministic else accumulator)
    cells = torch.empty(points.shape, dtype=accumulator) if grad_refs is not None else None
    weight_sums = torch.empty(weights.shape, dtype=accumulator) if placement else None
    fixed = torch.empty(3, dtype=torch.int64)
    poisoned = torch.empty(value.shape[:3], dtype=torch.uint8)
    pointers = [None if t is None else t.data_ptr() for t in (sums, cells, weight_sums, fixed, poisoned)]
    library.backward(sizes, placement, packed, (ctypes.c_void_p * 5)(*pointers), int(deterministic))
    return [output, *results]


def _entry(case: DeformableCase):  # type: ignore[no-untyped-def]
    return reference.ms_deform_attn_fused if case.reference else reference.ms_deform_attn


def _inputs(case: DeformableCase, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    # As under autocast: half values, offsets and logits; locations and reference points in float32.
    tensors = deformable_inputs(case)
    half = dtype in (torch.float16, torch.bfloat16)
    tensors = [t.to(torch.float32 if half and i == 1 else dtype) for i, t in enumerate(tensors)]
    return tensors, torch.randn(case.batch, case.queries, case.heads * case.channels).to(dtype)


def _assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for index, (value, expected) in enumerate(zip(got, want, strict=True)):
        assert value.shape == expected.shape
        assert relative_error(value, expected) < tolerance, f"result {index}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@CASES
def test_kernels_equal_the_definition(case: DeformableCase, dtype: torch.dtype) -> None:
    tensors, grad = _inputs(case, dtype)
    want = gradients(_entry(case), case, [t.double() for t in tensors], grad.double())
    _assert_close(_run(case, tensors, grad), want, TOLERANCE[dtype])


@pytest.mark.parametrize("case", [DEFORMABLE[i] for i in (0, 2, 3, 11, 12, 13)], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_deterministic_form_equals_the_definition(case: DeformableCase, dtype: torch.dtype) -> None:
    tensors, grad = _inputs(case, dtype)
    want = gradients(_entry(case), case, [t.double() for t in tensors], grad.double())
    _assert_close(_run(case, tensors, grad, deterministic=True), want, TOLERANCE[dtype])


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_blocks_bring_together_what_many_queries_give_to_one_token(deterministic: bool) -> None:
    # 132 heads are enough for the largest blocks, and 65 queries for a last block that is nearly empty.
    case = DeformableCase("many_queries", 1, 65, 132, 8, ((3, 2), (1, 2)), 3, 2)
    tensors, grad = _inputs(case, torch.float32)
    want = gradients(_entry(case), case, [t.double() for t in tensors], grad.double())
    _assert_close(_run(case, tensors, grad, deterministic=deterministic), want, TOLERANCE[torch.float32])


def test_deterministic_form_does_not_depend_on_the_order_of_threads() -> None:
    case = DeformableCase("crowded", 1, 40, 2, 32, ((2, 2),), 4)
    tensors, grad = _inputs(case, torch.float32)
    runs = [_run(case, tensors, grad, seed=seed, deterministic=True) for seed in (0, 1, 2)]
    atomic = [_run(case, tensors, grad, seed=seed)[1] for seed in (0, 1, 2, 3)]
    for run in runs[1:]:
        for value, first in zip(run, runs[0], strict=True):
            assert torch.equal(value, first)
    # The case is hard enough to show a dependence where there is one.
    assert any(not torch.equal(value, atomic[0]) for value in atomic[1:])


def test_results_other_than_the_gradient_of_value_never_depend_on_the_order_of_threads() -> None:
    case = DEFORMABLE[2]
    tensors, grad = _inputs(case, torch.float32)
    first, *others = [_run(case, tensors, grad, seed=seed) for seed in (0, 1, 2)]
    for run in others:
        for index in (0, 2, 3, 4):
            assert torch.equal(run[index], first[index]), index


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_values_outside_the_samples_do_not_leak_in(deterministic: bool) -> None:
    # Every token is NaN or infinite but those around the one point of each query.
    case = DeformableCase("guarded", 1, 2, 1, 8, ((5, 5),), 1)
    value = torch.full((1, 25, 1, 8), float("nan"))
    value[0, [6, 7, 11, 12]] = 1.0
    locations = torch.tensor([[[[[[2.2 / 5, 1.9 / 5]]]], [[[[-4.0, 0.5]]]]]])
    weights = torch.ones(1, 2, 1, 1, 1)
    got = _run(case, [value, locations, weights], torch.ones(1, 2, 8), deterministic=deterministic)
    assert torch.equal(got[0][0, 1], torch.zeros(8))
    torch.testing.assert_close(got[0][0, 0], torch.ones(8))
    assert torch.isfinite(got[1]).all()
    assert all(torch.isfinite(g[:, 1]).all() for g in got[2:])


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_infinite_locations_lie_outside_and_nan_gives_nan(deterministic: bool) -> None:
    case = DeformableCase("unruly", 1, 5, 1, 8, ((3, 4),), 1)
    value = torch.randn(1, 12, 1, 8)
    bad = [(float("inf"), 0.5), (0.5, -float("inf")), (1e30, -1e30), (float("nan"), 0.5), (0.5, 0.5)]
    locations = torch.tensor(bad).view(1, 5, 1, 1, 1, 2)
    weights = torch.ones(1, 5, 1, 1, 1)
    output, grad_value, grad_locations, grad_weights = _run(
        case, [value, locations, weights], torch.ones(1, 5, 8), deterministic=deterministic
    )
    assert torch.equal(output[0, :3], torch.zeros(3, 8))
    assert torch.equal(grad_locations[0, :3], torch.zeros(3, 1, 1, 1, 2))
    assert torch.equal(grad_weights[0, :3], torch.zeros(3, 1, 1, 1))
    assert output[0, 3].isnan().all()
    assert grad_weights[0, 3].isnan().all()
    assert torch.isfinite(output[0, 4]).all()
    assert torch.isfinite(grad_value).all()


def test_deterministic_form_keeps_nan_and_infinite_gradients_visible() -> None:
    case = DeformableCase("nan_grad", 1, 2, 1, 8, ((1, 1), (1, 1)), 1)
    locations = torch.tensor([[0.5, 0.5], [9.0, 9.0], [9.0, 9.0], [0.5, 0.5]]).view(1, 2, 1, 2, 1, 2)
    grad = torch.ones(1, 2, 8)
    grad[0, 0, 3] = float("inf")
    got = _run(case, [torch.randn(1, 2, 1, 8), locations, torch.ones(1, 2, 1, 2, 1)], grad, deterministic=True)
    assert got[1][0, 0].isnan().all()
    torch.testing.assert_close(got[1][0, 1], torch.ones(1, 8))


def test_walk_in_tiles_visits_every_query_once_and_keeps_neighbours_together() -> None:
    shapes = ((20, 17), (3, 30), (8, 8), (1, 1), (9, 2))
    queries = sum(h * w for h, w in shapes)
    case = DeformableCase("walk", 1, queries, 1, 4, shapes, 1)
    library = emulated("ms_deform_attn")
    walk = [library.query_in_walk(_sizes(case), position) for position in range(queries)]
    assert sorted(walk) == list(range(queries))
    # The first tile: 8 rows of 8 in a level 17 wide.
    assert walk[:64] == [row * 17 + column for row in range(8) for column in range(8)]
    # The last one of the first strip is a single column.
    assert walk[128:136] == [row * 17 + 16 for row in range(8)]


def test_strided_rows_are_read_in_place() -> None:
    case = DEFORMABLE[1]
    tensors, grad = _inputs(case, torch.float32)
    want = _run(case, tensors, grad)
    padded = [torch.cat([t.flatten(2), torch.full((*t.shape[:2], 4), float("nan"))], 2) for t in tensors]
    views = [p[..., : t.flatten(2).shape[2]].unflatten(2, t.shape[2:]) for p, t in zip(padded, tensors, strict=True)]
    assert not views[0].is_contiguous()
    for value, expected in zip(_run(case, views, grad), want, strict=True):
        torch.testing.assert_close(value, expected)


def test_addresses_are_computed_in_64_bits() -> None:
    library = emulated("ms_deform_attn")
    library.offset_in_value.restype = ctypes.c_int64
    arguments = [ctypes.c_int64(n) for n in (3, 2**30, 7, 2**36, 2**9, 64)]
    assert library.offset_in_value(*arguments) == 3 * 2**36 + 2**39 + 7 * 64
