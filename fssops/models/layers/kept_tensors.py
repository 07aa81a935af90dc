"""Tensors that depend on a size and a device alone, kept so that the next image of that size finds them made."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

LIMIT = 64 << 20
"""Bytes that are kept; images of all sizes, one after the other, would else fill the memory with what no one needs."""


class KeptTensors:
    """The tensors made last; not a module: nothing here is trained or saved.

    The newest is kept however large it is.

    Args:
        limit: bytes kept together.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: dict[Hashable, Tensor] = {}

    def of(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, which is made if it is not kept."""
        found = self._kept.get(key)
        if found is None:
            # No inference-mode tensor: the same one may serve a training step next.
            with torch.inference_mode(False):
                found = make()
            while self._kept and self.bytes_kept + found.nbytes > self.limit:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = found
        return found

    @property
    def bytes_kept(self) -> int:
        """Size of all that is kept now."""
        return sum(tensor.nbytes for tensor in self._kept.values())
