"""Code written to the authors' extension runs unchanged after one import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fssops.compat

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [(3, 4), (6, 8), (12, 16)]


@pytest.fixture
def extension() -> Any:
    """What code of the field gets from ``import MultiScaleDeformableAttention as MSDA``."""
    fssops.compat.install()
    return importlib.import_module("MultiScaleDeformableAttention")


def _published_function(extension: Any) -> type[torch.autograd.Function]:
    """An autograd function as published models define it around the extension."""

    class Sample(torch.autograd.Function):
        @staticmethod
        def forward(  # type: ignore[no-untyped-def]
            ctx, value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
        ):
            ctx.step = im2col_step
            ctx.save_for_backward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
            return extension.ms_deform_attn_forward(
                value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
            )

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
            grad_value, grad_locations, grad_weights = extension.ms_deform_attn_backward(
                *ctx.saved_tensors, grad_output, ctx.step
            )
            return grad_value, None, None, grad_locations, grad_weights, None

    return Sample


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("suffix", "tolerance"), [("f32", 1e-5), ("f64", 1e-10)])
def test_published_function_gives_the_authors_results(
    extension: Any, oracle_root: Path, suffix: str, tolerance: float, device: str
) -> None:
    with np.load(oracle_root / "msdeformattn_op" / "arrays.npz") as arrays:
        oracle = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    dtype = torch.float32 if suffix == "f32" else torch.float64
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = [oracle[name].to(device, dtype).requires_grad_() for name in names]
    shapes = torch.as_tensor(SHAPES, dtype=torch.long, device=device)
    starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
    output = _published_function(extension).apply(value, shapes, starts, locations, weights, 128)
    output.backward(oracle["grad_output"].to(device, dtype))
    results = {
        "output": output,
        "grad_value": value.grad,
        "grad_sampling_locations": locations.grad,
        "grad_attention_weights": weights.grad,
    }
    for name, result in results.items():
        want = oracle[f"{name}_{suffix}"]
        assert float((result.detach().cpu() - want).abs().max() / want.abs().max()) < tolerance, name


@pytest.mark.parametrize("device", DEVICES)
def test_results_have_the_types_of_the_extension(extension: Any, device: str) -> None:
    shapes, starts = torch.tensor([[2, 2]], device=device), torch.tensor([0], device=device)
    value, locations = torch.rand(3, 4, 2, 8, device=device), torch.rand(3, 5, 2, 1, 4, 2, device=device)
    weights = torch.rand(3, 5, 2, 1, 4, device=device)
    output = extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    assert output.shape == (3, 5, 16)
    grads = extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, torch.ones_like(output), 64)
    assert isinstance(grads, list)
    assert [g.shape for g in grads] == [value.shape, locations.shape, weights.shape]


def test_half_types_keep_their_dtype(extension: Any) -> None:
    shapes, starts = torch.tensor([[2, 2]]), torch.tensor([0])
    arguments: list[Tensor] = [
        torch.rand(1, 4, 2, 8).bfloat16(),
        shapes,
        starts,
        torch.rand(1, 5, 2, 1, 4, 2),
        torch.rand(1, 5, 2, 1, 4).bfloat16(),
    ]
    output = extension.ms_deform_attn_forward(*arguments, 64)
    grads = extension.ms_deform_attn_backward(*arguments, torch.ones_like(output), 64)
    assert output.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_importing_the_package_alone_changes_nothing() -> None:
    program = (
        "import sys, fssops.compat; assert 'MultiScaleDeformableAttention' not in sys.modules; "
        "import fssops.compat.MultiScaleDeformableAttention; import MultiScaleDeformableAttention as MSDA; "
        "assert MSDA is fssops.compat.MultiScaleDeformableAttention; "
        "print(sorted(MSDA.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ms_deform_attn_forward" in done.stdout


def test_wrong_shapes_are_named(extension: Any) -> None:
    shapes, starts = torch.tensor([[2, 2]]), torch.tensor([0])
    value, locations, weights = torch.rand(1, 4, 2, 8), torch.rand(1, 5, 2, 1, 4, 2), torch.rand(1, 5, 2, 1, 4)
    with pytest.raises(ValueError, match=r"grad must have shape \[B, Q, M \* D\] = \[1, 5, 16\], got \[1, 5, 8\]"):
        extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, torch.rand(1, 5, 8), 64)
    grad = torch.rand(1, 5, 16, device="meta")
    with pytest.raises(ValueError, match="grad must be on the device of value, cpu, got meta"):
        extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, grad, 64)
