"""The CUDA kernels of the cosine with prototypes, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, pointer, relative_error
from torch import Tensor

from fssops import reference
from fssops.testing.cases import COSINE_SIMILARITY_TO_PROTOTYPES, PrototypeCase

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SCALE, EPS = 20.0, 1e-8


def _inputs(case: PrototypeCase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(case.batch, case.channels, *case.size).to(dtype)
    if case.channels_last:
        features = features.to(memory_format=torch.channels_last)
    prototypes = torch.randn(case.batch, case.prototypes, case.channels).to(dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    return features, prototypes, torch.randn(case.batch, case.prototypes, *case.size).to(accumulator)


def _run(features: Tensor, prototypes: Tensor, grad: Tensor, *, seed: int) -> dict[str, Tensor]:
    library = emulated("cosine_similarity_to_prototypes")
    library.set_order_seed(seed)
    batch, channels, *size = features.shape
    count, pixels = prototypes.shape[1], size[0] * size[1]
    sizes = (ctypes.c_int64 * 5)(batch, channels, count, pixels, not features.is_contiguous())
    shapes = ((batch, pixels), (batch, count), (batch, count, pixels), (batch, pixels), (batch, count))
    scratch = [guarded_empty(shape, grad.dtype) for shape in shapes]
    out = {
        "values": guarded_empty((batch, count, *size), grad.dtype),
        "grad_features": torch.full_like(features, float("nan")),
        "grad_prototypes": torch.full_like(prototypes, float("nan")),
    }
    library.run(
        sizes,
        ctypes.c_double(SCALE),
        ctypes.c_double(EPS),
        DTYPES[features.dtype],
        pointer(features),
        pointer(prototypes),
        pointer(out["values"]),
        (ctypes.c_void_p * 5)(*[t.data_ptr() for t in scratch]),
        pointer(grad),
        pointer(out["grad_features"]),
        pointer(out["grad_prototypes"]),
    )
    return out


@pytest.mark.parametrize("case", COSINE_SIMILARITY_TO_PROTOTYPES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_kernels_equal_the_definition(case: PrototypeCase, dtype: torch.dtype) -> None:
    features, prototypes, grad = _inputs(case, dtype)
    got = _run(features, prototypes, grad, seed=3)
    f, p = features.double().requires_grad_(), prototypes.double().requires_grad_()
    values = reference.cosine_similarity_to_prototypes(f, p, scale=SCALE, eps=EPS)
    values.backward(grad.double())
    assert relative_error(got["values"], values.detach()) < TOLERANCE[dtype]
    # With one channel the cosine is a sign and its gradient 0: compare with the size of the terms that cancel.
    for name, expected, vectors in (("grad_features", f.grad, f), ("grad_prototypes", p.grad, p)):
        assert expected is not None
        size = max(float(expected.norm()), float(SCALE * grad.double().norm() / vectors.detach().abs().max()))
        assert float((got[name].double() - expected).norm()) / size < TOLERANCE[dtype] * 4, name


@pytest.mark.parametrize("name", ["one_way", "five_ways_channels_last"])
def test_result_does_not_depend_on_the_order_of_threads(name: str) -> None:
    case = next(c for c in COSINE_SIMILARITY_TO_PROTOTYPES if c.name == name)
    inputs = _inputs(case, torch.bfloat16)
    runs = [_run(*inputs, seed=seed) for seed in (0, 1, 2)]
    for run in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(run[key], value), key


def test_zero_vectors_give_zero() -> None:
    features, prototypes, grad = _inputs(COSINE_SIMILARITY_TO_PROTOTYPES[0], torch.float32)
    features[0, :, 0, 0] = 0
    prototypes[1, 1] = 0
    got = _run(features, prototypes, grad, seed=4)
    assert torch.equal(got["values"][0, :, 0, 0], torch.zeros(2))
    assert torch.equal(got["values"][1, 1], torch.zeros(7, 9))
