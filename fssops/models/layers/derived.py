"""What prediction makes of a module's tensors once: folded kernels, joined matrices, weights in autocast's type."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = tuple[Tensor | None, ...]


def autocast_type(like: Tensor) -> torch.dtype | None:
    """The type that autocast computes products in on a tensor's device; None where it is off."""
    kind = like.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as autocast gives it to a product: in ``dtype``, but for float64, which it leaves alone."""
    return tensor if dtype is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def for_products(tensor: Tensor) -> Tensor:
    """A tensor as autocast would give it to each of several products, once.

    Where gradients are recorded it stays as it is: what the products send back is then added up in its own type.
    """
    return tensor if torch.is_grad_enabled() else cast(tensor, autocast_type(tensor))


class _Kept(NamedTuple):
    key: Hashable
    sources: Tensors
    states: tuple[object, ...]
    memory: Tensors
    """Of the sources, held so that no other tensor can come to lie at the same address."""
    made: Tensors


class DerivingModule(nn.Module):
    """A module that keeps what it makes of its tensors as long as they are what it was made of.

    A source is known by itself, its memory and PyTorch's count of its changes in place, so that training, loading,
    moving and replacing it are noticed wherever they happen. The count misses what autograd misses too, changes through
    ``.data`` or a NumPy array of the same memory: for those call ``eval()`` or ``train()``, which forget what is kept.
    It is no part of the state dict, of copies or of pickles.
    """

    _kept: _Kept | None = None

    def kept(self, sources: Tensors, key: Hashable, make: Callable[[], Tensors]) -> Tensors | None:
        """What ``make`` returns, kept until a source changes; None where it must be made anew for each call.

        That is where a gradient should reach a source, where PyTorch traces or transforms the call, and where a change
        would not be noticed. One result is kept.

        Args:
            sources: all tensors that it is made of, the same objects in every call.
            key: what it depends on beside them.
            make: in float32 whatever autocast says, without gradients.
        """
        if torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() and any(source is not None and source.requires_grad for source in sources):
            return None
        kept = self._kept
        if (
            kept is not None
            and kept.key == key
            and all(map(operator.is_, kept.sources, sources))
            and kept.states == tuple(map(_state, sources))
        ):
            return kept.made
        if torch._C._are_functorch_transforms_active() or not all(map(_tells_its_changes, sources)):
            return None
        states = tuple(map(_state, sources))
        device = next(source.device.type for source in sources if source is not None)
        # No inference-mode tensor: the same one may serve a training step next.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            made = make()
            memory = tuple(None if source is None else source.detach() for source in sources)
        # A tensor of another class belongs to a mode, such as one of fakes, and what is captured in a CUDA graph is
        # computed by the graph alone.
        capturing = device == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing and all(tensor is None or type(tensor) in _PLAIN for tensor in made):
            self._kept = _Kept(key, sources, states, memory, made)
        return made

    def in_autocast_type(self, like: Tensor, *tensors: Tensor | None) -> Tensors:
        """Parameters as products of the input ``like`` take them: under autocast cast once, where that can be kept."""
        dtype = autocast_type(like)
        if dtype is None:
            return tensors

        def make() -> Tensors:
            return tuple(None if tensor is None else cast(tensor, dtype) for tensor in tensors)

        return self.kept(tensors, dtype, make) or tensors

    def train(self, mode: bool = True) -> Any:
        """As in ``nn.Module``; what is kept is forgotten."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


class Linear(DerivingModule, nn.Linear):
    """``nn.Linear``, whose weights autocast does not cast anew for every prediction."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C']."""
        weight, bias = self.in_autocast_type(x, self.weight, self.bias)
        assert weight is not None
        return F.linear(x, weight, bias)


class Conv2d(DerivingModule, nn.Conv2d):
    """``nn.Conv2d``, whose weights autocast does not cast anew for every prediction."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C', h', w']."""
        weight, bias = self.in_autocast_type(x, self.weight, self.bias)
        assert weight is not None
        out: Tensor = self._conv_forward(x, weight, bias)
        return out


_PLAIN = (Tensor, nn.Parameter)


def _state(source: Tensor | None) -> object:
    return None if source is None else (source.data_ptr(), source._version, source.shape, source.stride())


def _tells_its_changes(source: Tensor | None) -> bool:
    """Whether a change can be noticed: not of what inference mode made, has no values, or other processes may write."""
    if source is None:
        return True
    plain = type(source) in _PLAIN and not source.is_inference() and not source.is_meta
    return plain and not (source.device.type == "cpu" and source.is_shared())
