"""Which implementation of the operators is in use: the native libraries, or the PyTorch definitions on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fssops import _native

BACKENDS = ("native", "reference")
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_wanted = os.environ.get("FSSOPS_BACKEND") or "native"
if _wanted not in BACKENDS:
    raise ValueError(f"FSSOPS_BACKEND must be one of {', '.join(BACKENDS)}, got {_wanted!r}")

if _wanted == "native":
    _native.load()

NATIVE = _wanted == "native"
"""True when the native libraries are loaded; registrations of fake, autograd and autocast hang on it."""


def use_reference(backend: str | None, op: str) -> bool:
    """Whether a call runs the PyTorch definition: ``backend`` if given, else FSSOPS_BACKEND."""
    if backend is None:
        return not NATIVE
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "native" and not NATIVE:
        raise ValueError(f"{op}: backend must be 'reference' while FSSOPS_BACKEND=reference is set, got 'native'")
    return backend == "reference"


def call(operator: torch._ops.OpOverload, *arguments: Any) -> Any:
    """Call a native operator; where nothing asks for a gradient, without the way through its autograd in Python.

    That is what the autograd which torch.library makes does in the end, some 5 us later.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


class _FirstDerivative(torch.autograd.Function):
    """Gradients as they are; differentiating them again raises, where torch would warn and go on without their part."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first ``count`` of ``tensors`` are gradients, the others what they were made of."""
        ctx.op = op
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(f"{ctx.op}: gradients must not be differentiated again, got a second derivative")


def _first_derivative(op: str, backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """``backward`` for ``torch.library``, with its results guarded where autograd keeps their graph."""

    def guarded(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        parts = [part if isinstance(part, list) else [part] for part in gradients]
        made = [tensor for part in parts for tensor in part if tensor is not None]
        sources = [tensor for tensor in (*grads, *ctx.saved_tensors) if isinstance(tensor, Tensor)]
        left = iter(_FirstDerivative.apply(op, len(made), *made, *sources))
        results = [[None if tensor is None else next(left) for tensor in part] for part in parts]
        return tuple(
            result if isinstance(part, list) else result[0] for part, result in zip(gradients, results, strict=True)
        )

    return guarded


def register(
    op: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    autocast_cpu: bool = True,
) -> None:
    """Register what Python adds to a native operator: shapes, gradient, and float32 under CPU autocast.

    The CPU kernels know float32 and float64, so autocast gives them float32; the CUDA kernels take half types as they
    come and accumulate in float32, so autocast leaves them alone. Gradients have no derivative of their own.
    """
    if not NATIVE:
        return
    name = f"fssops::{op}"
    torch.library.register_fake(name)(fake)
    if backward is not None:
        torch.library.register_autograd(name, _first_derivative(op, backward), setup_context=setup_context)
    if autocast_cpu:
        torch.library.register_autocast(name, "cpu", torch.float32)


def empty_gradient(features: Tensor) -> Tensor:
    """What kernels that take features [B, C, h, w] in either memory format make their gradient in, for fakes."""
    return torch.empty_like(
        features if features.is_contiguous(memory_format=torch.channels_last) else features.contiguous()
    )


def check_float(op: str, argument: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is of a float dtype that the kernels know."""
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{op}: {argument} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
