"""What the parts of a step, micro-batches and processes, settle together: counts, a norm, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fssops.engine.settings import OptimSettings
from fssops.models.interface import Counted
from fssops.structures import StepShare


def share_counts(fabric: Fabric, model: nn.Module, batches: Sequence[Any]) -> None:
    """Tell the parts of a step what all of them together count, where there is more than one.

    Args:
        fabric: launched.
        model: one that is :class:`fssops.models.interface.Counted` divides its losses by these counts.
        batches: of this process; each gets ``share``.
    """
    parts = len(batches) * fabric.world_size
    if parts == 1 or not isinstance(model, Counted):
        return
    counts = [model.loss_counts(batch) for batch in batches]
    names = sorted({name for of_batch in counts for name in of_batch})
    sums = [sum(of_batch.get(name, 0.0) for of_batch in counts) for name in names]
    totals = torch.tensor(sums, dtype=torch.float64)
    if fabric.world_size > 1:
        reduced = fabric.all_reduce(totals.to(fabric.device), reduce_op="sum")
        totals = reduced.cpu()  # type: ignore[union-attr]
    share = StepShare(dict(zip(names, totals.tolist(), strict=True)), parts)
    for batch in batches:
        batch.share = share


def agree(fabric: Fabric, bad: bool, stop: bool) -> tuple[bool, bool]:
    """Whether any process met a bad number, and whether any was asked to stop: all must do the same."""
    if fabric.world_size == 1:
        return bad, stop
    flags = torch.tensor([float(bad), float(stop)], device=fabric.device)
    flags = fabric.all_reduce(flags, reduce_op="sum")  # type: ignore[assignment]
    return bool(flags[0] > 0), bool(flags[1] > 0)


def clip_gradients(fabric: Fabric, model: nn.Module, optimizer: Any, settings: OptimSettings) -> float:
    """Clip the gradient of the whole model, by value and then by norm.

    Args:
        fabric: launched.
        model: after the backward pass of all parts.
        optimizer: as set up by Fabric; the scale of fp16 is taken out of its gradients first.
        settings: ``clip_value`` and ``clip_norm``.

    Returns:
        the L2 norm before it is clipped.
    """
    precision = fabric.strategy.precision
    if getattr(precision, "scaler", None) is not None:
        precision.unscale_gradients(getattr(optimizer, "optimizer", optimizer))
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if settings.clip_value:
        torch.nn.utils.clip_grad_value_(parameters, settings.clip_value)
    if not parameters:
        return 0.0
    # Gradients are whole on every process under DDP; those of FSDP are DTensors, whose norm is that of the whole.
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if settings.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
    return float(norm)


def scale_can_fall(fabric: Fabric) -> bool:
    """Whether fp16's scale of the losses may still be lowered, so that infinite gradients are no fault yet."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return scaler is not None and float(scaler.get_scale()) > 1.0
