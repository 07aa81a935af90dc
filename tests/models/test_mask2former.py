"""Mask2Former: the authors' case, published sizes, and what sets it apart from MaskFormer."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest
import torch
from universal_toys import small_batch, small_model

from fssops.losses.point_sources import RandomPoints
from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.models.pixel_decoders.features import PixelFeatures


def test_every_array_of_the_authors_case_is_reproduced(oracle_root: Path) -> None:
    """Per-layer logits, attention bits, assignments, costs, losses, gradients, first step, the three inferences."""
    lines = list(parity.lines_of(oracle_root / "mask2former_r50_panoptic"))
    assert not [str(line) for line in lines if line.out]
    assert not [line.name for line in lines if line.error is None and "input" not in line.measure]
    assert sum(line.error is not None for line in lines) > 80


@pytest.mark.parametrize(
    ("options", "millions"),
    [({}, 43.98), ({"backbone": "swin_tiny", "num_classes": 150}, 47.44)],
    ids=["r50-coco-panoptic", "swin-tiny-ade"],
)
def test_published_models_have_their_number_of_parameters(options: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        model = Mask2Former(Mask2FormerConfig(**options))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_there_is_a_head_before_the_first_layer() -> None:
    model = small_model("mask2former", decoder_layers=3).train()
    assert len(model(small_batch()).class_logits) == 4
    names = set(model.losses(small_batch()))
    assert names == {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")}


def test_losses_are_a_function_of_the_generator() -> None:
    model = small_model("mask2former").train()
    assert isinstance(model, Mask2Former)
    totals = []
    for seed in (1, 1, 2):
        points = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(seed))
        totals.append(float(sum(model.losses(small_batch(), points).values()).detach()))
    assert totals[0] == totals[1] != totals[2]


def test_attention_masks_open_what_the_embedding_calls_inside() -> None:
    """Bits at each level equal the sign of the resized full logits; an empty mask is open everywhere."""
    model = small_model("mask2former").eval()
    decoder = model.transformer_decoder
    features = torch.randn(2, 1, 16, 16, 24)
    sizes = [(2, 3), (4, 6), (8, 12)]
    memory = decoder.prepare([torch.randn(2, h * w, 32) for h, w in sizes], sizes, features)
    embeddings = torch.randn(2, 6, 16)
    embeddings[0, 0] = 0
    logits = torch.einsum("bqe,behw->bqhw", embeddings, features[:, 0])
    for level, size in enumerate(sizes):
        resized = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(2)
        wanted = (resized < 0) & ~(resized < 0).all(-1, keepdim=True)
        found = decoder.attention_mask(embeddings, memory, level).closed()[:, 0]
        sure = (resized.abs() > 1e-5) | (resized == 0)
        assert torch.equal(found[sure], wanted[sure])


def test_memory_of_clips_runs_over_frames() -> None:
    """Keys of both frames stand one after the other, with a position that tells them apart."""
    from fssops.models.transformer_decoders.masked import MaskedTransformerDecoder

    decoder = MaskedTransformerDecoder(
        32,
        num_classes=3,
        num_queries=4,
        channels=32,
        mask_channels=16,
        heads=4,
        layers=1,
        hidden=32,
        levels=1,
        clips=True,
    )
    frames = torch.randn(2, 6, 32)
    memory = decoder.prepare([frames], [(2, 3)], torch.randn(1, 2, 16, 8, 12))
    assert memory.values[0].shape == (1, 12, 32)
    torch.testing.assert_close(memory.values[0][0, 6:], frames[1] + decoder.level_embed.weight[0])
    assert memory.mask_features[0].shape == (1, 16, 12)
    assert decoder(memory, auxiliary=True).mask_embeddings.shape == (2, 1, 4, 16)


def test_recomputed_encoder_layers_give_the_same_gradients() -> None:
    """Less is kept for the backward pass; nothing else changes."""
    kept, recomputed = (small_model("mask2former", recompute=choice).train() for choice in (False, True))
    recomputed.load_state_dict(kept.state_dict())
    for model in (kept, recomputed):
        assert isinstance(model, Mask2Former)
        points = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(1))
        torch.stack(list(model.losses(small_batch(), points).values())).sum().backward()
    for (name, a), b in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_the_pixel_decoder_is_in_float32_where_it_is_published_so_and_in_bfloat16_for_predictions() -> None:
    """Trained, and under float16, it gives the values of float32; predicting under bfloat16 its tokens stay float32."""
    model = small_model("mask2former").eval()
    assert isinstance(model, Mask2Former)
    with torch.no_grad():
        maps = model.maps(torch.rand(1, 3, 64, 96))
    plain = model.pixel_decoder(maps)

    def under(dtype: torch.dtype) -> PixelFeatures:
        with torch.autocast("cpu", dtype):
            whole = model.pixel_decoder(maps)
            in_steps = model.pixel_decoder.decode(*model.pixel_decoder.project(maps))
        assert torch.equal(whole.mask_features, in_steps.mask_features)
        return whole  # type: ignore[no-any-return]

    assert torch.equal(under(torch.bfloat16).mask_features, plain.mask_features)
    with torch.no_grad():
        torch.testing.assert_close(under(torch.float16).mask_features, plain.mask_features)
        half = under(torch.bfloat16)
    assert half.mask_features.dtype == torch.bfloat16
    for found, wanted in zip([half.mask_features, *half.memory], [plain.mask_features, *plain.memory], strict=True):
        assert found is half.mask_features or found.dtype == torch.float32
        assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.02
