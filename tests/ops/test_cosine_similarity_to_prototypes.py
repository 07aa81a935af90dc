"""The cosine with prototypes on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops, reference
from fssops.testing.cases import COSINE_SIMILARITY_TO_PROTOTYPES, PrototypeCase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = pytest.mark.parametrize("case", COSINE_SIMILARITY_TO_PROTOTYPES, ids=lambda c: c.name)


def _inputs(case: PrototypeCase, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    features = torch.randn(case.batch, case.channels, *case.size, dtype=torch.float64).to(device, dtype)
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    return features, torch.randn(case.batch, case.prototypes, case.channels, dtype=torch.float64).to(device, dtype)


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@CASES
def test_values_and_gradients_equal_the_definition(case: PrototypeCase, dtype: torch.dtype, device: str) -> None:
    features, prototypes = _inputs(case, device, dtype)
    got_inputs = features.clone().requires_grad_(), prototypes.clone().requires_grad_()
    want_inputs = features.double().requires_grad_(), prototypes.double().requires_grad_()
    # eps of the size of the lengths: some vectors are clamped, and one channel has a gradient at all.
    eps = math.sqrt(case.channels)
    got = ops.cosine_similarity_to_prototypes(*got_inputs, scale=20.0, eps=eps)
    want = reference.cosine_similarity_to_prototypes(*want_inputs, scale=20.0, eps=eps)
    assert got.dtype == dtype
    assert got.shape == want.shape
    grad = torch.randn_like(want).to(dtype)
    got.backward(grad)
    want.backward(grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for value, expected in ((got, want), *((g.grad, w.grad) for g, w in zip(got_inputs, want_inputs, strict=True))):
        assert value is not None
        assert expected is not None
        assert (value.detach().double() - expected.detach()).norm() < tolerance * expected.detach().norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_frameworks_cosine_similarity(channels_last: bool, device: str) -> None:
    features, prototypes = torch.randn(2, 64, 9, 8, device=device), torch.randn(2, 3, 64, device=device)
    features[0, :, 0, 0] = 0
    prototypes[1, 2] = 0
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    want = F.cosine_similarity(features[:, None], prototypes[..., None, None], dim=2) * 20
    torch.testing.assert_close(
        ops.cosine_similarity_to_prototypes(features, prototypes, scale=20), want, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("device", DEVICES)
@CASES
def test_gradients_pass_gradcheck(case: PrototypeCase, device: str) -> None:
    features, prototypes = _inputs(case, device, torch.float64)
    features = features[:1, :4, :3, :3].clone(memory_format=torch.preserve_format).requires_grad_()
    prototypes = prototypes[:1, :3, :4].clone().requires_grad_()

    def cosine(f: Tensor, p: Tensor) -> Tensor:
        return ops.cosine_similarity_to_prototypes(f, p, scale=3.0, eps=1.0)

    assert torch.autograd.gradcheck(cosine, (features, prototypes))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_registration_passes_opcheck(channels_last: bool, device: str) -> None:
    features = torch.randn(2, 5, 4, 6, device=device)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    prototypes = torch.randn(2, 3, 5, device=device)
    operator = torch.ops.fssops.cosine_similarity_to_prototypes
    arguments = (features.clone().requires_grad_(), prototypes.clone().requires_grad_(), 20.0, 1e-8)
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
    saved = operator(features, prototypes, 20.0, 1e-8)
    for needs in ((True, True), (True, False), (False, True)):
        backward_arguments = (torch.randn_like(saved[0]), features, prototypes, *saved, 20.0, 1e-8, *needs)
        result = torch.library.opcheck(torch.ops.fssops.cosine_similarity_to_prototypes_backward, backward_arguments)
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_vectors_that_lie_one_after_the_other_are_read_as_channels_last(device: str) -> None:
    # [B, C, M, 1], as prototype_similarity has them.
    vectors = torch.randn(2, 7, 5, device=device).transpose(1, 2).unsqueeze(3)
    prototypes = torch.randn(2, 3, 5, device=device)
    saved = torch.ops.fssops.cosine_similarity_to_prototypes(vectors, prototypes, 1.0, 1e-8)
    arguments = (torch.randn_like(saved[0]), vectors, prototypes, *saved, 1.0, 1e-8, True, False)
    backward = torch.ops.fssops.cosine_similarity_to_prototypes_backward
    assert backward(*arguments)[0].stride() == vectors.stride(), "a copy would be laid out anew"
    assert set(torch.library.opcheck(backward, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_graph_break(device: str) -> None:
    features = torch.randn(1, 4, 5, 5, device=device, requires_grad=True)
    prototypes = torch.randn(1, 2, 4, device=device)

    def cosine(f: Tensor, p: Tensor) -> Tensor:
        return ops.cosine_similarity_to_prototypes(f * 2, p, scale=20.0).square().sum()

    compiled = torch.compile(cosine, fullgraph=True, backend="aot_eager")(features, prototypes)
    (grad,) = torch.autograd.grad(compiled, features)
    eager = cosine(features, prototypes)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(grad, torch.autograd.grad(eager, features)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_zero_prototype_gives_zero_and_finite_gradients(device: str) -> None:
    features = torch.randn(1, 3, 2, 2, device=device, requires_grad=True)
    prototypes = torch.zeros(1, 2, 3, device=device, requires_grad=True)
    got = ops.cosine_similarity_to_prototypes(features, prototypes, scale=20.0)
    got.sum().backward()
    assert torch.equal(got, torch.zeros_like(got))
    for value in (features.grad, prototypes.grad):
        assert value is not None
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (2, 0, 2)], ids=["no_images", "no_prototypes", "no_channels"])
def test_empty_dimensions_give_empty_or_zero_results(shape: tuple[int, int, int], device: str) -> None:
    batch, channels, count = shape
    features = torch.randn(batch, channels, 4, 5, device=device, requires_grad=True)
    got = ops.cosine_similarity_to_prototypes(features, torch.randn(batch, count, channels, device=device))
    assert torch.equal(got, torch.zeros(batch, count, 4, 5, device=device))
    got.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_inputs_give_the_same_result(device: str) -> None:
    features = torch.randn(2, 6, 5, 14, device=device).permute(0, 3, 1, 2)[:, ::2]
    prototypes = torch.randn(7, 3, 2, device=device).permute(2, 1, 0)
    got = ops.cosine_similarity_to_prototypes(features, prototypes)
    torch.testing.assert_close(got, ops.cosine_similarity_to_prototypes(features.contiguous(), prototypes.contiguous()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_stay_visible(value: float, device: str) -> None:
    features, prototypes = torch.randn(1, 2, 2, 2, device=device), torch.randn(1, 2, 2, device=device)
    features[0, 0, 1, 0] = value
    got = ops.cosine_similarity_to_prototypes(features, prototypes)
    assert torch.isfinite(got[0, 0]).flatten().tolist() == [True, True, False, True]


@pytest.mark.parametrize("device", DEVICES)
def test_same_result_twice(device: str) -> None:
    features = torch.randn(2, 64, 33, 35, device=device, requires_grad=True)
    prototypes = torch.randn(2, 5, 64, device=device, requires_grad=True)
    runs = []
    for _ in range(2):
        got = ops.cosine_similarity_to_prototypes(features, prototypes)
        runs.append((got, *torch.autograd.grad(got.square().sum(), (features, prototypes))))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    features, prototypes = torch.randn(1, 8, 3, 3), torch.randn(1, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.cosine_similarity_to_prototypes(features, prototypes)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, reference.cosine_similarity_to_prototypes(features, prototypes))


@pytest.mark.parametrize("device", DEVICES)
def test_dtypes_meet_in_the_wider_one(device: str) -> None:
    features, prototypes = torch.randn(1, 8, 3, 3, device=device).bfloat16(), torch.randn(1, 2, 8, device=device)
    got = ops.cosine_similarity_to_prototypes(features, prototypes)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, reference.cosine_similarity_to_prototypes(features.float(), prototypes))


@pytest.mark.parametrize("device", DEVICES)
def test_prototypes_meet_prototypes(device: str) -> None:
    a, b = torch.randn(2, 5, 48, device=device), torch.randn(2, 3, 48, device=device)
    got_inputs, want_inputs = [[t.clone().requires_grad_() for t in (a, b)] for _ in range(2)]
    got = ops.prototype_similarity(*got_inputs)
    want = F.cosine_similarity(want_inputs[0][:, :, None], want_inputs[1][:, None], dim=3)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.detach(), reference.prototype_similarity(a, b))
    grad = torch.randn_like(want)
    got.backward(grad)
    want.backward(grad)
    for g, w in zip(got_inputs, want_inputs, strict=True):
        torch.testing.assert_close(g.grad, w.grad, atol=1e-5, rtol=1e-4)


def test_backend_reference_is_chosen_on_purpose() -> None:
    features, prototypes = torch.randn(1, 3, 4, 4), torch.randn(1, 2, 3)
    got = ops.cosine_similarity_to_prototypes(features, prototypes, backend="reference")
    assert torch.equal(got, reference.cosine_similarity_to_prototypes(features, prototypes))
    got = ops.prototype_similarity(prototypes, prototypes, backend="reference")
    assert torch.equal(got, reference.prototype_similarity(prototypes, prototypes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(2, 3, 4)}, r"features must have shape \[B, C, h, w\], got \[2, 3, 4\]"),
        ({"features": torch.ones(2, 3, 4, 4).int()}, "features must be float32, float64, float16 or bfloat16"),
        ({"prototypes": torch.ones(2, 3)}, r"prototypes must have shape \[B, N, C\], got \[2, 3\]"),
        ({"prototypes": torch.ones(2, 1, 4)}, r"prototypes must have the images and channels of features, \[2, N, 3\]"),
        ({"eps": -1.0}, "eps must be 0 or more, got -1.0"),
        ({"backend": "cuda"}, "backend must be one of native, reference, got 'cuda'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": torch.ones(2, 3, 4, 4), "prototypes": torch.ones(2, 1, 3), **change}
    with pytest.raises((ValueError, TypeError), match="cosine_similarity_to_prototypes: " + message):
        ops.cosine_similarity_to_prototypes(arguments.pop("features"), arguments.pop("prototypes"), **arguments)


def test_wrong_sets_of_prototypes_are_named() -> None:
    with pytest.raises(ValueError, match=r"prototype_similarity: a must have shape \[B, N, C\], got \[2, 3\]"):
        ops.prototype_similarity(torch.ones(2, 3), torch.ones(2, 1, 3))
    with pytest.raises(ValueError, match=r"prototype_similarity: b must have the batch and channels of a, \[2, M, 3\]"):
        ops.prototype_similarity(torch.ones(2, 1, 3), torch.ones(2, 1, 4))


def test_the_operator_itself_checks_its_arguments() -> None:
    with pytest.raises(RuntimeError, match="prototypes must have the images and channels of features, got"):
        torch.ops.fssops.cosine_similarity_to_prototypes(torch.ones(2, 3, 4, 4), torch.ones(2, 1, 4), 1.0, 1e-8)
    prototypes = torch.ones(2, 1, 3).double()
    with pytest.raises(RuntimeError, match="prototypes must have the dtype of features, got float64"):
        torch.ops.fssops.cosine_similarity_to_prototypes(torch.ones(2, 3, 4, 4), prototypes, 1.0, 1e-8)
