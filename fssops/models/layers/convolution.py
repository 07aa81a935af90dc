"""A convolution with its normalisation and activation, and normalisation with frozen statistics."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.derived import DerivingModule, Tensors, autocast_type, cast

Norm = Literal["none", "frozen", "batch", "sync", "group"]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine part; all four vectors are buffers.

    y = x * s + (bias - mean * s) with s = weight / sqrt(var + eps). Within :class:`ConvNorm` it is never run on
    activations: the convolution's kernel takes the scale.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, h, w]."""
        scale, shift = affine_of(self)
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def normalisation(kind: Norm, channels: int) -> nn.Module | None:
    """The normalisation layer of a name; "group" has 32 groups.

    Raises:
        ValueError: the name is unknown.
    """
    if kind == "none":
        return None
    if kind == "frozen":
        return FrozenBatchNorm2d(channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "sync":
        return nn.SyncBatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(32, channels)
    raise ValueError(f"normalisation: kind must be none, frozen, batch, sync or group, got {kind!r}")


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift, each [C], of a batch normalisation that uses its stored statistics."""
    scale: Tensor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class ConvNorm(DerivingModule, nn.Conv2d):
    """Convolution, then normalisation (``norm``), then ReLU, the last two optional.

    A normalisation with fixed statistics (frozen, or batch normalisation in eval mode) is a rescaling of each output
    channel, so the kernel is rescaled instead of the activations: the same values up to rounding, one pass over
    the activations less, and nothing of it kept for the backward pass. Gradients reach the kernel and, where they
    are parameters, the affine part.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as in ``nn.Conv2d``.
        padding: pixels; None keeps the size at stride 1 (odd kernels).
        bias: None means "only without normalisation".
        norm: kind of normalisation.
        activation: end with ReLU, in place.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: Norm = "none",
        activation: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=norm == "none" if bias is None else bias,
        )
        self.norm = normalisation(norm, out_channels)
        self.activation = activation

    def folds(self) -> bool:
        """Whether the normalisation is, at this moment, a fixed rescaling of the output channels."""
        if isinstance(self.norm, FrozenBatchNorm2d):
            return True
        return isinstance(self.norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not self.norm.training

    def kernel(self) -> Tensor:
        """[Cout, Cin, k, k] before the normalisation; layers that store it in another form override this."""
        return self.weight

    def kernel_sources(self) -> tuple[Tensor, ...]:
        """The tensors that :meth:`kernel` is made of."""
        return (self.weight,)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias that include the normalisation; only where :meth:`folds` is true."""
        assert self.norm is not None
        scale, shift = affine_of(self.norm)
        bias = shift if self.bias is None else shift + self.bias * scale
        return self.kernel() * scale[:, None, None, None], bias

    def _prepared(self, folds: bool, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias for a convolution without normalisation, or with it where it folds; kept where they can be.

        Args:
            folds: what :meth:`folds` says.
            dtype: that autocast computes in, or None.
        """

        def make() -> Tensors:
            weight, bias = self.folded() if folds else (self.kernel(), self.bias)
            return cast(weight, dtype), None if bias is None else cast(bias, dtype)

        sources: Tensors = (*self.kernel_sources(), self.bias)
        key: tuple[object, ...] = (folds, dtype)
        if folds:
            norm: Any = self.norm
            # Training does not count as a change of the statistics, but it counts its batches.
            batches = getattr(norm, "num_batches_tracked", None)
            sources = (*sources, norm.weight, norm.bias, norm.running_mean, norm.running_var, batches)
            key = (*key, norm.eps)
        elif dtype is None and type(self).kernel is ConvNorm.kernel:
            return self.weight, self.bias
        made = self.kept(sources, key, make)
        if made is None:
            return self.folded() if folds else (self.kernel(), self.bias)
        weight, bias = made
        assert weight is not None
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, h, w] to [B, Cout, h', w']."""
        folds = self.folds()
        weight, bias = self._prepared(folds, autocast_type(x))
        if folds and weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with self._refolding(weight):
                x = self._conv_forward(x, weight, bias)
        else:
            x = self._conv_forward(x, weight, bias)
        if self.norm is not None and not folds:
            x = self.norm(x)
        return F.relu_(x) if self.activation else x

    def _refolding(self, folded: Tensor) -> torch.autograd.graph.saved_tensors_hooks:
        """Keeps the kernel instead of its folded copy for the backward pass, which folds again: a model's size less."""
        place = folded.data_ptr()

        def pack(saved: Tensor) -> Tensor | None:
            return None if saved.data_ptr() == place else saved

        def unpack(packed: Tensor | None) -> Tensor:
            return self.folded()[0].detach() if packed is None else packed

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def raw(self, x: Tensor) -> Tensor:
        """The convolution alone, before normalisation and activation."""
        out: Tensor = self._conv_forward(x, *self._prepared(False, autocast_type(x)))
        return out

    def finish(self, x: Tensor) -> Tensor:
        """Normalisation and activation of the result of :meth:`raw`, which is left untouched."""
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x) if self.activation else x
