"""Masked attention against the calls that Mask2Former's code makes, at the shapes of its decoder.

The composition: mask logits of every query at stride 4, resized bilinearly, sigmoid, < 0.5, repeated for the heads,
rows with no open key opened; then what nn.MultiheadAttention computes (weights and their mean over the heads included,
as the published call leaves need_weights at its default). Peers: PyTorch's scaled_dot_product_attention with the mask
as booleans, and FlexAttention with its BlockMask already built. Masks are regions, drawn as smooth noise above a
quantile; the share of open keys is in the group's name. "scattered" draws every key alone, which no image does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops

HEADS, HEAD_SIZE, CHANNELS = 8, 32, 256


@dataclass(frozen=True)
class Shape:
    """One call: a batch, its queries, the keys' grid and the logits' grid, and how much of it is open."""

    batch: int
    queries: int
    side: int
    share: str
    flex: bool = False  # whether FlexAttention is measured too; it compiles anew for every shape

    @property
    def keys(self) -> int:
        return self.side * self.side

    @property
    def logits_side(self) -> int:
        return 256 if self.side <= 128 else 2 * self.side

    def name(self, device: torch.device) -> str:
        dtype = "bf16 " if device.type == "cuda" else ""
        return f"{dtype}B{self.batch} Q{self.queries} S{self.keys} {self.share}"


CPU_SHAPES = [
    Shape(1, 100, 128, "half"),
    Shape(1, 100, 128, "tenth"),
    Shape(1, 100, 128, "scattered tenth"),
    Shape(1, 100, 64, "half"),
    Shape(1, 100, 32, "half"),
]
CUDA_SHAPES = [
    Shape(1, 100, 128, "half", flex=True),
    Shape(8, 100, 128, "half"),
    Shape(8, 300, 128, "half", flex=True),
    Shape(8, 100, 128, "tenth"),
    Shape(1, 100, 64, "half"),
    Shape(8, 100, 64, "half", flex=True),
]
SHAPES = [*((s, "cpu") for s in CPU_SHAPES), *((s, "cuda") for s in CUDA_SHAPES)]
_IDS = [f"{where}-B{s.batch}-Q{s.queries}-S{s.keys}-{s.share}" for s, where in SHAPES]
AT_SHAPES = pytest.mark.parametrize(("shape", "where"), SHAPES, ids=_IDS)
DIRECTIONS = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


def _logits(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    size, side = (shape.batch, shape.queries), shape.logits_side
    if shape.share.startswith("scattered"):
        noise = torch.randn(*size, shape.side, shape.side, generator=generator, device=device)
        noise = F.interpolate(noise, size=(side, side), mode="nearest")
    else:
        noise = torch.randn(*size, 10, 10, generator=generator, device=device)
        noise = F.interpolate(noise, size=(side, side), mode="bicubic")
    closed = 0.5 if shape.share.endswith("half") else 0.9
    sample = noise.flatten(2)[..., ::16]
    return (noise - sample.quantile(closed, dim=-1)[..., None, None]).to(dtype)


@dataclass
class Inputs:
    """Tensors of one shape."""

    logits: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor


def _inputs(shape: Shape, device: torch.device) -> Inputs:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(1)

    def heads(rows: int) -> Tensor:
        memory = torch.randn(shape.batch, rows, HEADS, HEAD_SIZE, generator=generator, device=device)
        return memory.to(dtype).transpose(1, 2)

    tensors = [heads(shape.queries), heads(shape.keys), heads(shape.keys)]
    tensors = [t.requires_grad_() for t in tensors]
    return Inputs(_logits(shape, dtype, device), *tensors, heads(shape.queries))


def composed_mask(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask2Former's forward_prediction_heads and what precedes each layer: [B * M, Q, S] bool."""
    resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    closed = (resized.sigmoid().flatten(2).unsqueeze(1).repeat(1, HEADS, 1, 1).flatten(0, 1) < 0.5).bool().detach()
    closed[torch.where(closed.sum(-1) == closed.shape[-1])] = False
    return closed


def composed_attention(query: Tensor, key: Tensor, value: Tensor, closed: Tensor) -> Tensor:
    """What F.multi_head_attention_forward does between its projections."""
    batch, heads, queries, depth = query.shape
    q, k, v = (t.flatten(0, 1) for t in (query, key, value))
    added = torch.zeros_like(closed, dtype=query.dtype).masked_fill_(closed, float("-inf"))
    weights = torch.baddbmm(added, q * depth**-0.5, k.transpose(-2, -1)).softmax(-1)
    out = torch.bmm(weights, v)
    weights.view(batch, heads, queries, -1).mean(dim=1)
    return out.view(batch, heads, queries, depth)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, closed: Tensor) -> Tensor:
    """PyTorch's fused attention, which takes True for open."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=~closed.view(*query.shape[:3], -1))


def _with_backward(forward: Callable[[], Tensor], inputs: Inputs) -> Callable[[], Any]:
    def run() -> Any:
        return torch.autograd.grad(forward(), (inputs.query, inputs.key, inputs.value), inputs.grad)

    return run


def _work(shape: Shape, inputs: Inputs, backward: bool) -> dict[str, float]:
    """Least bytes and operations: open keys only, five products with the backward pass and two without."""
    share = 0.5 if shape.share.endswith("half") else 0.1
    pairs = shape.batch * HEADS * shape.queries * shape.keys * share
    size = inputs.key.element_size()
    rows = shape.batch * HEADS * HEAD_SIZE * (2 * shape.keys + 2 * shape.queries)
    passes = 3 if backward else 1
    return {"bytes_moved": passes * rows * size, "operations": (14 if backward else 4) * pairs * HEAD_SIZE}


def _skip_elsewhere(device: torch.device, where: str) -> None:
    if device.type != where:
        pytest.skip(f"a shape for {where}")


@DIRECTIONS
@pytest.mark.parametrize("implementation", ["fssops", "composition", "compiled", "peer sdpa"])
@AT_SHAPES
def test_mask_from_logits_and_attention(
    measure: Any, device: torch.device, shape: Shape, where: str, implementation: str, backward: bool
) -> None:
    _skip_elsewhere(device, where)
    if implementation == "compiled" and shape is not SHAPES[[w for _, w in SHAPES].index(where)][0]:
        pytest.skip("compiling takes long: one shape is enough")
    inputs = _inputs(shape, device)
    size = (shape.side, shape.side)

    def composition(query: Tensor, key: Tensor, value: Tensor, logits: Tensor) -> Tensor:
        return composed_attention(query, key, value, composed_mask(logits, size))

    compiled = torch.compile(composition)
    run: dict[str, Callable[[], Tensor]] = {
        "fssops": lambda: ops.masked_attention(
            inputs.query, inputs.key, inputs.value, ops.attention_mask_from_logits(inputs.logits, size)
        ),
        "composition": lambda: composition(inputs.query, inputs.key, inputs.value, inputs.logits),
        "compiled": lambda: compiled(inputs.query, inputs.key, inputs.value, inputs.logits),
        "peer sdpa": lambda: sdpa_attention(inputs.query, inputs.key, inputs.value, composed_mask(inputs.logits, size)),
    }
    forward = run[implementation]
    function = _with_backward(forward, inputs) if backward else lambda: _no_grad(forward)
    work = _work(shape, inputs, backward)
    work["bytes_moved"] += inputs.logits.numel() * inputs.logits.element_size()
    what = "mask+attention+backward" if backward else "mask+attention"
    measure(function, group=f"{what} {shape.name(device)}", implementation=implementation, **work)


def _no_grad(function: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return function()


def _flex(inputs: Inputs, closed: Tensor) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    opened = ~closed.view(*inputs.query.shape[:3], -1)[:, 0].contiguous()
    batch, _, queries, _ = inputs.query.shape

    def is_open(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return opened[b, q, k]

    block_mask = create_block_mask(is_open, batch, None, queries, inputs.key.shape[2], device=opened.device)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(inputs.query, inputs.key, inputs.value, block_mask=block_mask)


@DIRECTIONS
@pytest.mark.parametrize("implementation", ["fssops", "composition", "peer sdpa", "peer flex"])
@AT_SHAPES
def test_attention_alone(
    measure: Any, device: torch.device, shape: Shape, where: str, implementation: str, backward: bool
) -> None:
    _skip_elsewhere(device, where)
    if implementation == "peer flex" and not shape.flex:
        pytest.skip("FlexAttention is measured on a few shapes, on the GPU only")
    inputs = _inputs(shape, device)
    closed = composed_mask(inputs.logits, (shape.side, shape.side))
    q, k, v = inputs.query, inputs.key, inputs.value
    if implementation == "fssops":
        mask = ops.attention_mask_from_logits(inputs.logits, (shape.side, shape.side))
        forward: Callable[[], Tensor] = lambda: ops.masked_attention(q, k, v, mask)  # noqa: E731
    elif implementation == "composition":
        forward = lambda: composed_attention(q, k, v, closed)  # noqa: E731
    elif implementation == "peer sdpa":
        forward = lambda: sdpa_attention(q, k, v, closed)  # noqa: E731
    else:
        forward = _flex(inputs, closed)
    function = _with_backward(forward, inputs) if backward else lambda: _no_grad(forward)
    what = "attention+backward" if backward else "attention"
    measure(
        function, group=f"{what} {shape.name(device)}", implementation=implementation, **_work(shape, inputs, backward)
    )


@pytest.mark.parametrize("implementation", ["fssops", "fssops embeddings", "composition", "composition embeddings"])
@pytest.mark.parametrize(
    ("shape", "where"),
    [s for s in SHAPES if s[0].share == "half"],
    ids=[i for i, s in zip(_IDS, SHAPES, strict=True) if s[0].share == "half"],
)
def test_mask_alone(measure: Any, device: torch.device, shape: Shape, where: str, implementation: str) -> None:
    _skip_elsewhere(device, where)
    inputs = _inputs(shape, device)
    size = (shape.side, shape.side)
    embeddings = torch.randn(shape.batch, shape.queries, CHANNELS, device=device).to(inputs.logits.dtype)
    features = torch.randn(shape.batch, CHANNELS, shape.logits_side, shape.logits_side, device=device)
    features = features.to(inputs.logits.dtype)
    # Features are resized once an image and level; the product with the embeddings is what every layer repeats.
    resized = F.interpolate(features, size=size, mode="bilinear", align_corners=False).flatten(2)
    functions: dict[str, Callable[[], Any]] = {
        "fssops": lambda: ops.attention_mask_from_logits(inputs.logits, size),
        "fssops embeddings": lambda: ops.attention_mask_from_embeddings(embeddings, resized),
        "composition": lambda: composed_mask(inputs.logits, size),
        "composition embeddings": lambda: composed_mask(torch.einsum("bqc,bchw->bqhw", embeddings, features), size),
    }
    made = shape.batch * shape.queries * (shape.keys + 31) // 32 * 4
    size_of = inputs.logits.element_size()
    if "embeddings" in implementation:
        moved = made + (resized.numel() + embeddings.numel()) * size_of
        operations = 2.0 * shape.batch * shape.queries * shape.keys * CHANNELS
    else:
        moved, operations = made + inputs.logits.numel() * size_of, 0.0
    group = f"{'mask from embeddings' if 'embeddings' in implementation else 'mask from logits'} {shape.name(device)}"
    measure(
        lambda: _no_grad(functions[implementation]),
        group=group,
        implementation=implementation.split()[0],
        bytes_moved=moved,
        operations=operations,
    )
