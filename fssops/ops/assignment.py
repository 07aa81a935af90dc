"""Optimal assignment of predictions to targets, for a batch of cost matrices at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from fssops import _native
from fssops.ops._backend import use_reference

Entries = np.ndarray[Any, np.dtype[Any]]
Costs = Union[Tensor, Entries]  # noqa: UP007 - read at run time on Python 3.10

_OP = "assign"
_NUMPY_FLOATS = (torch.float32, torch.float64)


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
    shapes = [tuple(matrix.shape) for matrix in matrices]
    reference = use_reference(backend, _OP)
    # Called directly where nothing is compiled: an operator of torch would cost more than small matrices do.
    solve = _assign_operator if torch.compiler.is_compiling() else _solve
    both = solve([matrix.detach() for matrix in matrices], reference)
    pairs = [min(shape) for shape in shapes]
    return list(zip(both[0].split(pairs), both[1].split(pairs), strict=True))


def _solve(matrices: list[Tensor], reference: bool) -> Tensor:
    """Rows and columns of all matrices, one after the other: int64 [2, pairs]."""
    shapes: list[tuple[int, int]] = [tuple(matrix.shape) for matrix in matrices]  # type: ignore[misc]
    device, flat = matrices[0].device, _entries(matrices)
    if reference:
        return _by_scipy(flat, shapes).to(device)
    rows, columns = _native.extension().assign(flat, shapes)
    return torch.stack((torch.from_numpy(rows), torch.from_numpy(columns))).to(device)


@torch.library.custom_op("fssops::assign", mutates_args=())
def _assign_operator(matrices: list[Tensor], reference: bool) -> Tensor:
    """For torch.compile: work on the host that a compiled graph calls instead of breaking at it."""
    return _solve(matrices, reference)


@_assign_operator.register_fake
def _assign_shape(matrices: list[Tensor], reference: bool) -> Tensor:
    pairs = sum(min(matrix.shape[0], matrix.shape[1]) for matrix in matrices)
    return matrices[0].new_empty((2, pairs), dtype=torch.int64)


def _entries(matrices: list[Tensor]) -> Entries:
    """The entries of all matrices, one after the other, on the host: one transfer from a device."""
    if matrices[0].device.type != "cpu":
        flat = torch.cat([matrix.detach().reshape(-1) for matrix in matrices])
        return np.asarray((flat if flat.dtype in _NUMPY_FLOATS else flat.double()).cpu())
    # NumPy, not PyTorch, puts small matrices together: it wakes no threads.
    on_host = [matrix.detach() if matrix.dtype in _NUMPY_FLOATS else matrix.detach().double() for matrix in matrices]
    return np.concatenate([matrix.numpy().reshape(-1) for matrix in on_host])


def _by_scipy(flat: Entries, shapes: list[tuple[int, int]]) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    pairs = [torch.empty(2, 0, dtype=torch.int64)]
    ends = np.cumsum([queries * targets for queries, targets in shapes])
    for number, (shape, entries) in enumerate(zip(shapes, np.split(flat, ends[:-1]), strict=True)):
        try:
            rows, columns = linear_sum_assignment(entries.reshape(shape))
        except ValueError as error:
            raise ValueError(
                f"{_OP}: costs[{number}] must have an assignment, got a matrix refused: {error}"
            ) from error
        pairs.append(torch.stack((torch.as_tensor(rows), torch.as_tensor(columns))))
    return torch.cat(pairs, dim=1)
