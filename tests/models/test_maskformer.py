"""MaskFormer: the authors' cases and what sets it apart from Mask2Former."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest
import torch
from universal_toys import small_batch, small_model


@pytest.mark.parametrize("name", ["maskformer_r50_semantic", "maskformer_r50_panoptic"])
def test_every_array_of_the_authors_case_is_reproduced(oracle_root: Path, name: str) -> None:
    """Per-layer logits, assignments, costs, losses, gradients, first step, and the inferences."""
    lines = list(parity.lines_of(oracle_root / name))
    assert not [str(line) for line in lines if line.out]
    assert not [line.name for line in lines if line.error is None and "input" not in line.measure]
    assert sum(line.error is not None for line in lines) > 40


def test_every_layer_has_its_losses() -> None:
    names = set(small_model("maskformer", decoder_layers=3).train().losses(small_batch()))
    assert names == {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")}


def test_the_encoder_is_what_the_decoder_attends_to() -> None:
    """With encoder layers the memory has the width of the queries and needs no projection; without, res5's."""
    plain, encoded = small_model("maskformer"), small_model("maskformer", encoder_layers=1)
    assert plain.transformer_decoder.input_proj is not None
    assert encoded.transformer_decoder.input_proj is None
    images, _ = plain.image_input(small_batch().images)
    assert plain.pixel_decoder(plain.backbone(images)).memory[0].shape == (2, 6, 512)
    assert encoded.pixel_decoder(encoded.backbone(images)).memory[0].shape == (2, 6, 32)


def test_before_the_first_layer_all_queries_are_the_same() -> None:
    """Content starts at zero, so the first self-attention gives every query the same sum of biases."""
    layer = small_model("maskformer").transformer_decoder.layers[0].eval()
    torch.nn.init.normal_(layer.self_attn.in_proj_bias)
    zeros = torch.zeros(1, 6, 32)
    out = layer.self_attn.self_attention(zeros, torch.randn(6, 32))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_dropout_is_on_in_training_by_default() -> None:
    model = small_model("maskformer", dropout=0.1).train()
    batch = small_batch()
    with torch.no_grad():
        assert not torch.equal(model(batch).class_logits, model(batch).class_logits)
