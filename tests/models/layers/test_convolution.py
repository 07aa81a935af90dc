"""Convolution with normalisation: folding is exact, passes gradients, and can be made permanent."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssops.models.layers.convolution import ConvNorm, FrozenBatchNorm2d


def layer(norm: str, **options: object) -> ConvNorm:
    made = ConvNorm(3, 32, 3, norm=norm, **options).double()  # type: ignore[arg-type]
    for name, value in made.state_dict().items():
        if name.startswith("norm") and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.25)
    return made


def unfolded(made: ConvNorm, x: torch.Tensor) -> torch.Tensor:
    norm = made.norm
    assert norm is not None
    y = F.conv2d(x, made.weight, made.bias, made.stride, made.padding, made.dilation)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
@pytest.mark.parametrize("bias", [False, True])
def test_fixed_normalisation_folds_with_equal_values_and_gradients(norm: str, bias: bool) -> None:
    made = layer(norm, bias=bias, stride=2, dilation=2).eval()
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64, requires_grad=True)
    assert made.folds()
    expected = unfolded(made, x)
    found = made(x)
    torch.testing.assert_close(found, expected)
    leaves = [x, *made.parameters()]
    upstream = torch.randn_like(found)
    for got, want in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_batch_norm_in_training_uses_and_updates_batch_statistics() -> None:
    made = layer("batch", activation=True).train()
    before = made.norm.running_mean.clone()  # type: ignore[union-attr,operator]
    out = made(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    assert not made.folds()
    assert not torch.equal(made.norm.running_mean, before)  # type: ignore[union-attr,arg-type]
    assert (out >= 0).all()


def test_frozen_statistics_never_change_and_are_no_parameters() -> None:
    made = layer("frozen").train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    made(torch.randn(4, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert [name for name, _ in made.named_parameters()] == ["weight"]
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_frozen_norm_alone_equals_batch_norm_in_eval_mode() -> None:
    frozen, batch = FrozenBatchNorm2d(5).double(), nn.BatchNorm2d(5).double().eval()
    for name, value in frozen.state_dict().items():
        value.copy_(torch.rand_like(value) + 0.1)
        batch.state_dict()[name].copy_(value)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(frozen(x), batch(x))


def test_the_folded_kernel_alone_gives_the_output() -> None:
    made = layer("frozen", activation=True).eval()
    plain = copy.deepcopy(made)
    weight, bias = made.folded()
    plain.weight, plain.norm = nn.Parameter(weight), None
    plain.bias = None if bias is None else nn.Parameter(bias)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(x), made(x))
    assert not ConvNorm(32, 32, 1, norm="group").folds()  # it depends on the image


def test_raw_and_finish_compose_to_forward() -> None:
    for norm in ("none", "group", "batch", "frozen"):
        made = layer(norm, activation=True).eval()
        x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
        raw = made.raw(x)
        kept = raw.clone()
        torch.testing.assert_close(made.finish(raw), made(x))
        assert torch.equal(raw, kept)


def test_the_folded_kernel_does_not_outlive_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the kernel itself is kept for the backward pass, not its rescaled copy."""
    module = ConvNorm(4, 8, 3, norm="frozen")
    copies: list[weakref.ref[Tensor]] = []
    original = module.folded

    def recorded() -> tuple[Tensor, Tensor | None]:
        weight, bias = original()
        copies.append(weakref.ref(weight))
        return weight, bias

    monkeypatch.setattr(module, "folded", recorded)
    out = module(torch.randn(1, 4, 9, 9, requires_grad=True))
    assert copies[0]() is None
    out.sum().backward()
    assert module.weight.grad is not None
