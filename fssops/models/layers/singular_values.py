"""Convolutions stored as a product of three, of which the singular values alone are trained.

Source: Sun et al., "Singular value fine-tuning: few-shot segmentation requires few-parameters fine-tuning" (SVF),
NeurIPS 2022, as MM-Former's code uses it. There every convolution runs as two; the product of two linear maps is one,
so here it is formed once, and again only after the singular values have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fssops.models.layers.convolution import ConvNorm

LEFT, VALUES, RIGHT = "left", "singular_values", "right"
"""Names of the three factors in a state dict."""


def plain_name(name: str) -> str:
    """The name of a tensor in a state dict whose kernels are not products."""
    prefix, _, last = name.rpartition(".")
    return f"{prefix}.weight" if last in (LEFT, VALUES, RIGHT) else name


def decomposed(kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, r], s [r] in descending order and V^T [r, I, k, k] of a kernel [O, I, k, k], r = min(O, I k k)."""
    left, values, right = torch.linalg.svd(kernel.detach().flatten(1), full_matrices=False)
    return left, values, right.view(-1, *kernel.shape[1:])


def product(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """The kernel [O, I, k, k] of the factors; they may come with axes of length 1, as the authors store them."""
    rows = left.flatten(1) * values.flatten()
    return (rows @ right.flatten(1)).view(-1, *right.shape[1:])


class SingularValueConv(ConvNorm):
    """A convolution whose kernel is U diag(s) V^T; U and V^T are fixed, s is a parameter.

    Args:
        convolution: is decomposed, and gives its geometry, bias, normalisation and activation.
    """

    left: Tensor
    right: Tensor

    def __init__(self, convolution: ConvNorm) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            int(convolution.kernel_size[0]),
            stride=int(convolution.stride[0]),
            padding=int(convolution.padding[0]),
            dilation=int(convolution.dilation[0]),
            bias=convolution.bias is not None,
            activation=convolution.activation,
        )
        self.norm, self.bias = convolution.norm, convolution.bias
        del self.weight
        left, values, right = decomposed(convolution.weight)
        self.register_buffer(LEFT, left)
        self.register_buffer(RIGHT, right)
        self.singular_values = nn.Parameter(values)

    def kernel(self) -> Tensor:
        """The product."""
        return product(*self.kernel_sources())

    def kernel_sources(self) -> tuple[Tensor, ...]:
        """The factors."""
        return self.left, self.singular_values, self.right


def tune_singular_values(stages: Iterable[nn.ModuleList]) -> None:
    """Replace every :class:`ConvNorm` of the stages of a backbone by its :class:`SingularValueConv`, in place."""
    for stage in stages:
        for module in list(stage.modules()):
            for name, child in list(module.named_children()):
                if type(child) is ConvNorm:
                    setattr(module, name, SingularValueConv(child))


def adapted_kernels(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose kernels are products where the module's are, and plain where the module's are.

    Args:
        module: that the state is for.
        state: names of ``module.state_dict()``; kernels in either form.
    """
    adapted = dict(state)
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(child, SingularValueConv):
            kernel = adapted.pop(f"{prefix}weight", None)
            if kernel is not None:
                parts = zip((LEFT, VALUES, RIGHT), decomposed(kernel.float()), strict=True)
                adapted.update({f"{prefix}{part}": value for part, value in parts})
        elif isinstance(child, ConvNorm) and f"{prefix}{VALUES}" in adapted:
            factors = [adapted.pop(f"{prefix}{part}").float() for part in (LEFT, VALUES, RIGHT)]
            adapted[f"{prefix}weight"] = product(*factors)
    return adapted
