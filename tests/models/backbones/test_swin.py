"""Swin: windows, shifts, padding and merging against plain compositions; its published weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fssops
from fssops.models.backbones.build import build_backbone
from fssops.models.backbones.swin import (
    SWIN,
    PatchMerging,
    SwinBlock,
    SwinForm,
    SwinTransformer,
    relative_position_index,
    shift_regions,
)

TINY = SwinForm(8, (2, 2, 2, 2), (1, 2, 2, 2), 3)


def test_relative_positions_of_a_window_by_hand() -> None:
    """2 x 2 tokens, 3 x 3 offsets: query at (0, 1), key at (1, 0) is row -1, column +1 -> 0 * 3 + 2."""
    index = relative_position_index(2)
    assert index[1, 2] == 2
    assert index.diagonal().tolist() == [4] * 4
    assert index[0, 3] == 0


def test_regions_of_one_window_are_cut_too() -> None:
    """A map of a single 3 x 3 window is still cut before its last row and column (3 // 2 = 1)."""
    regions = shift_regions(3, 3, 3)[0]
    assert regions[0, 4] == 0
    assert regions[0, 8] == -100
    assert regions[8, 8] == 0


def plain_block(block: SwinBlock, x: Tensor) -> Tensor:
    """A block without shift on a map of whole windows, window by window and head by head."""
    side, heads = block.window, block.attn.heads
    y = block.norm1(x)
    out = torch.zeros_like(x)
    bias = block.attn.relative_position_bias_table[relative_position_index(side)]
    for row in range(0, x.shape[1], side):
        for column in range(0, x.shape[2], side):
            tokens = y[:, row : row + side, column : column + side].flatten(1, 2)
            q, k, v = block.attn.qkv(tokens).chunk(3, dim=-1)
            merged = []
            for head, (hq, hk, hv) in enumerate(
                zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
            ):
                scores = hq @ hk.transpose(1, 2) / hq.shape[-1] ** 0.5 + bias[..., head]
                merged.append(scores.softmax(-1) @ hv)
            window = block.attn.proj(torch.cat(merged, dim=-1))
            out[:, row : row + side, column : column + side] = window.unflatten(1, (side, side))
    x = x + out
    return x + block.mlp(block.norm2(x))


def test_a_block_equals_its_definition() -> None:
    block = SwinBlock(8, 2, 3, shifted=False, drop_path=0.0)
    x = torch.randn(2, 6, 9, 8)
    torch.testing.assert_close(block(x, None), plain_block(block, x))


def test_a_shifted_block_sees_the_shifted_map_only_within_regions() -> None:
    """In the middle of a large map a shifted block is an unshifted block on the map cut one step later."""
    shifted = SwinBlock(8, 2, 3, shifted=True, drop_path=0.0)
    plain = SwinBlock(8, 2, 3, shifted=False, drop_path=0.0)
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 9, 9, 8)
    found = shifted(x, shift_regions(9, 9, 3))
    inner = plain(x[:, 1:7, 1:7], None)
    torch.testing.assert_close(found[:, 1:7, 1:7], inner)


def test_padding_takes_part_as_zero_tokens() -> None:
    block = SwinBlock(8, 2, 3, shifted=False, drop_path=0.0)
    x = torch.randn(1, 4, 5, 8)
    padded = torch.nn.functional.pad(block.norm1(x), (0, 0, 0, 1, 0, 2))
    windows = padded.view(1, 2, 3, 2, 3, 8).transpose(2, 3).reshape(4, 9, 8)
    attended = block.attn(windows, None).view(1, 2, 2, 3, 3, 8).transpose(2, 3).reshape(1, 6, 6, 8)[:, :4, :5]
    y = x + attended
    torch.testing.assert_close(block(x, None), y + block.mlp(block.norm2(y)))


def test_merging_takes_columns_of_a_square_first_down_then_right() -> None:
    merging = PatchMerging(1)
    x = torch.arange(4.0).view(1, 2, 2, 1)  # rows (0, 1), (2, 3)
    wanted = merging.reduction(merging.norm(torch.tensor([[0.0, 2.0, 1.0, 3.0]])))
    torch.testing.assert_close(merging(x).view(1, 2), wanted)
    assert merging(torch.zeros(1, 3, 5, 1)).shape == (1, 2, 3, 2)


def test_outputs_have_the_strides_and_widths_of_the_four_stages() -> None:
    model = SwinTransformer(TINY, drop_path=0.0).eval()
    features = model(torch.randn(2, 3, 45, 70))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "res2": (2, 8, 12, 18),
        "res3": (2, 16, 6, 9),
        "res4": (2, 32, 3, 5),
        "res5": (2, 64, 2, 3),
    }
    assert model.channels == {"res2": 8, "res3": 16, "res4": 32, "res5": 64}


def test_stochastic_depth_grows_with_depth_and_acts_in_training_only() -> None:
    model = SwinTransformer(TINY, drop_path=0.7)
    rates = [block.drop_path for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * n for n in range(8)])
    images = torch.randn(1, 3, 24, 24)
    model.eval()
    assert torch.equal(model(images)["res5"], model(images)["res5"])
    model.train()
    assert not torch.equal(model(images)["res5"], model(images)["res5"])


def official_names(model: SwinTransformer) -> dict[str, Tensor]:
    """A state dict as the ImageNet classifier's: no output norms, a head, and buffers."""
    state = {name: value + 1 for name, value in model.state_dict().items() if not name.startswith("norm")}
    state["head.weight"], state["norm.weight"] = torch.zeros(1000, 64), torch.ones(64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    state["layers.0.blocks.0.attn.relative_position_index"] = relative_position_index(3)
    return state


def test_official_imagenet_weights_load() -> None:
    model = SwinTransformer(TINY)
    state = official_names(model)
    report = fssops.load_weights(model, {"model": state})
    assert report.layout.startswith("official Swin")
    assert report.complete
    assert torch.equal(model.layers[1].downsample.reduction.weight, state["layers.1.downsample.reduction.weight"])
    assert float(model.norm0.weight.min()) == 1


def test_bias_tables_of_another_window_are_resampled() -> None:
    model = SwinTransformer(TINY)
    state = official_names(model)
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[key] = torch.full((81, 1), 2.5)
    fssops.load_weights(model, state)
    torch.testing.assert_close(
        model.layers[0].blocks[0].attn.relative_position_bias_table.data, torch.full((25, 1), 2.5)
    )


def test_published_sizes_and_unknown_names() -> None:
    assert [form.window for form in SWIN.values()] == [7, 7, 12, 12]
    assert sum(p.numel() for p in build_backbone("swin_tiny").parameters()) == pytest.approx(27.52e6, rel=1e-3)
    with pytest.raises(
        ValueError, match="swin_tiny, swin_small, swin_base, swin_large, .*, got 'swin_huge'; did you mean 'swin_"
    ):
        build_backbone("swin_huge")  # type: ignore[arg-type]
    deeplab = build_backbone("resnet50_deeplab")
    assert deeplab.res5[2].conv2.dilation == (4, 4)
