"""Masks of masked attention: making them from booleans, logits and embeddings, and combining them."""

from __future__ import annotations

import pytest
import torch

from fssops import ops
from fssops.reference.masked_attention import closed_from_embeddings, closed_from_logits, pack_bits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_groups_keep_piloted_queries_apart(device: str) -> None:
    # Two groups of two piloted queries, then three normal ones: the self-attention of MP-Former.
    groups = torch.tensor([0, 0, 1, 1, -1, -1, -1], device=device)
    everything = torch.zeros(1, 7, 7, dtype=torch.bool, device=device)
    closed = ops.pack_attention_mask(everything).with_groups(groups, groups).closed()[0, 0]
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[4:, :4] = True  # normal queries see no piloted one
    expected[:2, 2:4] = True  # groups do not see each other
    expected[2:4, :2] = True
    assert torch.equal(closed.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_join_along_the_queries(device: str) -> None:
    first, second = (torch.rand(2, n, 45, device=device) < 0.5 for n in (3, 4))
    joined = ops.concatenate_attention_masks([ops.pack_attention_mask(first), ops.pack_attention_mask(second)])
    assert torch.equal(joined.bits, ops.pack_attention_mask(torch.cat([first, second], 1)).bits)
    a_head = torch.rand(2, 6, 3, 45, device=device) < 0.5
    mixed = ops.concatenate_attention_masks([ops.pack_attention_mask(a_head), ops.pack_attention_mask(second)])
    assert torch.equal(mixed.closed(), torch.cat([a_head, second[:, None].expand(-1, 6, -1, -1)], 2))
    opened = joined.with_open_queries(torch.tensor([True, *[False] * 6], device=device)).closed()
    assert not opened[:, :, 0].any()
    assert torch.equal(opened[:, :, 1:], joined.closed()[:, :, 1:])


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keys", [1, 31, 32, 33, 700])
def test_booleans_are_packed_and_unpacked(keys: int, device: str) -> None:
    closed = torch.rand(2, 3, 5, keys, device=device) < 0.5
    closed[0, 1, 2] = True
    mask = ops.pack_attention_mask(closed)
    assert torch.equal(mask.bits.cpu(), pack_bits(closed.cpu()))
    assert torch.equal(mask.closed(), closed & ~closed.all(-1, keepdim=True))
    assert torch.equal(ops.pack_attention_mask(closed, backend="reference").bits, mask.bits)


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("source", "size"),
    [((64, 48), (32, 24)), ((64, 64), (8, 8)), ((7, 9), (13, 25)), ((5, 6), (5, 6)), ((1, 1), (3, 3))],
)
def test_mask_from_logits_equals_the_definition(
    source: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    logits = torch.randn(2, 3, *source).to(dtype)
    logits[0, 1] = -1
    mask = ops.attention_mask_from_logits(logits.to(device), size)
    exact = logits.double()
    closed = closed_from_logits(exact, size)
    resized = torch.nn.functional.interpolate(exact, size=size, mode="bilinear", align_corners=False).flatten(2)
    sure = resized.abs() > 1e-6
    expected = closed & ~closed.all(-1, keepdim=True)
    assert mask.keys == size[0] * size[1]
    assert torch.equal(mask.closed()[:, 0].cpu()[sure], expected[sure])
    assert float(sure.double().mean()) > 0.98
    assert not mask.closed()[0, 0, 1].any()


@pytest.mark.parametrize("device", DEVICES)
def test_zero_and_nan_logits_are_open(device: str) -> None:
    logits = torch.tensor([[-1.0, 0.0, -0.0, float("nan"), 1.0, -1e30]], device=device).view(1, 1, 1, 6)
    closed = ops.attention_mask_from_logits(logits, (1, 6)).closed().flatten()
    assert closed.tolist() == [True, False, False, False, False, True]
    embeddings = torch.ones(1, 1, 1, device=device)
    closed = ops.attention_mask_from_embeddings(embeddings, logits.view(1, 1, 6)).closed().flatten()
    assert closed.tolist() == [True, False, False, False, False, True]


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "channels", "keys"), [(5, 40, 70), (23, 64, 640), (130, 256, 200), (1, 1, 1)])
def test_mask_from_embeddings_equals_the_definition(
    queries: int, channels: int, keys: int, dtype: torch.dtype, device: str
) -> None:
    embeddings, features = torch.randn(2, queries, channels).to(dtype), torch.randn(2, channels, keys).to(dtype)
    features[1] = features[1, :1].abs()
    embeddings[1, 0] = -1
    mask = ops.attention_mask_from_embeddings(embeddings.to(device), features.to(device))
    closed = closed_from_embeddings(embeddings.double(), features.double())
    sure = torch.bmm(embeddings.double(), features.double()).abs() > 1e-6 * channels
    expected = closed & ~closed.all(-1, keepdim=True)
    assert torch.equal(mask.closed()[:, 0].cpu()[sure], expected[sure])
    assert float(sure.double().mean()) > 0.98
    assert not mask.closed()[1, 0, 0].any()


@pytest.mark.parametrize("device", DEVICES)
def test_resizing_the_features_equals_resizing_the_logits(device: str) -> None:
    embeddings = torch.randn(2, 9, 16, dtype=torch.float64, device=device)
    features = torch.randn(2, 16, 24, 32, dtype=torch.float64, device=device)
    logits = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    from_logits = ops.attention_mask_from_logits(logits, (12, 10))
    assert torch.equal(ops.attention_mask_from_embeddings(embeddings, features, (12, 10)).bits, from_logits.bits)


def test_wrong_arguments_of_masks_are_named() -> None:
    with pytest.raises(ValueError, match="mask_logits must have shape"):
        ops.attention_mask_from_logits(torch.zeros(2, 3, 4), (2, 2))
    with pytest.raises(ValueError, match="mask_features must have the batch size and channels"):
        ops.attention_mask_from_embeddings(torch.zeros(1, 2, 3), torch.zeros(1, 4, 5))
    with pytest.raises(TypeError, match="closed must be bool"):
        ops.pack_attention_mask(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="padding must be"):
        ops.pack_attention_mask(torch.zeros(2, 5, 7, dtype=torch.bool)).with_padding(
            torch.zeros(2, 8, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="at least one mask"):
        ops.concatenate_attention_masks([])


def test_wrong_groups_queries_and_heads_are_named() -> None:
    mask = ops.pack_attention_mask(torch.zeros(2, 5, 7, dtype=torch.bool))
    five, seven = torch.zeros(5, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"query_groups must have shape \[5\] or \[2, 5\], got \[7\]"):
        mask.with_groups(seven, seven)
    with pytest.raises(ValueError, match=r"key_groups must have shape \[7\] or \[2, 7\], got \[2, 5\]"):
        mask.with_groups(five, five.expand(2, 5))
    with pytest.raises(ValueError, match=r"queries must have shape \[5\] or \[2, 5\], got \[4\]"):
        mask.with_open_queries(torch.zeros(4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"queries must be bool, got torch\.int64"):
        mask.with_open_queries(five)
    of_heads = [ops.pack_attention_mask(torch.zeros(2, heads, 5, 7, dtype=torch.bool)) for heads in (4, 1, 8)]
    with pytest.raises(ValueError, match=r"masks must be of 1 or the same heads, got \[4, 8\]"):
        ops.concatenate_attention_masks(of_heads)
