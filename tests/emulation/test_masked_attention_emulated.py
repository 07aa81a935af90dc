"""The CUDA kernels of masked attention, run on the CPU under the emulation header."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from emulate import DTYPES, emulated, guarded_empty, pointer
from torch import Tensor

from fssops import reference
from fssops.reference.masked_attention import closed_from_embeddings, closed_from_logits, pack_bits, unpack_bits
from fssops.testing.attention import draw_closed, draw_inputs
from fssops.testing.cases import MASKED_ATTENTION, AttentionCase

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
CASES = {case.name: case for case in MASKED_ATTENTION}


def _sizes(case: AttentionCase, bits: Tensor | None, *rows: Tensor) -> ctypes.Array:
    steps = [step for tensor in rows for step in tensor.stride()[:3]]
    mask_heads = 0 if bits is None else case.mask_heads
    numbers = [case.batch, case.heads, case.queries, case.keys, case.head_size, mask_heads, *steps]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _heads_last(case: AttentionCase, rows: int, dtype: torch.dtype) -> Tensor:
    return guarded_empty((case.batch, rows, case.heads, case.head_size), dtype).transpose(1, 2)


def _run(
    case: AttentionCase,
    dtype: torch.dtype,
    *,
    parts: int,
    scale: float,
    seed: int,
    past_the_end: int = 0,
    late: bool = False,
) -> tuple[dict[str, Tensor], ...]:
    """What the kernels give, and what the definition gives in float64.

    ``late``: asynchronous copies are made at the last moment, and not at once.
    ``past_the_end``: bits to set in the last word of every mask row, where no key is.
    """
    library = emulated("masked_attention")
    library.set_order_seed(seed)
    library.set_late_copies(late)
    generator = torch.Generator().manual_seed(7)
    query, key, value, grad = draw_inputs(case, dtype, generator)
    closed = draw_closed(case, generator)
    bits = None if closed is None else pack_bits(closed)
    if past_the_end and bits is not None:
        bits[..., -1] |= past_the_end
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    rows = case.batch * case.heads * case.queries
    got = {"out": _heads_last(case, case.queries, dtype)}
    got["logsumexp"] = guarded_empty((case.batch, case.heads, case.queries), accumulator)
    for name, count in (("query", case.queries), ("key", case.keys), ("value", case.keys)):
        got[f"grad_{name}"] = _heads_last(case, count, dtype)
    partial = guarded_empty((parts * rows * (case.head_size + 2),), accumulator)
    delta = guarded_empty((rows,), accumulator)
    sizes = _sizes(case, bits, query, key, value, got["out"], grad, got["grad_key"])
    tensors = [query, key, value, bits, partial, got["out"], got["logsumexp"], grad, delta]
    tensors += [got["grad_query"], got["grad_key"], got["grad_value"]]
    arrays = (ctypes.c_void_p * len(tensors))(*[pointer(t) for t in tensors])
    library.forward(sizes, DTYPES[dtype], ctypes.c_double(scale), ctypes.c_int64(parts), arrays)
    partial.fill_(float("nan"))
    library.backward(sizes, DTYPES[dtype], ctypes.c_double(scale), ctypes.c_int64(parts), arrays)

    exact = [t.double().requires_grad_() for t in (query, key, value)]
    out = reference.masked_attention(*exact, closed, scale=scale)
    grads = torch.autograd.grad(out, exact, grad.double())
    opened = torch.zeros(1, dtype=torch.bool) if bits is None else unpack_bits(bits, case.keys)
    logsumexp = (scale * exact[0] @ exact[1].transpose(-2, -1)).masked_fill(opened, float("-inf")).logsumexp(-1)
    expected = {"out": out, "logsumexp": logsumexp}
    expected |= {f"grad_{name}": g for name, g in zip(("query", "key", "value"), grads, strict=True)}
    return got, {name: tensor.detach() for name, tensor in expected.items()}


def _assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        # Where one key is open the gradients of query and key are 0, up to what rounding leaves of terms of size 1.
        scale = max(float(value.norm()), 0.25 * value.numel() ** 0.5)
        assert float((got[name].double() - value).norm()) < tolerance * scale, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", MASKED_ATTENTION, ids=lambda c: c.name)
def test_kernels_equal_the_definition(case: AttentionCase, dtype: torch.dtype) -> None:
    got, expected = _run(case, dtype, parts=1, scale=0.3, seed=3)
    _assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MASKED_ATTENTION, ids=lambda c: c.name)
def test_half_types_accumulate_in_float32(case: AttentionCase, dtype: torch.dtype, late: bool) -> None:
    got, expected = _run(case, dtype, parts=1, scale=0.3, seed=4, late=late)
    _assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["runs", "last_keys_only", "one_query"])
@pytest.mark.parametrize("parts", [2, 5])
def test_keys_may_be_split_into_parts(name: str, dtype: torch.dtype, parts: int) -> None:
    got, expected = _run(CASES[name], dtype, parts=parts, scale=0.3, seed=5)
    _assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["small", "head_128", "head_64_odd"])
def test_bits_past_the_last_key_are_not_read(name: str, dtype: torch.dtype) -> None:
    case = {**CASES, "head_64_odd": AttentionCase("head_64_odd", 1, 2, 18, 97, 64, 0.3, "runs")}[name]
    got, expected = _run(case, dtype, parts=1, scale=0.3, seed=5, past_the_end=-(1 << case.keys % 32))
    _assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [-0.4, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scale_may_be_negative_or_zero(scale: float, dtype: torch.dtype) -> None:
    got, expected = _run(CASES["small"], dtype, parts=1, scale=scale, seed=6)
    _assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["runs", "head_64"])
def test_result_does_not_depend_on_the_order_of_threads(name: str, dtype: torch.dtype) -> None:
    runs = [_run(CASES[name], dtype, parts=2, scale=0.3, seed=seed)[0] for seed in (0, 1, 2)]
    for run in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(run[key], value), key


def test_parts_fill_the_multiprocessors_and_never_get_too_short() -> None:
    library = emulated("masked_attention")
    library.forward_parts.restype = ctypes.c_int64
    few = AttentionCase("few", 1, 8, 100, 16384, 32)
    query = torch.empty(1, 8, 1, 32)
    sizes = _sizes(few, None, *[query] * 6)
    parts = library.forward_parts(sizes, DTYPES[torch.bfloat16], ctypes.c_int64(132))
    assert 132 <= 8 * parts <= 2 * 132  # one wave: two blocks a multiprocessor
    assert library.forward_parts(_sizes(replace(few, keys=256), None, *[query] * 6), 3, ctypes.c_int64(132)) == 1


def test_addresses_are_computed_in_64_bits() -> None:
    library = emulated("masked_attention")
    library.key_index.restype = library.mask_index.restype = ctypes.c_int64
    case = AttentionCase("large", 64, 16, 4096, 1 << 20, 128)
    step = (case.keys * case.heads * case.head_size, case.head_size, case.heads * case.head_size)
    numbers = [case.batch, case.heads, case.queries, case.keys, case.head_size, 1, *step * 6]
    sizes = (ctypes.c_int64 * len(numbers))(*numbers)
    last = (ctypes.c_int64(63), ctypes.c_int64(15), ctypes.c_int64(case.keys - 1))
    expected = 63 * step[0] + 15 * step[1] + (case.keys - 1) * step[2]
    assert expected > 1 << 36
    assert library.key_index(sizes, *last) == expected
    word = library.mask_index(sizes, ctypes.c_int64(63), ctypes.c_int64(15), ctypes.c_int64(4095))
    assert word == (63 * 4096 + 4095) * (1 << 15) > 1 << 32


def _mask(kind: int, sizes: list[int], source: Tensor, features: Tensor | None = None, late: bool = False) -> Tensor:
    library = emulated("masked_attention")
    library.set_order_seed(8)
    library.set_late_copies(late)
    words = -(-sizes[2] // 32)
    bits = torch.full((sizes[0], sizes[1], words), 0x5A5A5A5A, dtype=torch.int32)
    numbers = (ctypes.c_int64 * len(sizes))(*sizes)
    dtype = DTYPES.get(source.dtype, 0)
    library.make_mask(kind, numbers, dtype, pointer(source), pointer(features), pointer(bits))
    return bits


@pytest.mark.parametrize("keys", [1, 31, 32, 33, 700, 1100])
@pytest.mark.parametrize("open_empty", [False, True])
def test_booleans_are_packed(keys: int, open_empty: bool) -> None:
    closed = torch.rand(2, 5, keys) < 0.5
    closed[1, 3] = True
    got = _mask(0, [2, 5, keys, 0, 0, 0, 0, 0, open_empty], closed)
    assert torch.equal(got, pack_bits(closed, open_empty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("source", "size"), [((16, 12), (8, 6)), ((7, 9), (13, 5)), ((5, 6), (5, 6)), ((1, 1), (3, 3))]
)
def test_logits_are_resized_and_thresholded(source: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, *source).to(dtype)
    logits[0, 1] = -1
    logits[0, 2, 0, 0] = float("nan")
    got = _mask(1, [2, 3, size[0] * size[1], *source, *size, 0, 1], logits)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    expected = pack_bits(closed_from_logits(logits.to(exact), size))
    assert torch.equal(got, expected)
    assert int((got[0, 1] == 0).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("queries", "channels", "keys"), [(5, 40, 70), (20, 16, 128), (3, 7, 33), (150, 32, 64), (1, 1, 1)]
)
def test_embeddings_are_projected_and_thresholded(queries: int, channels: int, keys: int, dtype: torch.dtype) -> None:
    embeddings = torch.randn(2, queries, channels).to(dtype)
    features = torch.randn(2, channels, keys).to(dtype)
    features[1] = features[1, :1].abs()  # the first image's features differ, the second's are all alike
    embeddings[1, 0] = -1
    numbers = [2, queries, keys, 0, 0, 0, 0, channels, 1]
    got = _mask(2, numbers, embeddings, features)
    assert torch.equal(_mask(2, numbers, embeddings, features, late=True), got)
    closed = closed_from_embeddings(embeddings.double(), features.double())
    sure = torch.bmm(embeddings.double(), features.double()).abs() > 1e-5 * channels
    expected = closed & ~closed.all(-1, keepdim=True)
    assert torch.equal(unpack_bits(got, keys)[sure], expected[sure])
    assert float(sure.double().mean()) > 0.95
    assert not unpack_bits(got, keys)[1, 0].any()
