"""Multi-scale deformable attention on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fssops import ops, reference
from fssops.testing.cases import DEFORMABLE, DeformableCase
from fssops.testing.deformable_inputs import deformable_inputs, gradients

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = pytest.mark.parametrize("case", DEFORMABLE, ids=lambda c: c.name)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def _entries(case: DeformableCase):  # type: ignore[no-untyped-def]
    if case.reference:
        return ops.ms_deform_attn_fused, reference.ms_deform_attn_fused
    return ops.ms_deform_attn, reference.ms_deform_attn


def _flat(case: DeformableCase) -> tuple[list[int], list[int]]:
    """Shapes and starts as the registered operators take them."""
    starts = [0]
    for height, width in case.shapes:
        starts.append(starts[-1] + height * width)
    return [n for shape in case.shapes for n in shape], list(case.starts or starts[:-1])


def _grad(case: DeformableCase) -> Tensor:
    return torch.randn(case.batch, case.queries, case.heads * case.channels, dtype=torch.float64)


def _error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.double().cpu(), expected.double().cpu()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@CASES
def test_values_and_gradients_equal_the_definition(case: DeformableCase, dtype: torch.dtype, device: str) -> None:
    native, definition = _entries(case)
    half = dtype in (torch.float16, torch.bfloat16)
    # Half types do not resolve locations: as under autocast, those and the reference points come in float32.
    tensors = [t.to(torch.float32 if half and i == 1 else dtype) for i, t in enumerate(deformable_inputs(case))]
    grad = _grad(case).to(dtype)
    want = gradients(definition, case, [t.double() for t in tensors], grad.double())
    got = gradients(native, case, [t.to(device) for t in tensors], grad.to(device))
    assert got[0].dtype == dtype
    for index, (value, expected) in enumerate(zip(got, want, strict=True)):
        assert _error(value, expected) < TOLERANCE[dtype], f"result {index}"


@pytest.mark.parametrize("device", DEVICES)
@CASES
def test_gradients_pass_gradcheck(case: DeformableCase, device: str) -> None:
    small = replace(case, batch=1, queries=2, heads=min(case.heads, 2), channels=min(case.channels, 3))
    small = replace(small, points=min(case.points, 2))
    native, _ = _entries(small)
    leaves = [t.to(device).requires_grad_() for t in deformable_inputs(small)]

    def call(value: Tensor, *others: Tensor) -> Tensor:
        return native(value, small.shapes, *others, level_start_index=small.starts)

    # On CUDA the gradient of value is added up in any order.
    assert torch.autograd.gradcheck(call, leaves, nondet_tol=1e-12 if device == "cuda" else 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [DEFORMABLE[0], DEFORMABLE[1], DEFORMABLE[2], DEFORMABLE[11]], ids=lambda c: c.name)
def test_registration_passes_opcheck(case: DeformableCase, device: str) -> None:
    tensors = [t.to(device, torch.float32).requires_grad_() for t in deformable_inputs(case)]
    points = (case.batch, case.queries, case.heads, len(case.shapes), case.points)
    tensors[-1] = tensors[-1].detach().view(points).requires_grad_()
    name = "ms_deform_attn_fused" if case.reference else "ms_deform_attn"
    operator, arguments = getattr(torch.ops.fssops, name), (tensors[0], *_flat(case), *tensors[1:])
    # Raises if the schema, the fake kernel or the autograd registration disagree with the kernel.
    result = torch.library.opcheck(operator, arguments)
    assert set(result.values()) == {"SUCCESS"}
    grad = _grad(case).to(device, torch.float32)
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    for keep in range(len(tensors)):
        needed = [index != keep for index in range(len(tensors))]
        backward = getattr(torch.ops.fssops, f"{name}_backward")
        result = torch.library.opcheck(backward, (grad, *plain, *needed, True))
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [DEFORMABLE[0], DEFORMABLE[2]], ids=lambda c: c.name)
def test_only_the_gradients_that_are_needed_are_computed(case: DeformableCase, device: str) -> None:
    native, _ = _entries(case)
    tensors = [t.to(device) for t in deformable_inputs(case)]
    grad = _grad(case).to(device)
    every = gradients(native, case, tensors, grad)[1:]
    for chosen in range(len(tensors)):
        leaves = [t.clone().requires_grad_(i == chosen) for i, t in enumerate(tensors)]
        native(leaves[0], case.shapes, *leaves[1:]).backward(grad)
        found = leaves[chosen].grad
        assert found is not None
        torch.testing.assert_close(found, every[chosen])
        assert all(leaf.grad is None for i, leaf in enumerate(leaves) if i != chosen)


@pytest.mark.parametrize("device", DEVICES)
def test_fused_entry_compiles_without_graph_break(device: str) -> None:
    case = DEFORMABLE[1]
    leaves = [t.to(device, torch.float32).requires_grad_() for t in deformable_inputs(case)]

    def call(value: Tensor, *others: Tensor) -> Tensor:
        return ops.ms_deform_attn_fused(value * 2, case.shapes, *others).square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves)
    eager = call(*leaves)
    torch.testing.assert_close(compiled, eager)
    for got, want in zip(torch.autograd.grad(compiled, leaves), torch.autograd.grad(eager, leaves), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_published_entry_compiles_without_graph_break(device: str) -> None:
    case = DEFORMABLE[0]
    leaves = [t.to(device, torch.float32).requires_grad_() for t in deformable_inputs(case)]

    def call(value: Tensor, *others: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, case.shapes, *others, level_start_index=(0, 42, 54)).sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, call(*leaves))
    torch.testing.assert_close(torch.autograd.grad(compiled, leaves), torch.autograd.grad(call(*leaves), leaves))


@pytest.mark.parametrize("device", DEVICES)
def test_hand_derived_samples(device: str) -> None:
    # One level of 1 x 2 cells with values 10 and 20, centres at x = 0.25 and 0.75, y = 0.5.
    value = torch.tensor([10.0, 20.0], device=device).view(1, 2, 1, 1).requires_grad_()
    # Between the centres: 15. A quarter of a cell left of the first centre: 3/4 of 10. Half a cell below the second:
    # half of 20.
    places = [(0.5, 0.5), (0.125, 0.5), (0.75, 1.0)]
    locations = torch.tensor(places, device=device).view(1, 1, 1, 1, 3, 2).requires_grad_()
    weights = torch.tensor([1.0, 2.0, 4.0], device=device).view(1, 1, 1, 1, 3).requires_grad_()
    output = ops.ms_deform_attn(value, [(1, 2)], locations, weights)
    output.sum().backward()
    torch.testing.assert_close(output, torch.tensor([[[15.0 + 2 * 7.5 + 4 * 10.0]]], device=device))
    assert value.grad is not None
    assert weights.grad is not None
    assert locations.grad is not None
    torch.testing.assert_close(value.grad.flatten(), torch.tensor([0.5 + 1.5, 0.5 + 2.0], device=device))
    torch.testing.assert_close(weights.grad.flatten(), torch.tensor([15.0, 7.5, 10.0], device=device))
    # d/dx is the difference of neighbours times the width 2 (20 - 10, then 10 - 0, then 0 - 20 times a half), d/dy is 0
    # on a row of centres, and minus the value below it; each times the point's weight. A point on a row of centres has
    # the slope of the cell below it.
    want = [(2 * 10.0, -15.0), (2 * 2 * 10.0, -2 * 7.5), (4 * 2 * -20.0 * 0.5, 4 * -20.0)]
    torch.testing.assert_close(locations.grad.view(3, 2), torch.tensor(want, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_equal_logits_and_zero_offsets_average_the_levels_at_the_reference_point(device: str) -> None:
    value = torch.tensor([2.0, 2.0, 2.0, 2.0, 6.0], device=device).view(1, 5, 1, 1)
    output = ops.ms_deform_attn_fused(
        value,
        [(2, 2), (1, 1)],
        torch.full((1, 1, 2, 2), 0.5, device=device),
        torch.zeros(1, 1, 1, 2, 3, 2, device=device),
        torch.full((1, 1, 1, 6), 7.0, device=device),
    )
    torch.testing.assert_close(output, torch.tensor([[[4.0]]], device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_points_on_the_outer_border_contribute_nothing(device: str) -> None:
    # One cell beyond the first or last centre, exactly: x = -0.25 and 1.25 of 2 columns, y = -0.5 and 1.5 of 1 row.
    places = [(-0.25, 0.5), (1.25, 0.5), (0.5, -0.5), (0.5, 1.5), (-7.0, 0.5), (0.5, 3e38)]
    locations = torch.tensor(places, device=device).view(1, 1, 1, 1, 6, 2).requires_grad_()
    value = torch.full((1, 2, 1, 3), float("inf"), device=device)
    output = ops.ms_deform_attn(value, [(1, 2)], locations, torch.ones(1, 1, 1, 1, 6, device=device))
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert locations.grad is not None
    assert torch.equal(locations.grad, torch.zeros_like(locations))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinite_locations_lie_outside_and_nan_gives_nan(dtype: torch.dtype, device: str) -> None:
    inf, nan = float("inf"), float("nan")
    places = [(inf, 0.5), (0.5, -inf), (inf, -inf), (nan, 0.5), (9.0, nan), (0.5, 0.5)]
    locations = torch.tensor(places, dtype=dtype, device=device).view(1, 6, 1, 1, 1, 2).requires_grad_()
    value = torch.randn(1, 12, 1, 5, dtype=dtype).to(device).requires_grad_()
    weights = torch.ones(1, 6, 1, 1, 1, dtype=dtype, device=device, requires_grad=True)
    output = ops.ms_deform_attn(value, [(3, 4)], locations, weights)
    want = reference.ms_deform_attn(value, [(3, 4)], locations, weights)
    torch.testing.assert_close(output, want, equal_nan=True)
    output.sum().backward()
    assert torch.equal(output[0, :3], torch.zeros_like(output[0, :3]))
    assert output[0, 3:5].isnan().all()
    assert value.grad is not None
    assert locations.grad is not None
    assert torch.isfinite(value.grad).all()
    assert torch.equal(locations.grad[0, :3], torch.zeros_like(locations[0, :3]))
    assert torch.isfinite(locations.grad[0, 5]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_huge_offsets_and_logits_give_finite_results(device: str) -> None:
    case = DEFORMABLE[1]
    value, refs, offsets, logits = [t.to(device, torch.float32) for t in deformable_inputs(case)]
    offsets, logits = offsets * 1e30, logits * 1e30
    grad = _grad(case).to(device, torch.float32)
    got = gradients(ops.ms_deform_attn_fused, case, [value, refs, offsets, logits], grad)
    assert all(torch.isfinite(tensor).all() for tensor in got)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_and_infinity_in_values_and_weights_come_out(device: str) -> None:
    value = torch.ones(1, 4, 1, 2, device=device)
    value[0, 0, 0, 0], value[0, 3, 0, 1] = float("nan"), float("inf")
    locations = torch.tensor([[0.3, 0.3], [0.7, 0.7], [0.5, 0.5]], device=device).view(1, 3, 1, 1, 1, 2)
    weights = torch.tensor([1.0, 1.0, float("nan")], device=device).view(1, 3, 1, 1, 1)
    output = ops.ms_deform_attn(value, [(2, 2)], locations, weights)
    assert output[0, 0, 0].isnan()
    assert output[0, 1, 1].isinf()
    assert output[0, 2].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "queries", "heads", "channels"),
    [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0)],
    ids=["no_images", "no_queries", "no_heads", "no_channels"],
)
def test_empty_dimensions_give_empty_results(batch: int, queries: int, heads: int, channels: int, device: str) -> None:
    for refs in (0, 2, 4):
        case = DeformableCase("", batch, queries, heads, channels, ((2, 3), (1, 1)), 2, refs)
        native, _ = _entries(case)
        tensors = [t.to(device, torch.float32) for t in deformable_inputs(case)]
        got = gradients(native, case, tensors, _grad(case).to(device, torch.float32))
        assert got[0].shape == (batch, queries, heads * channels)
        for tensor, grad in zip(tensors, got[1:], strict=True):
            assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("device", DEVICES)
@CASES
def test_non_contiguous_inputs_give_the_same_result(case: DeformableCase, device: str) -> None:
    native, _ = _entries(case)
    tensors = [t.to(device, torch.float32) for t in deformable_inputs(case)]
    grad = _grad(case).to(device, torch.float32)
    want = gradients(native, case, tensors, grad)
    # As a slice of a wider projection, and with the batch in the middle.
    wide = [torch.cat([t.flatten(2), t.flatten(2)], 2) for t in tensors]
    sliced = [w[..., : w.shape[2] // 2].unflatten(2, t.shape[2:]) for w, t in zip(wide, tensors, strict=True)]
    swapped = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    reversed_inside = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in tensors]
    for others in (sliced, swapped, reversed_inside):
        output = native(others[0], case.shapes, *others[1:], level_start_index=case.starts)
        torch.testing.assert_close(output, want[0])
        leaves = [t.requires_grad_() for t in others]
        output = native(leaves[0], case.shapes, *leaves[1:], level_start_index=case.starts)
        found = torch.autograd.grad(output, leaves, grad)
        for got, expected in zip(found, want[1:], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_reference_points_get_the_summed_gradient(device: str) -> None:
    case = DEFORMABLE[1]
    value, _, offsets, logits = [t.to(device) for t in deformable_inputs(case)]
    point = torch.rand(1, case.queries, 1, 2, dtype=torch.float64).to(device).requires_grad_()
    expanded = point.expand(case.batch, -1, len(case.shapes), -1)
    got = ops.ms_deform_attn_fused(value, case.shapes, expanded, offsets, logits)
    want = reference.ms_deform_attn_fused(value, case.shapes, expanded, offsets, logits)
    torch.testing.assert_close(got, want)
    (grad,), (expected,) = torch.autograd.grad(got.sum(), point), torch.autograd.grad(want.sum(), point)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("case", [DEFORMABLE[0], DEFORMABLE[2], DEFORMABLE[12]], ids=lambda c: c.name)
def test_cpu_result_does_not_depend_on_the_number_of_threads(case: DeformableCase, threads: int) -> None:
    large = replace(case, queries=300, heads=5, channels=32)
    native, _ = _entries(large)
    tensors, grad = [t.float() for t in deformable_inputs(large)], _grad(large).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        want = gradients(native, large, tensors, grad)
        torch.set_num_threads(threads)
        got = gradients(native, large, tensors, grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, expected) for value, expected in zip(got, want, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_gradients_repeat_under_deterministic_algorithms(dtype: torch.dtype) -> None:
    case = DeformableCase("", 2, 2000, 4, 32, ((8, 8), (4, 4)), 4, 2)
    tensors = [t.to("cuda", dtype) for t in deformable_inputs(case)]
    grad = _grad(case).to("cuda", dtype)
    atomic = gradients(ops.ms_deform_attn_fused, case, tensors, grad)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(ops.ms_deform_attn_fused, case, tensors, grad) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(value, first) for value, first in zip(run, runs[0], strict=True))
    assert _error(runs[0][1], atomic[1]) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    case = DEFORMABLE[1]
    tensors = [t.to(torch.bfloat16) for t in deformable_inputs(case)]
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.ms_deform_attn_fused(tensors[0], case.shapes, *tensors[1:])
    assert got.dtype == torch.float32
    want = reference.ms_deform_attn_fused(tensors[0].float(), case.shapes, *[t.float() for t in tensors[1:]])
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
def test_autocast_on_cuda_takes_mixed_dtypes_as_they_come() -> None:
    case = DEFORMABLE[1]
    dtypes = (torch.bfloat16, torch.float32, torch.bfloat16, torch.float16)
    tensors = [t.to("cuda", dtype) for t, dtype in zip(deformable_inputs(case), dtypes, strict=True)]
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast("cuda", torch.bfloat16):
        got = ops.ms_deform_attn_fused(leaves[0], case.shapes, *leaves[1:])
    assert got.dtype == torch.bfloat16
    grads = torch.autograd.grad(got.sum(), leaves)
    assert [g.dtype for g in grads] == [t.dtype for t in tensors]


def test_reference_backend_is_chosen_on_purpose() -> None:
    for case in (DEFORMABLE[0], DEFORMABLE[1]):
        native, definition = _entries(case)
        value, *others = deformable_inputs(case)
        got = native(value, case.shapes, *others, backend="reference")
        assert torch.equal(got, definition(value, case.shapes, *others))
    with pytest.raises(ValueError, match=r"backend must be one of native, reference, got 'cuda'"):
        ops.ms_deform_attn(*_simple(), backend="cuda")


def _simple() -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    return torch.rand(1, 7, 2, 4), [(2, 3), (1, 1)], torch.rand(1, 3, 2, 2, 2, 2), torch.rand(1, 3, 2, 2, 2)


def test_errors_name_the_argument_the_rule_and_the_value() -> None:
    value, shapes, locations, weights = _simple()
    with pytest.raises(ValueError, match=r"spatial_shapes must add up to value's 7 tokens, got .*, which are 8"):
        ops.ms_deform_attn(value, [(2, 3), (1, 2)], locations, weights)
    with pytest.raises(ValueError, match=r"value must have shape \[B, S, M, D\], got \[7, 2, 4\]"):
        ops.ms_deform_attn(value[0], shapes, locations, weights)
    with pytest.raises(ValueError, match=r"sampling_locations must have shape .* got \[1, 3, 2, 1, 2, 2\]"):
        ops.ms_deform_attn(value, shapes, locations[:, :, :, :1], weights)
    with pytest.raises(ValueError, match=r"attention_weights must have shape .* got \[1, 3, 2, 2\]"):
        ops.ms_deform_attn(value, shapes, locations, weights[..., 0])
    with pytest.raises(ValueError, match=r"spatial_shapes must be one \(height, width\) a level, got \[2, 3\]"):
        ops.ms_deform_attn(value, [2, 3], locations, weights)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="spatial_shapes must have positive heights and widths"):
        ops.ms_deform_attn(value, [(0, 3), (7, 1)], locations, weights)
    with pytest.raises(ValueError, match="spatial_shapes must have at least one level, got none"):
        ops.ms_deform_attn(value, [], locations, weights)
    with pytest.raises(
        ValueError, match=r"level_start_index must keep every level inside value's 7 tokens, got \[0, 7"
    ):
        ops.ms_deform_attn(value, shapes, locations, weights, level_start_index=[0, 7])
    with pytest.raises(ValueError, match="level_start_index must have one number a level"):
        ops.ms_deform_attn(value, shapes, locations, weights, level_start_index=[0])
    with pytest.raises(TypeError, match=r"sampling_locations must be float64 exactly when value is \(torch.float32\)"):
        ops.ms_deform_attn(value, shapes, locations.double(), weights)
    with pytest.raises(TypeError, match=r"value must be float32, float64, float16 or bfloat16, got torch\.int64"):
        ops.ms_deform_attn(value.long(), shapes, locations, weights)
    with pytest.raises(ValueError, match=r"reference_points must have shape .* got \[1, 3, 2, 3\]"):
        ops.ms_deform_attn_fused(value, shapes, torch.rand(1, 3, 2, 3), locations, weights)
    with pytest.raises(ValueError, match=r"attention_logits must have shape .* got \[1, 3, 2, 5\]"):
        ops.ms_deform_attn_fused(value, shapes, torch.rand(1, 3, 2, 2), locations, torch.rand(1, 3, 2, 5))


def test_registered_operator_checks_its_arguments_too() -> None:
    value, _, locations, weights = _simple()
    operator = torch.ops.fssops.ms_deform_attn
    with pytest.raises(RuntimeError, match="keep every level of spatial_shapes"):
        operator(value, [2, 3, 1, 2], [0, 6], locations, weights)
    with pytest.raises(RuntimeError, match="have one"):
        operator(value, [2, 3], [0, 6], locations, weights)
    with pytest.raises(RuntimeError, match="have the dtype of value"):
        operator(value, [2, 3, 1, 1], [0, 6], locations.double(), weights)
    with pytest.raises(RuntimeError, match="attention_weights must have shape"):
        operator(value, [2, 3, 1, 1], [0, 6], locations, weights[:, :2])
    nothing = torch.ops.fssops.ms_deform_attn_backward(
        torch.ones(*locations.shape[:2], value.shape[2] * value.shape[3]),
        value, [2, 3, 1, 1], [0, 6], locations, weights, False, False, False, False,
    )  # fmt: skip
    assert [grad.numel() for grad in nothing] == [0, 0, 0], "no gradient is wanted"


def test_spatial_shapes_may_be_a_tensor() -> None:
    value, shapes, locations, weights = _simple()
    want = ops.ms_deform_attn(value, shapes, locations, weights)
    assert torch.equal(ops.ms_deform_attn(value, torch.tensor(shapes), locations, weights), want)
    got = ops.ms_deform_attn(value, torch.tensor(shapes), locations, weights, level_start_index=torch.tensor([0, 6]))
    assert torch.equal(got, want)


class _OnDevice(torch.Tensor):
    """A tensor that says it lies on a GPU, so that its elements are kept on the host."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_shapes_on_a_device_are_read_again_after_a_change_and_in_inference_mode() -> None:
    numbers = sys.modules["fssops.ops.ms_deform_attn"]._numbers
    shapes = torch.tensor([[2, 3]]).as_subclass(_OnDevice)
    assert numbers(shapes) == [[2, 3]]
    shapes[0, 0] = 5
    assert numbers(shapes) == [[5, 3]]
    with torch.inference_mode():
        made_there = torch.tensor([[4, 7]]).as_subclass(_OnDevice)
        assert numbers(made_there) == [[4, 7]]
        made_there[0, 1] = 1
        assert numbers(made_there) == [[4, 1]]


# ---- parity with the authors' operator ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(oracle_root: Path) -> dict[str, Tensor]:
    with np.load(oracle_root / "msdeformattn_op" / "arrays.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


ORACLE_SHAPES = [(3, 4), (6, 8), (12, 16)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("suffix", "tolerance"), [("f32", 1e-5), ("f64", 1e-10)])
def test_outputs_and_gradients_equal_the_authors(
    oracle: dict[str, Tensor], suffix: str, tolerance: float, device: str
) -> None:
    dtype = torch.float32 if suffix == "f32" else torch.float64
    names = ("value", "sampling_locations", "attention_weights")
    leaves = [oracle[name].to(device, dtype, copy=True).requires_grad_() for name in names]
    output = ops.ms_deform_attn(leaves[0], ORACLE_SHAPES, *leaves[1:])
    output.backward(oracle["grad_output"].to(device, dtype))
    results = {"output": output, **{f"grad_{name}": leaf.grad for name, leaf in zip(names, leaves, strict=True)}}
    for name, value in results.items():
        assert value is not None
        want = oracle[f"{name}_{suffix}"]
        assert float((value.detach().cpu() - want).abs().max() / want.abs().max()) < tolerance, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("boxes", [False, True], ids=["points_with_padding", "boxes"])
def test_module_of_linear_layers_equals_the_authors(
    oracle: dict[str, Tensor], oracle_root: Path, monkeypatch: pytest.MonkeyPatch, boxes: bool, device: str
) -> None:
    monkeypatch.syspath_prepend(str(oracle_root))
    fill = pytest.importorskip("oracle_weights").fill

    def linear(name: str, tensor: Tensor, rows: int) -> Tensor:
        weight, bias = (
            torch.from_numpy(fill(f"{name}.{kind}", shape, "msda-open")).to(device)
            for kind, shape in (("weight", (rows, 256)), ("bias", (rows,)))
        )
        return torch.nn.functional.linear(tensor, weight, bias)

    arrays = {name: tensor.to(device) for name, tensor in oracle.items() if name.startswith("mod_")}
    query, refs = arrays["mod_query"], arrays["mod_reference_points"]
    value = linear("value_proj", arrays["mod_input_flatten"], 256)
    if boxes:
        refs = torch.cat([refs, torch.full_like(refs, 0.3)], -1)
    else:
        value = value.masked_fill(arrays["mod_padding_mask"][..., None], 0.0)
    offsets = linear("sampling_offsets", query, 192).view(2, 40, 8, 3, 4, 2)
    logits = linear("attention_weights", query, 96).view(2, 40, 8, 12)
    sampled = ops.ms_deform_attn_fused(value.view(2, 252, 8, 32), ORACLE_SHAPES, refs, offsets, logits)
    output = linear("output_proj", sampled, 256)
    want = arrays["mod_output_ref4" if boxes else "mod_output"]
    assert float((output - want).abs().max() / want.abs().max()) < 1e-5
