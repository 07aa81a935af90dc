"""The CUDA kernels of the point operators, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, pointer, relative_error
from torch import Tensor

from fssops import ops, reference
from fssops.reference.mask_sources import MaskSource, PackedMasks, RunLengthMasks
from fssops.testing.cases import POINT_MASK_LOSS, PointLossCase
from fssops.testing.point_masks import mask_sources, point_inputs, run_lengths

MASK_TYPES = {torch.uint8: 0, torch.bool: 0, torch.float32: 1, torch.float64: 2, torch.float16: 3, torch.bfloat16: 4}
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = pytest.mark.parametrize("case", POINT_MASK_LOSS, ids=lambda c: c.name)


def _struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_LONG, _POINTER, _INT, _BOOL, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_bool, ctypes.c_double
Maps = _struct(
    "Maps", format=_INT, type=_INT, height=_LONG, width=_LONG, extent_height=_LONG, extent_width=_LONG, data=_POINTER,
    columns=_POINTER, runs=_LONG, index=_POINTER, count=_LONG,
)  # fmt: skip
Points = _struct("Points", rows=_LONG, count=_LONG, shared=_BOOL, data=_POINTER)
Sample = _struct("Sample", maps=Maps, points=Points, channels=_LONG, dtype=_INT, sampled=_POINTER)
SampleBackward = _struct(
    "SampleBackward", maps=Maps, points=Points, channels=_LONG, dtype=_INT, deterministic=_BOOL, grad=_POINTER,
    accumulator=_POINTER, grad_maps=_POINTER,
)  # fmt: skip
Uncertain = _struct(
    "Uncertain", maps=Maps, points=Points, keep=_LONG, stride=_LONG, dtype=_INT, keys=_POINTER, chosen=_POINTER
)
Loss = _struct(
    "Loss", logits=Maps, targets=Maps, points=Points, dtype=_INT, reduce=_BOOL, divisor=_DOUBLE, num_masks=_POINTER,
    probabilities=_POINTER, targets_at=_POINTER, partial=_POINTER, stats=_POINTER, loss_mask=_POINTER,
    loss_dice=_POINTER,
)  # fmt: skip
LossBackward = _struct(
    "LossBackward", logits=Maps, points=Points, dtype=_INT, reduce=_BOOL, deterministic=_BOOL, divisor=_DOUBLE,
    num_masks=_POINTER, grad_mask=_POINTER, grad_dice=_POINTER, probabilities=_POINTER, targets_at=_POINTER,
    stats=_POINTER, accumulator=_POINTER, grad_logits=_POINTER,
)  # fmt: skip
CostSizes = _struct(
    "CostSizes", queries=_LONG, targets=_LONG, points=_LONG, classes=_LONG, mask_weight=_DOUBLE, class_weight=_DOUBLE,
    dice_weight=_DOUBLE,
)  # fmt: skip
Cost = _struct(
    "Cost", sizes=CostSizes, dtype=_INT, splits=_LONG, logits=_POINTER, targets=_POINTER, class_logits=_POINTER,
    labels=_POINTER, partial=_POINTER, cost=_POINTER,
)  # fmt: skip


def _library(seed: int) -> ctypes.CDLL:
    library = emulated("point_mask_loss")
    library.set_order_seed(seed)
    for name in ("cost_parts", "loss_chunks", "offset_of_pixel", "offset_of_points"):
        getattr(library, name).restype = _LONG
    library.cost_parts.argtypes = library.loss_chunks.argtypes = [_LONG]
    library.offset_of_pixel.argtypes = [_LONG, _LONG, _LONG, _INT, _INT]
    library.offset_of_points.argtypes = [_LONG, _LONG, _INT]
    library.cost_elements.restype = _LONG
    return library


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _maps(source: MaskSource, index: Tensor | None = None, padded: tuple[int, int] | None = None) -> Any:
    if isinstance(source, PackedMasks):
        form, kind, data, columns, (count, height, width) = 1, 0, source.bits, None, source.shape
    elif isinstance(source, RunLengthMasks):
        form, kind, data, columns, (count, height, width) = 2, 0, source.ends, source.columns, source.shape
    elif source.dim() == 2:
        form, kind, data, columns, height, width, count = 3, MASK_TYPES[source.dtype], source, None, 1, 1, len(source)
    else:
        form, kind, data, columns = 0, MASK_TYPES[source.dtype], source, None
        (height, width), count = source.shape[-2:], len(source)
    extent = padded or (height, width)
    runs = 0 if columns is None else len(data)
    return Maps(form, kind, height, width, *extent, pointer(data), pointer(columns), runs, pointer(index), count)


def _points(points: Tensor, rows: int) -> Any:
    return Points(rows, points.shape[1], points.shape[0] == 1 and rows != 1, pointer(points))


def _sample(source: MaskSource, points: Tensor, rows: int, seed: int = 1, **options: Any) -> Tensor:
    floats = isinstance(source, Tensor) and source.is_floating_point()
    channels = source.shape[1] if isinstance(source, Tensor) and source.dim() == 4 else 1
    dtype = source.dtype if floats else points.dtype  # type: ignore[union-attr]
    sampled = guarded_empty((rows, channels, points.shape[1]), dtype)
    args = Sample(_maps(source, **options), _points(points, rows), channels, DTYPES[dtype], pointer(sampled))
    _library(seed).sample(ctypes.byref(args))
    return sampled


def _loss(
    logits: Tensor,
    targets: MaskSource,
    points: Tensor,
    num_masks: Tensor,
    *,
    index: Tensor | None = None,
    reduce: bool = True,
    deterministic: bool = False,
    grads: tuple[Tensor, Tensor],
    seed: int = 1,
) -> dict[str, Tensor]:
    library = _library(seed)
    rows, count, dtype = len(logits), points.shape[1], _accumulator(logits.dtype)
    where = _points(points, rows)
    kept = [guarded_empty((rows, count), dtype) for _ in range(2)]
    partial, stats = guarded_empty((rows, library.loss_chunks(count), 4), dtype), guarded_empty((rows, 2), dtype)
    shape = (1,) if reduce else (rows,)
    mask, dice = guarded_empty(shape, dtype), guarded_empty(shape, dtype)
    args = Loss(
        _maps(logits), _maps(targets, index), where, DTYPES[logits.dtype], reduce, 2.0, pointer(num_masks),
        *map(pointer, (*kept, partial, stats, mask, dice)),
    )  # fmt: skip
    library.loss(ctypes.byref(args))
    grad = torch.full_like(logits, float("nan"))
    own = logits.dim() == 2 or deterministic or dtype == logits.dtype
    accumulator = grad if own else torch.empty(logits.shape, dtype=dtype)
    if logits.dim() == 3 and not deterministic:
        accumulator.zero_()
    backward = LossBackward(
        _maps(logits), where, DTYPES[logits.dtype], reduce, deterministic, 2.0, pointer(num_masks),
        *map(pointer, (*grads, *kept, stats, accumulator, grad)),
    )  # fmt: skip
    library.loss_backward(ctypes.byref(backward))
    return {"loss_mask": mask.view(-1), "loss_dice": dice.view(-1), "grad_logits": grad}


def _expected(
    logits: Tensor, targets: MaskSource, points: Tensor, divisor: float, grads: tuple[Tensor, Tensor], **options: Any
) -> dict[str, Tensor]:
    x = logits.double().requires_grad_()
    dense = targets if isinstance(targets, Tensor) else targets.unpack()
    own = None if logits.dim() == 2 else points.double()
    mask, dice = reference.point_mask_loss(x, dense.double(), own, divisor, **options)
    torch.autograd.backward((mask, dice), (grads[0].double().view_as(mask), grads[1].double().view_as(dice)))
    assert x.grad is not None
    return {"loss_mask": mask.detach().view(-1), "loss_dice": dice.detach().view(-1), "grad_logits": x.grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
@CASES
def test_loss_kernels_equal_the_definition(case: PointLossCase, dtype: torch.dtype, deterministic: bool) -> None:
    logits, masks, points, index = point_inputs(case, dtype)
    reduce = case.name != "per_mask"
    size = 1 if reduce else case.masks
    grads = (torch.rand(size, dtype=points.dtype) + 0.5, torch.rand(size, dtype=points.dtype) + 0.5)
    got = _loss(
        logits, masks, points, torch.tensor([3.0], dtype=points.dtype), index=index, reduce=reduce,
        deterministic=deterministic, grads=grads, seed=3,
    )  # fmt: skip
    want = _expected(logits, masks, points, 6.0, grads, target_index=index, reduction="sum" if reduce else "none")
    for name, value in want.items():
        assert relative_error(got[name], value) < TOLERANCE[dtype], name


@CASES
def test_every_form_of_targets_gives_the_same_loss(case: PointLossCase) -> None:
    logits, masks, points, index = point_inputs(case, torch.float32)
    grads = (torch.ones(1), torch.ones(1))
    want = _expected(logits, masks, points, 2.0, grads, target_index=index)
    for name, source in mask_sources(masks).items():
        got = _loss(logits, source, points, torch.ones(1), index=index, grads=grads, seed=5)
        for key, value in want.items():
            assert relative_error(got[key], value) < 3e-6, (name, key)


def test_loss_of_values_at_points() -> None:
    logits, targets = torch.randn(4, 300), torch.rand(4, 300)
    grads = (torch.rand(4), torch.rand(4))
    got = _loss(logits, targets, torch.zeros(4, 300, 2), torch.ones(1), reduce=False, grads=grads)
    want = _expected(logits, targets, torch.zeros(4, 300, 2), 2.0, grads, reduction="none")
    for name, value in want.items():
        assert relative_error(got[name], value) < 3e-6, name


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own_points", "shared_points"])
def test_sampling_and_its_gradient_equal_the_definition(dtype: torch.dtype, deterministic: bool, shared: bool) -> None:
    maps = torch.randn(3, 11, 6, 9, dtype=torch.float64).to(dtype)
    points = torch.rand(1 if shared else 3, 70, 2, dtype=_accumulator(dtype)) * 1.3 - 0.15
    got = _sample(maps, points, 3)
    x = maps.double().requires_grad_()
    want = reference.sample_points(x, points.double())
    assert relative_error(got, want.detach()) < TOLERANCE[dtype]
    grad = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    want.backward(grad.double())
    grad_maps = torch.full_like(maps, float("nan"))
    own = deterministic or dtype == _accumulator(dtype)
    accumulator = grad_maps if own else torch.empty(maps.shape, dtype=torch.float32)
    if not deterministic:
        accumulator.zero_()
    args = SampleBackward(
        _maps(maps), _points(points, 3), 11, DTYPES[dtype], deterministic, pointer(grad), pointer(accumulator),
        pointer(grad_maps),
    )  # fmt: skip
    _library(2).sample_backward(ctypes.byref(args))
    assert x.grad is not None
    assert relative_error(grad_maps, x.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=["aligned", "odd"])
def test_sampling_of_many_channels_equals_the_definition(size: tuple[int, int], dtype: torch.dtype) -> None:
    # Enough planes and points for the kernel that stages planes in shared memory.
    maps = torch.randn(2, 70, *size, dtype=torch.float64).to(dtype)
    points = torch.rand(3, 90, 2, dtype=_accumulator(dtype)) * 1.3 - 0.15
    index = torch.tensor([1, 0, 5])
    got = _sample(maps, points, 3, index=index, seed=6)
    want = reference.sample_points(maps.double(), points.double()[:2], index=index[:2])
    assert relative_error(got[:2], want) < TOLERANCE[dtype]
    assert torch.isnan(got[2].float()).all()


@pytest.mark.parametrize("padded", [None, (20, 41)], ids=["own_size", "padded"])
def test_masks_of_every_form_are_sampled_alike(padded: tuple[int, int] | None) -> None:
    masks = torch.rand(5, 17, 35) > 0.5
    masks[3] = False
    masks[4] = True
    points = torch.rand(4, 200, 2) * 1.3 - 0.15
    index = torch.tensor([4, 3, 0, 2])
    want = reference.sample_points(masks, points.double(), index=index, padded_size=padded)
    for name, source in mask_sources(masks).items():
        got = _sample(source, points, 4, index=index, padded=padded)[:, 0]
        assert relative_error(got, want) < TOLERANCE[got.dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keep", [1, 150, 700], ids=["one", "some", "all"])
def test_the_most_uncertain_points_are_chosen_in_order(dtype: torch.dtype, keep: int) -> None:
    logits = torch.randn(3, 13, 14, dtype=torch.float64).to(dtype)
    logits[2] = logits[2].sign()  # ties
    logits[1, 3, 3] = float("nan")
    candidates = torch.rand(3, 700, 2, dtype=_accumulator(dtype))
    chosen = guarded_empty((3, keep + 5, 2), candidates.dtype)
    keys = guarded_empty((3, 700), candidates.dtype)
    args = Uncertain(
        _maps(logits), _points(candidates, 3), keep, keep + 5, DTYPES[dtype], pointer(keys), pointer(chosen)
    )
    _library(4).uncertain(ctypes.byref(args))
    uniform = torch.zeros(3, 0, 2, dtype=candidates.dtype)
    maps = logits.to(candidates.dtype)
    want = reference.uncertain_points(maps, keep, given_draws=(candidates, uniform))
    # At equal uncertainty a rounding error may exchange two points; the sampled logits tell.
    got_logits = ops.sample_points(maps, chosen[:, :keep].clone()).abs().nan_to_num(-1.0).sort().values
    want_logits = ops.sample_points(maps, want).abs().nan_to_num(-1.0).sort().values
    torch.testing.assert_close(got_logits, want_logits, rtol=0, atol=1e-6)
    assert (chosen[:2, :keep] == want[:2]).float().mean() > 0.99
    assert torch.isnan(chosen[:, keep:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("queries", "targets", "points"), [(5, 3, 40), (33, 35, 300), (1, 1, 1), (7, 2, 129)])
def test_cost_kernels_equal_the_definition(queries: int, targets: int, points: int, dtype: torch.dtype) -> None:
    library = _library(7)
    logits, wanted = 3 * torch.randn(queries, points, dtype=dtype), torch.rand(targets, points, dtype=dtype)
    class_logits, labels = torch.randn(queries, 9, dtype=dtype), torch.randint(0, 9, (targets,))
    for classes in (9, 0):
        sizes = CostSizes(queries, targets, points, classes, 5.0, 2.0, 3.0)
        partial = guarded_empty((library.cost_elements(ctypes.byref(sizes)),), dtype)
        cost = guarded_empty((queries, targets), dtype)
        args = Cost(
            sizes, DTYPES[dtype], library.cost_parts(points), pointer(logits), pointer(wanted),
            pointer(class_logits if classes else None), pointer(labels if classes else None), pointer(partial),
            pointer(cost),
        )  # fmt: skip
        library.cost(ctypes.byref(args))
        extra = {"class_logits": class_logits.double(), "labels": labels} if classes else {}
        want = reference.pairwise_mask_cost(logits.double(), wanted.double(), dice_weight=3.0, **extra)
        assert relative_error(cost, want) < TOLERANCE[dtype]


def test_a_label_that_names_no_class_gives_nan() -> None:
    logits, wanted, class_logits = torch.randn(2, 50), torch.rand(2, 50), torch.randn(2, 4)
    sizes = CostSizes(2, 2, 50, 4, 1.0, 1.0, 1.0)
    library = _library(1)
    partial, cost = guarded_empty((library.cost_elements(ctypes.byref(sizes)),), torch.float32), torch.zeros(2, 2)
    labels = torch.tensor([1, 4])
    tensors = (logits, wanted, class_logits, labels, partial, cost)
    library.cost(ctypes.byref(Cost(sizes, 0, library.cost_parts(50), *map(pointer, tensors))))
    assert torch.isfinite(cost[:, 0]).all()
    assert torch.isnan(cost[:, 1]).all()


def test_an_index_that_names_no_mask_gives_nan() -> None:
    masks, points = torch.ones(3, 6, 6, dtype=torch.bool), torch.rand(2, 40, 2) * 0.5 + 0.25
    index = torch.tensor([1, 3])
    for source in mask_sources(masks).values():
        got = _sample(source, points, 2, index=index)[:, 0].float()
        assert torch.equal(got[0], torch.ones(40))
        assert torch.isnan(got[1]).all()
        loss = _loss(
            torch.randn(2, 5, 5), source, points, torch.ones(1), index=index, reduce=False,
            grads=(torch.ones(2), torch.ones(2)),
        )  # fmt: skip
        assert torch.isfinite(loss["loss_mask"][0])
        assert torch.isnan(loss["loss_mask"][1])


def test_result_does_not_depend_on_the_order_of_threads() -> None:
    logits, masks, points, index = point_inputs(POINT_MASK_LOSS[0], torch.float32)
    grads = (torch.ones(1), torch.ones(1))
    runs = [
        _loss(logits, masks, points, torch.ones(1), index=index, deterministic=True, grads=grads, seed=seed)
        for seed in (0, 1, 2)
    ]
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(run[name], value), name


def test_offsets_are_computed_in_64_bits() -> None:
    library = _library(1)
    assert library.offset_of_pixel(70_000, 1000, 1000, 999, 998) == 70_000 * 10**6 + 999 * 1000 + 998
    assert library.offset_of_pixel(3, 32767, 32767, 32766, 32766) == 4 * 32767**2 - 1
    assert library.offset_of_points(2**21, 2**20, 0) == 2**42
    assert library.offset_of_points(2**21, 2**20, 1) == 0


@pytest.mark.parametrize("place", [-5, 1 << 30, "runs"])
def test_columns_that_name_no_run_give_nan(place: int | str) -> None:
    masks = torch.rand(2, 9, 12) > 0.5
    runs = run_lengths(masks)
    columns = runs.columns.clone()
    columns[1, 6] = len(runs.ends) if place == "runs" else place
    damaged = RunLengthMasks(runs.ends, columns, 9, 12)
    points = torch.rand(1, 64, 2)
    got, want = _sample(damaged, points, 2)[:, 0], _sample(runs, points, 2)[:, 0]
    column = (points[0, :, 0] * 12 - 0.5).floor().clamp(0, 10)
    touched = (column >= 4) & (column <= 6)  # a point reads from two columns, each of which ends where the next begins
    assert torch.equal(got[0], want[0])
    assert got[1, touched].isnan().all()
    assert torch.equal(got[1, ~touched], want[1, ~touched])
    logits = torch.randn(2, 9, 12)
    loss = _loss(logits, damaged, points, torch.ones(1), reduce=False, grads=(torch.ones(2), torch.ones(2)))
    assert loss["loss_mask"].isnan().tolist() == [False, True]
