"""The layers of the transformers against plain compositions and PyTorch's own modules."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.feed_forward import MLP, FeedForward
from fssops.models.layers.ms_deform_attn import MSDeformAttn
from fssops.models.layers.position_encoding import PositionEncodingCache, sine_position_encoding
from fssops.models.layers.tensor_cache import TensorCache


def test_position_encoding_of_a_cell_by_hand() -> None:
    """Row 1 of 2, column 2 of 3, 8 channels: 4 of the row, then 4 of the column, sine and cosine in turn."""
    found = sine_position_encoding(2, 3, 8)[0 * 3 + 1]
    row, column = 1 / (2 + 1e-6) * 2 * math.pi, 2 / (3 + 1e-6) * 2 * math.pi
    slow = 10000 ** (2 / 4)
    wanted = [f(position / scale) for position in (row, column) for scale in (1, slow) for f in (math.sin, math.cos)]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=0)


def test_position_encoding_of_clips_adds_the_frame() -> None:
    clip = sine_position_encoding(2, 3, 8, frames=2).view(2, 6, 8)
    difference = clip - sine_position_encoding(2, 3, 8)
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-6)
    torch.testing.assert_close(
        difference[0, 0, 0], torch.tensor(math.sin(1 / (2 + 1e-6) * 2 * math.pi)), atol=1e-5, rtol=0
    )


def test_position_encodings_are_kept_by_size_and_serve_training_after_inference() -> None:
    cache = PositionEncodingCache(8)
    with torch.inference_mode():
        first = cache((2, 3), torch.device("cpu"))
    assert cache((2, 3), torch.device("cpu")) is first
    weight = torch.ones(8, requires_grad=True)
    (first * weight).sum().backward()
    assert weight.grad is not None


def test_position_encodings_of_clips_are_not_kept() -> None:
    """They are as large as the clip, and videos are of many lengths."""
    cache = PositionEncodingCache(8)
    for frames in range(1, 30):
        clip = cache((2, 3), torch.device("cpu"), frames)
        assert torch.equal(clip, sine_position_encoding(2, 3, 8, frames))
    assert cache._grids.bytes_kept == 2 * 3 * 8 * 4


def test_tensors_made_last_are_kept_up_to_a_number_of_bytes() -> None:
    kept, made = TensorCache(limit=100), []

    def of(key: str, numbers: int) -> None:
        kept.of(key, lambda: (made.append(key), torch.zeros(numbers))[1])

    for key in ("a", "b", "a", "b", "c", "b", "a"):  # two of them fit
        of(key, 12)
    assert "".join(made) == "abca"
    assert kept.bytes_kept == 96
    of("large", 1000)
    of("large", 1000)
    assert made[-1:] == ["large"]
    assert made.count("large") == 1
    assert kept.bytes_kept == 4000


def test_channels_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="channels must be divisible by 4, got 6"):
        sine_position_encoding(2, 2, 6)
    with pytest.raises(ValueError, match="heads must divide channels 32, got 5"):
        MultiheadAttention(32, 5)


def as_torch(module: MultiheadAttention) -> nn.MultiheadAttention:
    """PyTorch's module with the same weights."""
    twin = nn.MultiheadAttention(module.channels, module.heads, batch_first=True)
    twin.load_state_dict(module.state_dict())
    return twin


def test_attention_equals_pytorchs_with_the_same_names() -> None:
    module = MultiheadAttention(32, 4)
    nn.init.normal_(module.in_proj_bias)
    q, k, v = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    torch.testing.assert_close(module(q, k, v), as_torch(module)(q, k, v)[0])
    positions = torch.randn(5, 32)
    placed = q + positions
    torch.testing.assert_close(module.self_attention(q, positions), as_torch(module)(placed, placed, q)[0])
    torch.testing.assert_close(module.self_attention(q, None), as_torch(module)(q, q, q)[0])


def test_masks_block_keys() -> None:
    module = MultiheadAttention(32, 4)
    q, k = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    blocked = torch.rand(5, 5) < 0.5
    blocked.fill_diagonal_(False)
    torch.testing.assert_close(module.self_attention(q, None, blocked), as_torch(module)(q, q, q, attn_mask=blocked)[0])
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 3:] = True
    torch.testing.assert_close(
        module(q, k, k, padding[:, None, None]), as_torch(module)(q, k, k, key_padding_mask=padding)[0]
    )


def test_feed_forward_and_mlp_equal_their_formulas() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    ffn, mlp = FeedForward(8, 16), MLP(8, 16, 4)
    torch.testing.assert_close(ffn(x), ffn.linear2(ffn.linear1(x).relu()))
    torch.testing.assert_close(mlp(x), mlp.layers[1](mlp.layers[0](x).relu()))
    (ffn(x).sum() + mlp(x).sum()).backward()
    assert x.grad is not None


def test_dropout_acts_in_training_only() -> None:
    ffn = FeedForward(8, 64, dropout=0.5)
    x = torch.randn(2, 8)
    assert not torch.equal(ffn.train()(x), ffn.train()(x))
    assert torch.equal(ffn.eval()(x), ffn.eval()(x))


def plain_deformable(
    module: MSDeformAttn, query: Tensor, reference: Tensor, value: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """Equation 3 of Deformable DETR, point by point."""
    batch, queries, _ = query.shape
    values = module.value_proj(value).view(batch, value.shape[1], module.heads, -1)
    offsets = module.sampling_offsets(query).view(batch, queries, module.heads, module.levels, module.points, 2)
    weights = module.attention_weights(query).view(batch, queries, module.heads, -1).softmax(-1)
    weights = weights.view(batch, queries, module.heads, module.levels, module.points)
    out = torch.zeros(batch, queries, module.heads, values.shape[-1])
    start = 0
    for level, (height, width) in enumerate(sizes):
        plane = values[:, start : start + height * width].view(batch, height, width, module.heads, -1)
        start += height * width
        for b, q, m, p in np.ndindex(batch, queries, module.heads, module.points):
            x, y = (reference[b, q, level] * torch.tensor([width, height]) + offsets[b, q, m, level, p] - 0.5).tolist()
            for row, column in (
                (r, c) for r in (math.floor(y), math.floor(y) + 1) for c in (math.floor(x), math.floor(x) + 1)
            ):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[b, q, m] += weights[b, q, m, level, p] * share * plane[b, row, column, m]
    return module.output_proj(out.flatten(2))


def test_deformable_attention_equals_its_formula() -> None:
    module = MSDeformAttn(8, 2, 2, 2)
    nn.init.normal_(module.sampling_offsets.weight)
    nn.init.normal_(module.attention_weights.weight)
    sizes = [(2, 3), (4, 5)]
    query, value, reference = torch.randn(2, 3, 8), torch.randn(2, 26, 8), torch.rand(2, 3, 2, 2)
    with torch.no_grad():
        found = module(query, reference, value, sizes)
        torch.testing.assert_close(
            found, plain_deformable(module, query, reference, value, sizes), atol=1e-5, rtol=1e-4
        )


def test_padded_values_count_as_zero() -> None:
    module = MSDeformAttn(8, 2, 1, 2)
    value, query, reference = torch.randn(1, 12, 8), torch.randn(1, 3, 8), torch.rand(1, 3, 1, 2)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 6:] = True
    spoilt = value.clone()
    spoilt[:, 6:] = 9.0
    sizes = [(3, 4)]
    assert torch.equal(
        module(query, reference, value, sizes, padding), module(query, reference, spoilt, sizes, padding)
    )


def test_deformable_attention_equals_the_authors_module(oracle_root: Path) -> None:
    """Also with 4-d references, padding, and the ring of initial offsets."""
    folder = oracle_root / "msdeformattn_op"
    case = json.loads((folder / "case.json").read_text())
    from parity_cases.case import Case

    state = Case.read(folder).weights()
    module = MSDeformAttn(256, 8, 3, 4)
    with np.load(folder / "arrays.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    torch.testing.assert_close(
        module.sampling_offsets.bias.detach(), arrays["init_sampling_offsets_bias"], atol=1e-6, rtol=0
    )
    module.load_state_dict(state)
    sizes = [(int(h), int(w)) for h, w in case["spatial_shapes"]]
    given = (arrays["mod_query"], arrays["mod_reference_points"], arrays["mod_input_flatten"], sizes)
    with torch.no_grad():
        found = module(*given, arrays["mod_padding_mask"])
    wanted = arrays["mod_output"]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    boxes = torch.cat((arrays["mod_reference_points"], torch.full_like(arrays["mod_reference_points"], 0.3)), dim=-1)
    with torch.no_grad():
        found = module(given[0], boxes, *given[2:])
    wanted = arrays["mod_output_ref4"]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
