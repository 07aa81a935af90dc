"""Masked attention and its masks: kernels against the definition, gradients, registrations, edges and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fssops import ops, reference
from fssops.reference.masked_attention import unpack_bits
from fssops.testing.attention import draw_closed, draw_inputs
from fssops.testing.cases import MASKED_ATTENTION, AttentionCase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = {case.name: case for case in MASKED_ATTENTION}
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
LARGER = [
    AttentionCase("split_keys", 1, 2, 10, 9000, 32, 0.3, "runs"),
    AttentionCase("several_blocks", 1, 1, 300, 1100, 40, 0.5, "scattered"),
]


def _inputs(
    case: AttentionCase, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(11)
    query, key, value, grad = (t.to(device) for t in draw_inputs(case, dtype, generator))
    closed = draw_closed(case, generator)
    return query, key, value, grad, None if closed is None else closed.to(device)


def _assert_close(got: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    # Where terms of size 1 cancel (one open key: no gradient to query and key), what rounding leaves of them counts.
    scale = max(float(expected.detach().norm()), 0.25 * expected.numel() ** 0.5)
    assert got.shape == expected.shape, name
    assert float((got.detach().double() - expected.detach().double()).norm()) <= tolerance * scale, name


def _check_against_definition(case: AttentionCase, dtype: torch.dtype, device: str) -> None:
    query, key, value, grad, closed = _inputs(case, dtype, device)
    exact = [t.double().requires_grad_() for t in (query, key, value)]
    inputs = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.masked_attention(*inputs, closed)
    expected = reference.masked_attention(*exact, closed, scale=case.head_size**-0.5)
    _assert_close(out, expected, TOLERANCE[dtype], "out")
    grads = torch.autograd.grad(out, inputs, grad)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    for name, got, wanted in zip(("query", "key", "value"), grads, expected_grads, strict=True):
        assert got.dtype == dtype
        _assert_close(got, wanted, TOLERANCE[dtype], name)


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", MASKED_ATTENTION + LARGER, ids=lambda c: c.name)
def test_attention_and_gradients_equal_the_definition(case: AttentionCase, dtype: torch.dtype, device: str) -> None:
    _check_against_definition(case, dtype, device)


@pytest.mark.every_isa
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MASKED_ATTENTION + LARGER, ids=lambda c: c.name)
def test_half_types_accumulate_in_float32_on_the_gpu(case: AttentionCase, dtype: torch.dtype) -> None:
    _check_against_definition(case, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32_on_the_cpu(dtype: torch.dtype) -> None:
    query, key, value, _, closed = _inputs(CASES["small"], dtype, "cpu")
    got = ops.masked_attention(query, key, value, closed)
    wide = ops.masked_attention(query.float(), key.float(), value.float(), closed)
    assert got.dtype == dtype
    assert torch.equal(got, wide.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_float32_keeps_its_accuracy_over_2_to_the_20_keys(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    keys = 1 << 20
    query = torch.randn(1, 1, 2, 8, generator=generator).to(device)
    key, value = (torch.randn(1, 1, keys, 8, generator=generator).to(device) for _ in range(2))
    got = ops.masked_attention(query, key, value)
    expected = reference.masked_attention(query.double(), key.double(), value.double(), scale=8**-0.5)
    _assert_close(got, expected, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_the_gradients_asked_for_are_computed(needed: tuple[bool, bool, bool], device: str) -> None:
    query, key, value, grad, closed = _inputs(CASES["small"], torch.float64, device)
    inputs = [t.detach().requires_grad_(n) for t, n in zip((query, key, value), needed, strict=True)]
    ops.masked_attention(*inputs, closed).backward(grad)
    full = [t.detach().requires_grad_() for t in (query, key, value)]
    ops.masked_attention(*full, closed).backward(grad)
    for tensor, whole, need in zip(inputs, full, needed, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            assert torch.equal(tensor.grad, whole.grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["small", "no_mask", "mask_a_head"])
def test_gradcheck_in_float64(name: str, device: str) -> None:
    case = CASES[name]
    small = AttentionCase(name, 1, case.heads, 3, 18, 4, case.open_share, case.pattern, case.mask_heads)
    query, key, value, _, closed = _inputs(small, torch.float64, device)
    inputs = tuple(t.detach().requires_grad_() for t in (query, key, value))
    mask = None if closed is None else ops.pack_attention_mask(closed)
    assert torch.autograd.gradcheck(lambda *t: ops.masked_attention(*t, mask), inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    query, key, value, grad, closed = _inputs(CASES["small"], torch.float32, device)
    bits = ops.pack_attention_mask(closed).bits
    inputs = [t.detach().requires_grad_() for t in (query, key, value)]
    for mask in (bits, None):
        torch.library.opcheck(torch.ops.fssops.masked_attention, (*inputs, mask, 0.3))
        out, logsumexp = torch.ops.fssops.masked_attention(query, key, value, mask, 0.3)
        for needed in ((True, True, True), (True, False, False), (False, True, False)):
            arguments = (grad, query, key, value, mask, out, logsumexp, 0.3, *needed)
            torch.library.opcheck(torch.ops.fssops.masked_attention_backward, arguments)
    torch.library.opcheck(torch.ops.fssops.attention_mask_pack, (closed, True))
    torch.library.opcheck(torch.ops.fssops.attention_mask_from_logits, (torch.randn(2, 3, 6, 7, device=device), 5, 9))
    arguments = (torch.randn(2, 3, 6, device=device), torch.randn(2, 6, 35, device=device))
    torch.library.opcheck(torch.ops.fssops.attention_mask_from_embeddings, arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_and_attention_compile_without_a_graph_break(device: str) -> None:
    query, key, value, grad, _ = _inputs(CASES["small"], torch.float32, device)
    embeddings, features = torch.randn(2, 5, 6, device=device), torch.randn(2, 6, 7, 10, device=device)
    padding = torch.zeros(2, 70, dtype=torch.bool, device=device)
    padding[1, 50:] = True

    def layer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = ops.attention_mask_from_embeddings(embeddings, features).with_padding(padding)
        return ops.masked_attention(query, key, value, mask)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    plain, traced = ([t.detach().requires_grad_() for t in (query, key, value)] for _ in range(2))
    expected, got = layer(*plain), compiled(*traced)
    assert torch.equal(got, expected)
    got.backward(grad)
    expected.backward(grad)
    for a, b in zip(traced, plain, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    query, key, value, _, closed = _inputs(CASES["small"], torch.bfloat16, "cpu")
    mask = ops.pack_attention_mask(closed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.ops.fssops.masked_attention(query, key, value, mask.bits, 0.3)[0]
    assert got.dtype == torch.float32
    assert torch.equal(got, ops.masked_attention(query.float(), key.float(), value.float(), mask, scale=0.3))


@pytest.mark.gpu
def test_autocast_on_the_gpu_computes_in_the_autocast_dtype() -> None:
    query, key, value, _, closed = _inputs(CASES["small"], torch.float32, "cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = ops.masked_attention(query, key, value, closed)
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_are_the_same_bits_every_time(dtype: torch.dtype, device: str) -> None:
    query, key, value, grad, closed = _inputs(LARGER[0], dtype, device)
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = [t.detach().requires_grad_() for t in (query, key, value)]
            out = ops.masked_attention(*inputs, closed)
            out.backward(grad)
            runs.append([out, *(t.grad for t in inputs)])
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_output_and_gradients_lie_with_the_heads_last(device: str) -> None:
    query, key, value, grad, closed = _inputs(CASES["small"], torch.float32, device)
    inputs = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.masked_attention(*inputs, closed)
    out.backward(grad)
    for tensor in (out, *(t.grad for t in inputs)):
        assert tensor.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides_are_read(device: str) -> None:
    case = CASES["small"]
    query, key, value, _, closed = _inputs(case, torch.float64, device)
    expected = ops.masked_attention(query, key, value, closed)
    fused = torch.stack([key, value], dim=2)  # [B, M, 2, S, D], as chunks of one projection lie
    assert torch.equal(ops.masked_attention(query.contiguous(), fused[:, :, 0], fused[:, :, 1], closed), expected)
    columns = query.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(
        ops.masked_attention(columns, key, value, closed.transpose(2, 3).contiguous().transpose(2, 3)), expected
    )
    shared = key[:, :1].expand(-1, case.heads, -1, -1)
    assert torch.equal(
        ops.masked_attention(query, shared, value), ops.masked_attention(query, shared.contiguous(), value)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]
)
def test_empty_sizes_give_empty_or_zero_results(batch: int, heads: int, queries: int, keys: int, device: str) -> None:
    query = torch.randn(batch, heads, queries, 8, device=device, requires_grad=True)
    key, value = (torch.randn(batch, heads, keys, 8, device=device, requires_grad=True) for _ in range(2))
    for mask in (None, torch.ones(batch, queries, keys, dtype=torch.bool, device=device)):
        out = ops.masked_attention(query, key, value, mask)
        assert torch.equal(out, torch.zeros_like(query))
        for grad, tensor in zip(torch.autograd.grad(out.sum(), (query, key, value)), (query, key, value), strict=True):
            assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("device", DEVICES)
def test_query_with_no_open_key_attends_everywhere(device: str) -> None:
    query, key, value, _, _ = _inputs(CASES["small"], torch.float64, device)
    closed = torch.rand(2, 5, 70, device=device) < 0.5
    closed[0, 2] = True
    got, everywhere = ops.masked_attention(query, key, value, closed), ops.masked_attention(query, key, value)
    _assert_close(got[0, :, 2], everywhere[0, :, 2], 1e-14)
    assert not torch.allclose(got[0, :, 3], everywhere[0, :, 3])


@pytest.mark.parametrize("device", DEVICES)
def test_padding_closes_keys_even_to_opened_queries(device: str) -> None:
    query, key, value, _, _ = _inputs(CASES["small"], torch.float64, device)
    closed = torch.rand(2, 5, 70, device=device) < 0.5
    closed[0, 2] = True  # opened to all real keys
    closed[0, 3, :40] = True  # open among the padding only: so is this one
    padding = torch.zeros(2, 70, dtype=torch.bool, device=device)
    padding[0, 40:] = True
    mask = ops.pack_attention_mask(closed).with_padding(padding)
    got = ops.masked_attention(query, key, value, mask)
    real = ops.masked_attention(query[:1], key[:1, :, :40], value[:1, :, :40], closed[:1, :, :40])
    _assert_close(got[:1], real, 1e-14)
    _assert_close(got[1:], ops.masked_attention(query[1:], key[1:], value[1:], closed[1:]), 1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_query_without_any_key_gives_zero_and_no_gradient(device: str) -> None:
    query, key, value, grad, closed = _inputs(CASES["small"], torch.float32, device)
    padding = torch.zeros(2, 70, dtype=torch.bool, device=device)
    padding[0] = True
    inputs = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.masked_attention(*inputs, ops.pack_attention_mask(closed).with_padding(padding))
    out.backward(grad)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    for tensor in inputs:
        assert torch.equal(tensor.grad[0], torch.zeros_like(tensor.grad[0]))
        assert float(tensor.grad[1].abs().sum()) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_at_open_keys_come_out_and_harm_no_other_query(value: float, device: str) -> None:
    query, key, val, _, _ = _inputs(CASES["runs"], torch.float32, device)
    closed = torch.zeros(1, 21, 600, dtype=torch.bool, device=device)
    closed[0, :4, :300] = True  # segments apart from the bad key's
    key = key.clone()
    key[0, :, 20] = value
    out = ops.masked_attention(query, key, val, closed)
    assert out[0, :, :4].isfinite().all()
    assert not out[0, :, 4:].isfinite().all()
    val = val.clone()
    val[0, :, 30, 3] = value
    out = ops.masked_attention(query, torch.zeros_like(key), val, closed)
    assert not out[0, :, 4:, 3].isfinite().any()
    assert out[0, :, :4].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_scores_far_apart_neither_overflow_nor_vanish(device: str) -> None:
    query, key, value, _, closed = _inputs(CASES["small"], torch.float32, device)
    got = ops.masked_attention(300 * query, key, value, closed)
    expected = reference.masked_attention(300 * query.double(), key.double(), value.double(), closed, scale=32**-0.5)
    _assert_close(got, expected, 1e-4)
    key = key.clone()
    key[..., 0] = float("-inf")  # every score of a positive query is -inf: NaN, as a softmax of such a row
    query = query.abs()
    assert ops.masked_attention(query, key.abs().neg(), value).isnan().all()


def test_reference_backend_gives_the_same() -> None:
    query, key, value, _, closed = _inputs(CASES["small"], torch.float64, "cpu")
    for mask in (closed, ops.pack_attention_mask(closed), None):
        native = ops.masked_attention(query, key, value, mask)
        _assert_close(ops.masked_attention(query, key, value, mask, backend="reference"), native, 1e-14)
    logits = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    by_reference = ops.attention_mask_from_logits(logits, (5, 7), backend="reference")
    assert torch.equal(by_reference.bits, ops.attention_mask_from_logits(logits, (5, 7)).bits)
    assert torch.equal(unpack_bits(by_reference.bits, 35), by_reference.closed())


Q, K = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
MASK = torch.zeros(2, 5, 7, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q[0], K, K), "query must have shape [B, M, Q, D], got [3, 5, 8]"),
        ((Q, K[:1], K), "key must have shape [B, M, S, D] = [2, 3, S, 8], got [1, 3, 7, 8]"),
        ((Q, K, K[..., :6, :]), "value must have as many rows as key, 7, got [2, 3, 6, 8]"),
        ((Q, K.double(), K), "key must have the dtype of query, torch.float32, got torch.float64"),
        ((Q.long(), K, K), "query must be float32, float64, float16 or bfloat16, got torch.int64"),
        ((torch.zeros(1, 1, 2, 200),) * 3, "query must have a head size of 1 to 128, got [1, 1, 2, 200]"),
        ((Q, K, K, MASK.float()), "mask must be bool"),
        ((Q, K, K, MASK[..., :6]), "mask must be for the 7 keys given, got one for 6"),
        ((Q, K, K, MASK[:, :4]), "mask must have bits [2, 1 or 3, 5, 1], got [2, 1, 4, 1]"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        ops.masked_attention(*arguments)
    assert message in str(caught.value)


def test_wrong_bits_are_named_by_the_operator_itself() -> None:
    with pytest.raises(RuntimeError, match="masked_attention: bits must have shape"):
        torch.ops.fssops.masked_attention(Q, K, K, torch.zeros(2, 1, 4, 1, dtype=torch.int32), 1.0)


def test_no_more_queries_than_a_grid_has_room_for() -> None:
    # Blocks of 8 queries are a dimension of a CUDA grid, 65,535 at most; what is behind would be left unwritten.
    features, most = torch.ones(1, 1, 1), 8 * 65_535
    assert ops.attention_mask_from_embeddings(torch.ones(1, most, 1), features).bits.all()
    with pytest.raises(RuntimeError, match="mask_embeddings must have at most 524280 queries"):
        ops.attention_mask_from_embeddings(torch.ones(1, most + 1, 1), features)


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keys", [7, 33, 50])
def test_bits_past_the_last_key_are_not_read(device: str, keys: int) -> None:
    closed = torch.rand(2, 1, 5, keys, device=device) < 0.5
    closed[0, 0, 1] = False  # turned round, this query has no open key but those that are not there
    turned = ~ops.pack_attention_mask(closed).bits
    clean = ops.attention_mask.pack_bits(~closed, open_empty=False)
    assert not torch.equal(turned, clean)
    rows = [torch.randn(2, 3, n, 8, device=device, requires_grad=True) for n in (5, keys, keys)]
    found = []
    for bits in (turned, clean):
        out = ops.masked_attention(*rows, ops.AttentionMask(bits, keys))
        found.append((out, *torch.autograd.grad(out.sum(), rows)))
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)
    assert not found[0][0][0, :, 1].any()
