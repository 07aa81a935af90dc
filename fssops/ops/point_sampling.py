"""Values of maps and masks at points, and the choice of points where a mask is least certain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, register, use_reference
from fssops.reference.mask_sources import FactoredMasks, MaskSource, PackedMasks, RunLengthMasks
from fssops.reference.point_mask_loss import draw_seed

_SAMPLE, _UNCERTAIN, _UNIFORM = "sample_points", "uncertain_points", "uniform_points"
DENSE, BITS, RUNS, VALUES = range(4)
"""How the native operators are told the form of masks (csrc/point_mask_loss/point_mask_loss.h: Format)."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which points are given and sums are formed for maps of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_points(op: str, points: Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Points as [N or 1, P, 2] of ``dtype``; checked."""
    if points.dim() == 2:
        points = points[None]
    if points.dim() != 3 or points.shape[2] != 2 or points.shape[0] not in (rows, 1):
        raise ValueError(f"{op}: points must have shape [{rows} or 1, P, 2], got {list(points.shape)}")
    check_float(op, "points", points)
    if points.device != device:
        raise ValueError(f"{op}: points must be on the device of the maps, {device}, got {points.device}")
    return points.detach().to(dtype)


def source_arguments(
    op: str, argument: str, masks: MaskSource, padded_size: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None, int, list[int], int]:
    """(data, columns, form, [h, w, padded h, padded w], number of maps) of masks in any form; checked."""
    columns = None
    if isinstance(masks, PackedMasks):
        data, form = masks.bits, BITS
        count, height, width = masks.shape
    elif isinstance(masks, RunLengthMasks):
        data, columns, form = masks.ends, masks.columns, RUNS
        count, height, width = masks.shape
    else:
        if masks.dim() not in (3, 4):
            raise ValueError(f"{op}: {argument} must have shape [N, h, w] or [N, C, h, w], got {list(masks.shape)}")
        if masks.dtype not in (torch.bool, torch.uint8):
            check_float(op, argument, masks)
        data, form, count = masks, DENSE, masks.shape[0]
        height, width = masks.shape[-2:]
    if height < 1 or width < 1:
        raise ValueError(f"{op}: {argument} must have at least one pixel, got {height} x {width}")
    padded = (height, width) if padded_size is None else padded_size
    if padded[0] < height or padded[1] < width:
        raise ValueError(f"{op}: padded_size must be at least the size of {argument}, {height} x {width}, got {padded}")
    return data, columns, form, [height, width, int(padded[0]), int(padded[1])], count


def sample_points(
    maps: MaskSource,
    points: Tensor,
    *,
    index: Tensor | None = None,
    padded_size: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Bilinear samples of maps or masks at points.

    Equals ``grid_sample(maps, 2 * points - 1, padding_mode="zeros", align_corners=False)``: pixel centres lie at
    ``(x + 0.5) / w``, and what lies outside is 0.

    Args:
        maps: [N, C, h, w] or [N, h, w], float32, float64, float16, bfloat16, bool or uint8 (used as numbers);
            or :class:`PackedMasks`, or :class:`RunLengthMasks`, read where they are sampled and never unpacked.
        points: [N, P, 2], or [1, P, 2] or [P, 2] for all maps alike; (x, y) in [0, 1], any value allowed.
        index: [n] int64: row i of the result reads map index[i] at points[i] (then points are [n or 1, P, 2]).
            Not differentiable; for gradients index the maps themselves.
        padded_size: (H, W) of the padded image that points span, when maps are its upper left corner; the padding is 0.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [N, C, P], or [N, P] of maps [N, h, w]; in the dtype of float maps, else in that of points (float32 or
        float64). Half types are computed in float32. Gradients flow to float maps, not to points. On a GPU the backward
        pass adds atomically, in an order that varies, unless ``torch.use_deterministic_algorithms`` is set.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: PointRend (Kirillov et al., CVPR 2020), point_sample.
    """
    data, columns, form, extent, count = source_arguments(_SAMPLE, "maps", maps, padded_size)
    floats = data.is_floating_point()
    if index is not None:
        if index.dim() != 1 or index.dtype != torch.int64:
            raise ValueError(f"{_SAMPLE}: index must be int64 [n], got {index.dtype} {list(index.shape)}")
        if floats and data.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{_SAMPLE}: index must be None for maps that need a gradient, got an index")
        count = len(index)
    dtype = data.dtype if floats else points.dtype
    points = as_points(_SAMPLE, points, count, accumulator(dtype), data.device)
    if use_reference(backend, _SAMPLE):
        return reference.sample_points(maps, points, index=index, padded_size=padded_size)
    single = form != DENSE or data.dim() == 3
    if floats and data.device.type == "cpu":
        data = data.to(accumulator(dtype))
    sampled: Tensor = call(torch.ops.fssops.sample_points.default, data, columns, index, form, extent, points)
    sampled = sampled.to(dtype) if floats else sampled
    return sampled[:, 0] if single else sampled


def uniform_points(
    rows: int,
    points: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Tensor:
    """Uniform points for masks, from a generator that can be seeded.

    On a CPU the generator draws one seed, and all threads make the points from counters (Philox4x32-10, Salmon et al.,
    SC 2011): faster than ``torch.rand``, and the same whatever the number of threads. Elsewhere they are
    ``torch.rand``'s.

    Args:
        rows: N, at least 0.
        points: P, at least 0.
        device: where the points are made.
        generator: of that device; None takes the device's default.
        backend: ``native`` or ``reference``, which give the same points; by default what FSSOPS_BACKEND says.

    Returns:
        [N, P, 2] float32, (x, y) in [0, 1), multiples of 2^-24.

    Raises:
        ValueError: rows or points are negative.
    """
    for name, value in (("rows", rows), ("points", points)):
        if value < 0:
            raise ValueError(f"{_UNIFORM}: {name} must be at least 0, got {value}")
    if torch.device(device).type != "cpu" or use_reference(backend, _UNIFORM):
        return reference.uniform_points(rows, points, device=device, generator=generator)
    drawn: Tensor = torch.ops.fssops.uniform_points.default(draw_seed(generator), rows, points)
    return drawn


def uncertain_points(
    logits: Tensor | FactoredMasks,
    num_points: int,
    *,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    generator: torch.Generator | None = None,
    given_draws: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Points for a mask loss: mostly where the predicted mask is least certain.

    Of ``int(oversample_ratio P)`` uniform candidates the ``int(importance_ratio P)`` with logits nearest to 0 are kept,
    in the order in which they were drawn (of equals the first), and uniform points fill up to P. A NaN logit counts as
    least certain. The choice is deterministic; no gradient flows.

    Args:
        logits: [N, h, w] of a float dtype, or :class:`FactoredMasks`.
        num_points: P, at least 1.
        oversample_ratio: at least 1.
        importance_ratio: in [0, 1].
        generator: for the draws, of the device of logits; None takes the device's default.
        given_draws: (candidates [N, M, 2], uniform [N, U, 2]) instead of drawing: P - U candidates are kept.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [N, P, 2], (x, y) in [0, 1): float64 for float64 logits, else float32.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: PointRend (Kirillov et al., CVPR 2020), section 3.1; Mask2Former (Cheng et al., CVPR 2022), section 3.3.
    """
    with torch.no_grad():
        maps = logits.logits() if isinstance(logits, FactoredMasks) else logits.detach()
        if maps.dim() != 3:
            raise ValueError(f"{_UNCERTAIN}: logits must have shape [N, h, w], got {list(maps.shape)}")
        check_float(_UNCERTAIN, "logits", maps)
        if 0 in maps.shape[1:]:
            raise ValueError(f"{_UNCERTAIN}: logits must have at least one pixel, got {list(maps.shape)}")
        if num_points < 1:
            raise ValueError(f"{_UNCERTAIN}: num_points must be at least 1, got {num_points}")
        if not oversample_ratio >= 1:
            raise ValueError(f"{_UNCERTAIN}: oversample_ratio must be at least 1, got {oversample_ratio}")
        if not 0 <= importance_ratio <= 1:
            raise ValueError(f"{_UNCERTAIN}: importance_ratio must be in [0, 1], got {importance_ratio}")
        if given_draws is None:
            counts = int(num_points * oversample_ratio), num_points - int(importance_ratio * num_points)
            options: dict[str, Any] = {"device": maps.device, "generator": generator, "backend": backend}
            given_draws = (
                uniform_points(len(maps), counts[0], **options),
                uniform_points(len(maps), counts[1], **options),
            )
        candidates, uniform = (draws.detach().to(accumulator(maps.dtype)) for draws in given_draws)
        for name, draws in (("candidates", candidates), ("uniform points", uniform)):
            if draws.dim() != 3 or draws.shape[0] != len(maps) or draws.shape[2] != 2 or draws.device != maps.device:
                raise ValueError(
                    f"{_UNCERTAIN}: {name} must have shape [{len(maps)}, ., 2] on {maps.device}, got "
                    f"{list(draws.shape)} on {draws.device}"
                )
        from_candidates = num_points - uniform.shape[1]
        if not 0 <= from_candidates <= candidates.shape[1]:
            raise ValueError(
                f"{_UNCERTAIN}: given_draws must leave 0 to {candidates.shape[1]} of {num_points} points to the "
                f"candidates, got {from_candidates}"
            )
        if use_reference(backend, _UNCERTAIN):
            return reference.uncertain_points(maps, num_points, given_draws=(candidates, uniform))
        if maps.device.type == "cpu":
            maps = maps.to(accumulator(maps.dtype))
        points: Tensor = torch.ops.fssops.uncertain_points.default(maps, candidates, uniform, from_candidates)
        return points


def _fake_sample(
    maps: Tensor, columns: Tensor | None, index: Tensor | None, form: int, extent: list[int], points: Tensor
) -> Tensor:
    rows = maps.shape[0] if columns is None else columns.shape[0]
    rows = rows if index is None else index.shape[0]
    channels = maps.shape[1] if form == DENSE and maps.dim() == 4 else 1
    dtype = maps.dtype if maps.is_floating_point() else points.dtype
    return points.new_empty((rows, channels, points.shape[1]), dtype=dtype)


def _fake_sample_backward(grad: Tensor, extent: list[int], points: Tensor, deterministic: bool) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], extent[0], extent[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, _, index, _, extent, points = inputs
    ctx.save_for_backward(points)
    ctx.extent, ctx.shape, ctx.indexed = extent, maps.shape, index is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
    (points,) = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        return None, None, None, None, None, None
    if ctx.indexed:
        raise RuntimeError(f"{_SAMPLE}: index must be None for maps that need a gradient, got an index")
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_maps = torch.ops.fssops.sample_points_backward.default(grad, ctx.extent, points, deterministic)
    return grad_maps.view(ctx.shape), None, None, None, None, None


def _fake_uncertain(logits: Tensor, candidates: Tensor, uniform: Tensor, keep: int) -> Tensor:
    return candidates.new_empty((candidates.shape[0], keep + uniform.shape[1], 2))


register(_SAMPLE, fake=_fake_sample, backward=_backward, setup_context=_setup_context)
register(f"{_SAMPLE}_backward", fake=_fake_sample_backward, autocast_cpu=False)


def _fake_uniform(seed: Tensor, rows: int, points: int) -> Tensor:
    return seed.new_empty((rows, points, 2), dtype=torch.float32)


register(_UNCERTAIN, fake=_fake_uncertain)
register(_UNIFORM, fake=_fake_uniform, autocast_cpu=False)
