"""Optimal assignment of predictions to targets, for a batch of cost matrices at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fssops import _native
from fssops.ops._backend import use_reference

if TYPE_CHECKING:
    import numpy as np

    Costs = Tensor | np.ndarray[Any, np.dtype[Any]]

_OP = "assign"
_ENTRIES_PER_THREAD = 100_000
"""Costs that take about as long as a few starts of a thread."""


def assign(costs: Sequence[Costs], *, backend: str | None = None) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows and columns of least total cost, one assignment a matrix.

    Every row or every column, whichever are fewer, gets a partner of its own. Same result as
    ``scipy.optimize.linear_sum_assignment`` matrix by matrix, also among equal optima; computed on the host in float64,
    with one transfer from and one to the device for all matrices, on several threads where that pays, and with
    Python's lock released.

    Args:
        costs: matrices [Q, G] of any sizes (also empty), tensors of one device or NumPy arrays. +inf forbids a pair.
        backend: ``native``, or ``reference`` for scipy; by default what FSSOPS_BACKEND says.

    Returns:
        (rows, columns) of each matrix, two int64 [min(Q, G)] on the device of the costs, by ascending row.

    Raises:
        ValueError: NaN or -inf, or infinite costs that leave no complete assignment; names the matrix and the entry.

    Source: Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and
    Electronic Systems, 2016.
    """
    matrices = [cost if isinstance(cost, Tensor) else torch.as_tensor(cost) for cost in costs]
    if not matrices:
        return []
    device = matrices[0].device
    for number, matrix in enumerate(matrices):
        if matrix.dim() != 2:
            raise ValueError(f"{_OP}: costs[{number}] must have shape [Q, G], got {list(matrix.shape)}")
        if matrix.is_complex():
            raise TypeError(f"{_OP}: costs[{number}] must be real, got {matrix.dtype}")
        if matrix.device != device:
            raise ValueError(
                f"{_OP}: costs[{number}] must be on the device of the first, {device}, got {matrix.device}"
            )
    shapes: list[tuple[int, int]] = [tuple(matrix.shape) for matrix in matrices]  # type: ignore[misc]
    flat = torch.cat([matrix.reshape(-1) for matrix in matrices]).detach().cpu()
    if flat.dtype != torch.float32:  # float32 becomes float64 on the way into the native function
        flat = flat.double()
    if use_reference(backend, _OP):
        return _by_scipy(flat, shapes, device)
    threads = max(1, min(os.cpu_count() or 1, flat.numel() // _ENTRIES_PER_THREAD))
    rows, columns = _native.extension().assign(flat.numpy(), shapes, threads)
    pairs = [min(shape) for shape in shapes]
    both = torch.stack((torch.from_numpy(rows), torch.from_numpy(columns))).to(device)
    return list(zip(both[0].split(pairs), both[1].split(pairs), strict=True))


def _by_scipy(flat: Tensor, shapes: list[tuple[int, int]], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    from scipy.optimize import linear_sum_assignment

    found = []
    for number, (shape, entries) in enumerate(zip(shapes, flat.split([q * g for q, g in shapes]), strict=True)):
        try:
            rows, columns = linear_sum_assignment(entries.view(shape).numpy())
        except ValueError as error:
            raise ValueError(
                f"{_OP}: costs[{number}] must have an assignment, got a matrix refused: {error}"
            ) from error
        found.append((torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)))
    return found
