"""Mask losses and matching costs at sampled points.

What it costs, for 20 masks of a 512 x 512 image at 12,544 points each (float32): 4.3 MB are read forward, 9.6 MB move
with the backward pass, which adds to four pixels a point; 2 us at an H200's 4.8 TB/s on paper, if its caches serve the
scattered reads. Costs of 100 queries against 20 targets read 6.0 MB and multiply 0.1 GFLOP. No mask is upsampled, and
targets may stay packed, an eighth or less of their bytes. Choosing the points draws three candidates a point,
which :func:`fssops.ops.uniform_points` makes from counters on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, register, use_reference
from fssops.ops.point_sampling import DENSE, VALUES, accumulator, as_points, sample_points, source_arguments
from fssops.reference.mask_sources import FactoredMasks, MaskSource

_LOSS, _COST = "point_mask_loss", "pairwise_mask_cost"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_PIXELS_PER_POINT = 32
"""Factored masks are multiplied out, mask by mask, up to this many pixels a point, beyond that features are sampled: a
sampled value costs about as much as this many products read in a row."""


def point_mask_loss(
    logits: Tensor | FactoredMasks,
    targets: MaskSource,
    points: Tensor | None,
    num_masks: Tensor | float = 1.0,
    *,
    target_index: Tensor | None = None,
    padded_size: tuple[int, int] | None = None,
    reduction: str = "sum",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Sigmoid cross-entropy and dice loss of N masks, each at P points of its own.

    With logits x, targets t and :math:`s = \sigma(x)` at the points of a mask,

    .. math::
        \ell_{mask} = \frac{1}{P} \sum_p \mathrm{softplus}(x_p) - x_p t_p, \qquad
        \ell_{dice} = 1 - \frac{2 \sum_p s_p t_p + 1}{\sum_p s_p + \sum_p t_p + 1},

    summed over masks and divided by ``num_masks``. One pass samples both maps and keeps two numbers a point; the
    backward pass spreads their gradients over the logits. Nothing is upsampled.

    Args:
        logits: [N, h, w] float32, float64, float16 or bfloat16; or :class:`FactoredMasks`, for gradients to embeddings
            and features without the logits of any other mask; or [N, P] at the points already.
        targets: masks in [0, 1] at any resolution, [M, H, W] (float, bool, uint8), :class:`PackedMasks` or
            :class:`RunLengthMasks`; or [N, P] float, sampled already. No gradient.
        points: [N or 1, P, 2], (x, y) in [0, 1]; None when logits and targets are [N, P].
        num_masks: what the losses are divided by: a number, or a tensor of one number (read on its device).
        target_index: [N] int64, which target each mask is compared with; None for N targets in order.
        padded_size: (H, W) of the padded image that points span, when targets are its upper left corner.
        reduction: ``sum`` over masks, or ``none``.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        (loss_mask, loss_dice), each a scalar, or [N] without reduction; float64 for float64 logits, else float32.
        0 for N = 0, and still part of the graph. On a GPU the backward pass adds atomically, in an order that varies,
        unless ``torch.use_deterministic_algorithms`` is set; the losses themselves are always reproducible.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Mask2Former (Cheng et al., CVPR 2022), section 3.3 and loss_masks of its code; dice: V-Net (Milletari et
    al., 3DV 2016) with +1 smoothing, as in DETR's segmentation head.
    """
    if reduction not in ("sum", "none"):
        raise ValueError(f"{_LOSS}: reduction must be sum or none, got {reduction!r}")
    if isinstance(logits, FactoredMasks):
        if points is None:
            raise ValueError(f"{_LOSS}: points must be given for factored masks, got None")
        features = logits.features
        points = as_points(_LOSS, points, len(logits.embeddings), accumulator(features.dtype), features.device)
        logits = _factored_logits(logits, points, backend)
    at_points = logits.dim() == 2
    if logits.dim() not in (2, 3):
        raise ValueError(f"{_LOSS}: logits must have shape [N, h, w] or [N, P], got {list(logits.shape)}")
    check_float(_LOSS, "logits", logits)
    if not at_points and 0 in logits.shape[1:]:
        raise ValueError(f"{_LOSS}: logits must have at least one pixel, got {list(logits.shape)}")
    rows, dtype = logits.shape[0], accumulator(logits.dtype)
    if points is not None:
        points = as_points(_LOSS, points, rows, dtype, logits.device)
    elif not at_points:
        raise ValueError(f"{_LOSS}: points must be given for maps, got None")
    num_points = logits.shape[1] if points is None or at_points else points.shape[1]
    if num_points < 1:
        raise ValueError(f"{_LOSS}: points must be at least one a mask, got {num_points}")
    if isinstance(targets, Tensor) and targets.dim() == 2:
        check_float(_LOSS, "targets", targets)
        if targets.shape != (rows, num_points):
            raise ValueError(f"{_LOSS}: targets must have shape {[rows, num_points]}, got {list(targets.shape)}")
        if target_index is not None:
            raise ValueError(f"{_LOSS}: target_index must be None for targets at points, got an index")
        targets, columns, form, extent = targets.detach().to(dtype), None, VALUES, [1, 1, 1, 1]
    else:
        if points is None:
            raise ValueError(f"{_LOSS}: points must be given for masks, got None")
        data, columns, form, extent, count = source_arguments(_LOSS, "targets", targets, padded_size)
        if form == DENSE and data.dim() != 3:
            raise ValueError(f"{_LOSS}: targets must have shape [M, H, W], got {list(data.shape)}")
        if target_index is None and count != rows:
            raise ValueError(f"{_LOSS}: targets must be {rows} masks unless target_index is given, got {count}")
        if target_index is not None and (target_index.dtype != torch.int64 or target_index.shape != (rows,)):
            raise ValueError(
                f"{_LOSS}: target_index must be int64 [{rows}], got {target_index.dtype} {list(target_index.shape)}"
            )
        if points.shape[1] != num_points:
            raise ValueError(f"{_LOSS}: points must be {num_points} as logits [N, P] are, got {points.shape[1]}")
    if isinstance(num_masks, Tensor) and num_masks.numel() != 1:
        raise ValueError(f"{_LOSS}: num_masks must be one number, got shape {list(num_masks.shape)}")
    if use_reference(backend, _LOSS):
        if at_points and form != VALUES and points is not None:
            targets = sample_points(targets, points, index=target_index, padded_size=padded_size, backend="reference")
            target_index = padded_size = None
        own_points = None if at_points else points
        return reference.point_mask_loss(
            logits, targets, own_points, num_masks, target_index=target_index, padded_size=padded_size,
            reduction=reduction,
        )  # fmt: skip
    data = targets if form == VALUES else data  # type: ignore[assignment]
    if logits.device.type == "cpu":
        logits = logits.to(dtype)
        data = data.to(dtype) if data.is_floating_point() else data
    elif form == DENSE and data.is_floating_point() and dtype == torch.float32 and data.dtype == torch.float64:
        data = data.to(dtype)
    divisor = 1.0
    divisor_tensor = None
    if isinstance(num_masks, Tensor):
        divisor_tensor = num_masks.detach().to(logits.device, dtype).reshape(())
    else:
        divisor = float(num_masks)
    save = logits.requires_grad and torch.is_grad_enabled()
    mask, dice, *_ = call(torch.ops.fssops.point_mask_loss.default, 
        logits, data.detach(), columns, target_index, form, extent, points, divisor_tensor, divisor,
        reduction == "sum", save,
    )  # fmt: skip
    return mask, dice


def _factored_logits(masks: FactoredMasks, points: Tensor, backend: str | None) -> Tensor:
    """Logits [N, h, w], or [N, P] at the points where those are far fewer than the pixels."""
    num_points = points.shape[1]
    if (
        masks.features.shape[2] * masks.features.shape[3] <= _PIXELS_PER_POINT * num_points
        or len(masks.embeddings) == 0
    ):
        return masks.logits()
    per_mask = points.expand(len(masks.embeddings), -1, -1)
    logits, start = [], 0
    for embeddings, features in masks.per_image():
        count = len(embeddings)
        if count == 0:
            continue
        at_points = sample_points(features[None], per_mask[start : start + count].reshape(1, -1, 2), backend=backend)
        at_points = at_points.view(features.shape[0], count, num_points)
        logits.append(torch.einsum("nc,cnp->np", embeddings, at_points))
        start += count
    return torch.cat(logits)


def pairwise_mask_cost(
    logits: Tensor | FactoredMasks,
    targets: MaskSource,
    points: Tensor | None = None,
    *,
    class_logits: Tensor | None = None,
    labels: Tensor | None = None,
    mask_weight: float = 5.0,
    class_weight: float = 2.0,
    dice_weight: float = 5.0,
    padded_size: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Matching cost of every predicted mask of an image with every target, at points that all share.

    .. math:: C_{qg} = w_{mask}\, \ell_{mask}(x_q, t_g) - w_{class}\, \mathrm{softmax}(z_q)_{c_g}
              + w_{dice}\, \ell_{dice}(x_q, t_g)

    with the losses of :func:`point_mask_loss`. Since both are linear in t, two matrix products over the points suffice;
    softplus and sigmoid are formed as logits are read, and nothing of size [Q, G, P] is.

    Args:
        logits: [Q, P] at the points; or maps [Q, h, w]; or :class:`FactoredMasks` with features [T, C, h, w] of the T
            frames of a clip (T = 1 for an image), whose features are sampled before they are multiplied.
        targets: [G, P] in [0, 1] at the points; or masks [G, H, W] (of a clip [G T, H, W], frames fastest), dense,
            :class:`PackedMasks` or :class:`RunLengthMasks`.
        points: [P, 2] or [1, P, 2], (x, y) in [0, 1]; None when both are given at points. The frames of a clip share
            the points, and all T P values of a mask count alike.
        class_logits: [Q, classes]; None leaves the class term out.
        labels: [G] int64, given with class_logits.
        mask_weight: of the cross-entropy; published 5.
        class_weight: of the class term; published 2.
        dice_weight: of the dice; published 5.
        padded_size: (H, W) of the padded image that points span, when targets are its upper left corner.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [Q, G], float64 for float64 logits, else float32. No gradient. Deterministic on every device.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Mask2Former (Cheng et al., CVPR 2022), matcher of its code; DETR (Carion et al., ECCV 2020), equation 1.
    """
    with torch.no_grad():
        frames = 1
        if isinstance(logits, FactoredMasks):
            if points is None:
                raise ValueError(f"{_COST}: points must be given for factored masks, got None")
            frames = logits.features.shape[0]
            x = _logits_at_shared_points(logits, points, backend)
        elif logits.dim() == 3:
            if points is None:
                raise ValueError(f"{_COST}: points must be given for maps, got None")
            x = sample_points(_full_precision(logits), points, backend=backend)
        else:
            x = logits
        if x.dim() != 2 or x.shape[1] < 1:
            raise ValueError(f"{_COST}: logits must have shape [Q, P] with P at least 1, got {list(x.shape)}")
        check_float(_COST, "logits", x)
        x = _full_precision(x)
        if isinstance(targets, Tensor) and targets.dim() == 2:
            t = targets
        else:
            if points is None:
                raise ValueError(f"{_COST}: points must be given for masks, got None")
            if isinstance(targets, Tensor) and targets.is_floating_point():
                targets = targets.to(x.dtype)  # half types would round what is sampled
            t = sample_points(targets, points.to(x.dtype), padded_size=padded_size, backend=backend)
            if t.shape[0] % frames:
                raise ValueError(f"{_COST}: targets must be a mask for each of {frames} frames, got {t.shape[0]} masks")
            t = t.reshape(t.shape[0] // frames, -1) if t.numel() else t.new_zeros(0, x.shape[1])
        t = t.to(x.dtype)
        if t.shape[1] != x.shape[1] or t.device != x.device:
            raise ValueError(
                f"{_COST}: targets must have the {x.shape[1]} points and the device of logits, {x.device}, got "
                f"{list(t.shape)} on {t.device}"
            )
        if (class_logits is None) != (labels is None):
            raise ValueError(f"{_COST}: class_logits and labels must be given together, got one of them")
        if class_logits is not None and labels is not None:
            if class_logits.dim() != 2 or class_logits.shape[0] != x.shape[0]:
                raise ValueError(
                    f"{_COST}: class_logits must have shape [{x.shape[0]}, classes], got {list(class_logits.shape)}"
                )
            if labels.shape != (t.shape[0],) or labels.dtype != torch.int64:
                raise ValueError(
                    f"{_COST}: labels must be int64 [{t.shape[0]}], got {labels.dtype} {list(labels.shape)}"
                )
            class_logits = class_logits.to(x.dtype)
        if use_reference(backend, _COST):
            return reference.pairwise_mask_cost(
                x, t, class_logits=class_logits, labels=labels, mask_weight=mask_weight, class_weight=class_weight,
                dice_weight=dice_weight,
            )  # fmt: skip
        cost: Tensor = torch.ops.fssops.pairwise_mask_cost.default(
            x, t, class_logits, labels, mask_weight, class_weight, dice_weight
        )
        return cost


def _full_precision(tensor: Tensor) -> Tensor:
    """float64 stays, the rest becomes float32."""
    return tensor.detach().to(accumulator(tensor.dtype))


def _logits_at_shared_points(masks: FactoredMasks, points: Tensor, backend: str | None) -> Tensor:
    """Logits [Q, T P] of every embedding in every frame."""
    features, embeddings = _full_precision(masks.features), _full_precision(masks.embeddings)
    if features.shape[2] * features.shape[3] <= points.shape[-2]:
        maps = (embeddings @ features.flatten(2)).unflatten(2, features.shape[2:])  # [T, Q, h, w]
        return sample_points(maps, points, backend=backend).transpose(0, 1).flatten(1)
    sampled = sample_points(features, points, backend=backend)  # [T, C, P]
    return (embeddings @ sampled).transpose(0, 1).flatten(1)


def _fake_loss(
    logits: Tensor,
    targets: Tensor,
    columns: Tensor | None,
    index: Tensor | None,
    form: int,
    extent: list[int],
    points: Tensor | None,
    num_masks: Tensor | None,
    divisor: float,
    reduce: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], accumulator(logits.dtype)
    count = logits.shape[1] if points is None else points.shape[1]
    shape = () if reduce else (rows,)
    saved = (rows if save else 0, count)
    shapes = (shape, shape, saved, saved, (rows, 2))
    mask, dice, probabilities, targets_at, stats = (logits.new_empty(s, dtype=dtype) for s in shapes)
    return mask, dice, probabilities, targets_at, stats


def _fake_loss_backward(
    grad_mask: Tensor,
    grad_dice: Tensor,
    probabilities: Tensor,
    targets_at: Tensor,
    stats: Tensor,
    size: list[int],
    dtype: int,
    points: Tensor | None,
    num_masks: Tensor | None,
    divisor: float,
    reduce: bool,
    deterministic: bool,
) -> Tensor:
    rows, count = probabilities.shape
    shape = (rows, size[0], size[1]) if len(size) == 2 else (rows, count)
    return probabilities.new_empty(shape, dtype=_DTYPES[dtype])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, points, num_masks, divisor, reduce = inputs[0], *inputs[6:10]
    ctx.size = list(logits.shape[1:]) if logits.dim() == 3 else []
    ctx.dtype, ctx.divisor, ctx.reduce = _DTYPES.index(logits.dtype), divisor, reduce
    _, _, probabilities, targets_at, stats = output
    ctx.save_for_backward(probabilities, targets_at, stats, None if logits.dim() == 2 else points, num_masks)
    ctx.mark_non_differentiable(probabilities, targets_at, stats)


def _backward(ctx: Any, grad_mask: Tensor, grad_dice: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 10
    if not ctx.needs_input_grad[0]:
        return None, *nothing
    probabilities, targets_at, stats, points, num_masks = ctx.saved_tensors
    grad_logits = torch.ops.fssops.point_mask_loss_backward.default(
        grad_mask, grad_dice, probabilities, targets_at, stats, ctx.size, ctx.dtype, points, num_masks, ctx.divisor,
        ctx.reduce, torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return grad_logits, *nothing


def _fake_cost(
    logits: Tensor,
    targets: Tensor,
    class_logits: Tensor | None,
    labels: Tensor | None,
    mask_weight: float,
    class_weight: float,
    dice_weight: float,
) -> Tensor:
    return logits.new_empty((logits.shape[0], targets.shape[0]))


register(_LOSS, fake=_fake_loss, backward=_backward, setup_context=_setup_context)
register(f"{_LOSS}_backward", fake=_fake_loss_backward, autocast_cpu=False)
register(_COST, fake=_fake_cost)
