"""A cache of tensors that depend on a size and a device alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

LIMIT = 64 << 20
"""Bytes that are kept; images of all sizes, one after the other, would else fill the memory with what no one needs."""


class TensorCache:
    """The tensors made last, so that the next image of the same size does not make them again.

    Not a module: nothing here is trained or saved. The newest is kept however large it is.

    Args:
        limit: bytes kept together.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._tensors: dict[Hashable, Tensor] = {}

    def of(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, which is made if it is not kept; a compiler, whose graph is kept, makes it in there."""
        if torch.compiler.is_compiling():
            return make()
        tensor = self._tensors.get(key)
        if tensor is None:
            # No inference-mode tensor: the same one may serve a training step next.
            with torch.inference_mode(False):
                tensor = make()
            while self._tensors and self.bytes_kept + tensor.nbytes > self.limit:
                self._tensors.pop(next(iter(self._tensors)))
            self._tensors[key] = tensor
        return tensor

    @property
    def bytes_kept(self) -> int:
        """Size of all that is kept now."""
        return sum(tensor.nbytes for tensor in self._tensors.values())
