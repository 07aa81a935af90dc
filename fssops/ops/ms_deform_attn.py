"""Multi-scale deformable attention: each query samples a few points of every level and sums them by its own weights.

What it costs, for an encoder layer of a 512 x 512 image (5,376 tokens as queries, 8 heads of 32, 3 levels of 4
points, float32): 17 MB of arguments and result, and 2.06 million corners of 128 bytes, 264 MB, gathered from caches.
On a GPU the L1 caches deliver those at 128 bytes a cycle and multiprocessor, about 9 us on an H200, and L2 what L1
misses. That is little because a block takes 64 queries of one head, which lie in a square where the queries are the
tokens: with the offsets that the layer starts from and a cell of noise, 13 % of their corners are different tokens
(24 % for 64 queries of a row, 60 % for points anywhere in the image). The backward pass gathers the same, and adds to
each of those tokens once a block, instead of once a corner: 0.23 million additions of 128 bytes instead of 1.8
million. The CPU kernels store nothing but arguments and results; the CUDA ones keep float32 sums of half-precision
gradients besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fssops import reference
from fssops.ops._backend import call, check_float, register, use_reference

_OP = "ms_deform_attn"
_FUSED = "ms_deform_attn_fused"

Shapes = Sequence[tuple[int, int]] | Tensor


_host_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _numbers(given: Any) -> Any:
    """A tensor's elements as plain numbers.

    Waits for the device once a tensor, not once a call: all layers of a model, and their backward passes, are given one
    and the same tensor of shapes.
    """
    if not isinstance(given, Tensor):
        return given
    if torch.compiler.is_compiling() or given.device.type == "cpu" or given.is_inference():
        return given.tolist()  # a tensor made in inference mode does not tell when it changes
    version, numbers = _host_copies.get(given, (None, None))
    if version != given._version:
        numbers = given.tolist()
        _host_copies[given] = (given._version, numbers)
    return numbers


def _levels(
    op: str, value: Tensor, spatial_shapes: Shapes, level_start_index: Sequence[int] | Tensor | None
) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes and first tokens of the levels as plain numbers."""
    if value.dim() != 4:
        raise ValueError(f"{op}: value must have shape [B, S, M, D], got {list(value.shape)}")
    check_float(op, "value", value)
    try:
        shapes = [(int(height), int(width)) for height, width in _numbers(spatial_shapes)]
    except (TypeError, ValueError):
        raise ValueError(f"{op}: spatial_shapes must be one (height, width) a level, got {spatial_shapes}") from None
    if not shapes:
        raise ValueError(f"{op}: spatial_shapes must have at least one level, got none")
    for height, width in shapes:
        if height < 1 or width < 1:
            raise ValueError(f"{op}: spatial_shapes must have positive heights and widths, got {shapes}")
    if level_start_index is None:
        starts = [0]
        for height, width in shapes:
            starts.append(starts[-1] + height * width)
        if starts.pop() != value.shape[1]:
            raise ValueError(
                f"{op}: spatial_shapes must add up to value's {value.shape[1]} tokens, got {shapes}, which are "
                f"{sum(h * w for h, w in shapes)}"
            )
    else:
        starts = [int(start) for start in _numbers(level_start_index)]
        if len(starts) != len(shapes):
            raise ValueError(f"{op}: level_start_index must have one number a level ({len(shapes)}), got {starts}")
        for (height, width), start in zip(shapes, starts, strict=True):
            if start < 0 or start + height * width > value.shape[1]:
                raise ValueError(
                    f"{op}: level_start_index must keep every level inside value's {value.shape[1]} tokens, "
                    f"got {starts} for {shapes}"
                )
    return shapes, starts


def _check_points(op: str, name: str, points: Tensor, value: Tensor, levels: int) -> tuple[int, ...]:
    """Shape [B, Q, M, L, P] of the points."""
    batch, _, heads, _ = value.shape
    shape = tuple(points.shape)
    good = len(shape) == 6 and (shape[0], shape[2], shape[3], shape[5]) == (batch, heads, levels, 2) and shape[4] > 0
    if not good:
        raise ValueError(
            f"{op}: {name} must have shape [B, Q, M, L, P, 2] = [{batch}, Q, {heads}, {levels}, P, 2], "
            f"got {list(shape)}"
        )
    return shape[:5]


def _check_companion(op: str, name: str, tensor: Tensor, value: Tensor) -> None:
    check_float(op, name, tensor)
    if tensor.device != value.device:
        raise ValueError(f"{op}: {name} must be on the device of value, {value.device}, got {tensor.device}")
    if (tensor.dtype == torch.float64) != (value.dtype == torch.float64):
        raise TypeError(f"{op}: {name} must be float64 exactly when value is ({value.dtype}), got {tensor.dtype}")


def _check_published(value: Tensor, levels: int, sampling_locations: Tensor, attention_weights: Tensor) -> None:
    expected = _check_points(_OP, "sampling_locations", sampling_locations, value, levels)
    if tuple(attention_weights.shape) != expected:
        raise ValueError(
            f"{_OP}: attention_weights must have shape [B, Q, M, L, P] = {list(expected)}, got "
            f"{list(attention_weights.shape)}"
        )
    _check_companion(_OP, "sampling_locations", sampling_locations, value)
    _check_companion(_OP, "attention_weights", attention_weights, value)


def _for_kernel(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The CPU kernels take one dtype, float32 or float64; the CUDA kernels take float32 and half types mixed."""
    if tensors[0].device.type != "cpu":
        return tensors
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    level_start_index: Sequence[int] | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Weighted sum of bilinear samples, from given locations and weights: the published entry.

    .. math:: o_{bqm} = \sum_{l,p} A_{bqmlp} \, V^{l}_{bm}(x_{bqmlp})

    where :math:`V^l_{bm}(x)` is level l of value, head m, interpolated at x, and zero outside the level.

    Args:
        value: [B, S, M, D] float32, float64, float16 or bfloat16: the tokens of all levels, level after level, each
            row-major. The last two dimensions contiguous, or it is copied.
        spatial_shapes: (height, width) of each of the L levels, at most 64. A tensor [L, 2] is accepted too; on a CUDA
            device it is copied to the host, which waits for the device, once for each tensor.
        sampling_locations: [B, Q, M, L, P, 2], (x, y): 0 to 1 spans a level from outer edge to outer edge, so that the
            centre of column j is at (j + 0.5) / width (``align_corners=False``). float32 is advised, since half types
            do not resolve a cell; it may go with a half value on CUDA.
        attention_weights: [B, Q, M, L, P], used as they are.
        level_start_index: first token of each level, where levels do not simply follow each other. Levels may share
            tokens.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, Q, M * D] in the dtype of value. Half types are accumulated in float32 (on the CPU: computed in float32).
        Gradients flow to value, locations and weights. A point one cell or more outside a level's outermost centres
        contributes nothing and has no gradient, however far it is, infinity included; a NaN location gives NaN. On CUDA
        the gradient of value is added up atomically, so that its last digits vary between runs, unless
        ``torch.use_deterministic_algorithms`` is set: then it is added up in integers (fixed point, at least 40 bits
        below the largest term for up to 2^20 terms), with the same result every time, and a token with a term that is
        not finite gets NaN. Everything else is deterministic.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Deformable DETR (Zhu et al., ICLR 2021), eq. 3.
    """
    shapes, starts = _levels(_OP, value, spatial_shapes, level_start_index)
    _check_published(value, len(shapes), sampling_locations, attention_weights)
    if use_reference(backend, _OP):
        return reference.ms_deform_attn(value, shapes, sampling_locations, attention_weights, level_start_index=starts)
    tensors = _for_kernel((value, sampling_locations, attention_weights))
    flat = [size for shape in shapes for size in shape]
    output: Tensor = call(torch.ops.fssops.ms_deform_attn.default, tensors[0], flat, starts, *tensors[1:])
    return output if output.dtype == value.dtype or _autocasting(value) else output.to(value.dtype)


def ms_deform_attn_gradients(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    level_start_index: Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`ms_deform_attn` for code with an autograd of its own.

    Args:
        grad: [B, Q, M * D], gradient of the output.
        value: as for :func:`ms_deform_attn`, and so are the others.
        spatial_shapes: see there.
        sampling_locations: see there.
        attention_weights: see there.
        level_start_index: see there.

    Returns:
        Three tensors of the shapes and dtypes of value, locations and weights.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.
    """
    shapes, starts = _levels(_OP, value, spatial_shapes, level_start_index)
    _check_published(value, len(shapes), sampling_locations, attention_weights)
    output_shape = (value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3])
    if tuple(grad.shape) != output_shape:
        raise ValueError(f"{_OP}: grad must have shape [B, Q, M * D] = {list(output_shape)}, got {list(grad.shape)}")
    check_float(_OP, "grad", grad)
    if grad.device != value.device:
        raise ValueError(f"{_OP}: grad must be on the device of value, {value.device}, got {grad.device}")
    given = (value, sampling_locations, attention_weights)
    if use_reference(None, _OP):
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        with torch.enable_grad():
            output = reference.ms_deform_attn(leaves[0], shapes, *leaves[1:], level_start_index=starts)
        gradients = torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)
        return gradients[0], gradients[1], gradients[2]
    flat = [size for shape in shapes for size in shape]
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.no_grad():
        tensors = _for_kernel(given)
        grads = torch.ops.fssops.ms_deform_attn_backward.default(
            grad.to(tensors[0].dtype), tensors[0], flat, starts, *tensors[1:], True, True, True, deterministic
        )
    first, second, third = (found.to(tensor.dtype) for found, tensor in zip(grads, given, strict=True))
    return first, second, third


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    level_start_index: Sequence[int] | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The same from what the layer's projections give: softmax and location arithmetic happen inside.

    .. math:: A_{bqm} = \mathrm{softmax}_{lp}(\text{logits}_{bqm}), \quad
              x_{bqmlp} = r_{bql} + \frac{\Delta_{bqmlp}}{(w_l, h_l)} \;\text{or}\;
              c_{bql} + \frac{\Delta_{bqmlp}}{P} \frac{s_{bql}}{2}

    Neither the weights nor the locations are stored.

    Args:
        value: as for :func:`ms_deform_attn`.
        spatial_shapes: as for :func:`ms_deform_attn`.
        reference_points: [B, Q, L, 2] points r (x, y), or [B, Q, L, 4] boxes (centre x, y = c, width, height = s), in
            the units of locations.
        sampling_offsets: [B, Q, M, L, P, 2], (x, y), in cells of the level around points; for boxes 1 is a half of the
            box, divided by P.
        attention_logits: [B, Q, M, L * P] or [B, Q, M, L, P].
        level_start_index: as for :func:`ms_deform_attn`.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, Q, M * D] in the dtype of value. Gradients flow to value, reference points, offsets and logits; the notes on
        precision, infinities and determinism of :func:`ms_deform_attn` hold. The softmax is computed in float32 or
        better.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Deformable DETR (Zhu et al., ICLR 2021), eq. 3 and appendix A.4 (boxes).
    """
    shapes, starts = _levels(_FUSED, value, spatial_shapes, level_start_index)
    expected = _check_points(_FUSED, "sampling_offsets", sampling_offsets, value, len(shapes))
    batch, queries, heads, levels, points = expected
    if tuple(attention_logits.shape) not in (expected, (batch, queries, heads, levels * points)):
        raise ValueError(
            f"{_FUSED}: attention_logits must have shape [B, Q, M, L * P] = {[batch, queries, heads, levels * points]} "
            f"or [B, Q, M, L, P], got {list(attention_logits.shape)}"
        )
    if reference_points.dim() != 4 or tuple(reference_points.shape) not in (
        (batch, queries, levels, 2),
        (batch, queries, levels, 4),
    ):
        raise ValueError(
            f"{_FUSED}: reference_points must have shape [B, Q, L, 2 or 4] = [{batch}, {queries}, {levels}, 2 or 4], "
            f"got {list(reference_points.shape)}"
        )
    named = (
        ("reference_points", reference_points),
        ("sampling_offsets", sampling_offsets),
        ("attention_logits", attention_logits),
    )
    for name, tensor in named:
        _check_companion(_FUSED, name, tensor, value)
    if use_reference(backend, _FUSED):
        return reference.ms_deform_attn_fused(
            value, shapes, reference_points, sampling_offsets, attention_logits, level_start_index=starts
        )
    if attention_logits.dim() == 4:
        attention_logits = attention_logits.unflatten(3, (levels, points))
    tensors = _for_kernel((value, reference_points, sampling_offsets, attention_logits))
    flat = [size for shape in shapes for size in shape]
    output: Tensor = call(torch.ops.fssops.ms_deform_attn_fused.default, tensors[0], flat, starts, *tensors[1:])
    return output if output.dtype == value.dtype or _autocasting(value) else output.to(value.dtype)


def _autocasting(value: Tensor) -> bool:
    """Under autocast on the CPU the result stays in float32, the dtype that the kernel was given."""
    return value.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _fake(value: Tensor, shapes: list[int], starts: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty((value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]))


def _fake_fused(
    value: Tensor, shapes: list[int], starts: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return _fake(value, shapes, starts, offsets, logits)


def _fake_gradients(tensors: tuple[Tensor, ...], needed: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(
        tensor.new_empty(tensor.shape) if need else tensor.new_empty(0)
        for tensor, need in zip(tensors, needed, strict=True)
    )


def _fake_backward(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_locations: bool,
    need_weights: bool,
    deterministic: bool,
) -> tuple[Tensor, ...]:
    return _fake_gradients((value, locations, weights), (need_value, need_locations, need_weights))


def _fake_fused_backward(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    starts: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    need_value: bool,
    need_reference: bool,
    need_offsets: bool,
    need_logits: bool,
    deterministic: bool,
) -> tuple[Tensor, ...]:
    needed = (need_value, need_reference, need_offsets, need_logits)
    return _fake_gradients((value, reference_points, offsets, logits), needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, shapes, starts, *others = inputs
    ctx.save_for_backward(value, *others)
    ctx.shapes, ctx.starts = shapes, starts


def _gradients(ctx: Any, grad: Tensor, operator: Any) -> tuple[Tensor | None, ...]:
    value, *others = ctx.saved_tensors
    needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = operator(grad, value, ctx.shapes, ctx.starts, *others, *needed, deterministic)
    gradients = [g if need else None for g, need in zip(grads, needed, strict=True)]
    return (gradients[0], None, None, *gradients[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, grad, torch.ops.fssops.ms_deform_attn_backward.default)


def _fused_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, grad, torch.ops.fssops.ms_deform_attn_fused_backward.default)


register(_OP, fake=_fake, backward=_backward, setup_context=_setup_context)
register(f"{_OP}_backward", fake=_fake_backward, autocast_cpu=False)
register(_FUSED, fake=_fake_fused, backward=_fused_backward, setup_context=_setup_context)
register(f"{_FUSED}_backward", fake=_fake_fused_backward, autocast_cpu=False)
