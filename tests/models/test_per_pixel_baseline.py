"""The per-pixel baselines train on label maps and give logits at the output size."""

from __future__ import annotations

import pytest
import torch
from universal_toys import small_batch

import fssops
from fssops.models.per_pixel_baseline import PerPixelBaseline, PerPixelBaselineConfig
from fssops.structures import IGNORE, ImageBatch


def small(plus: bool) -> PerPixelBaseline:
    model = fssops.create_model(
        "per_pixel_baseline",
        backbone="resnet18",
        num_classes=4,
        plus=plus,
        channels=32,
        mask_channels=32,
        heads=4,
        decoder_layers=2,
        hidden=32,
        dropout=0.0,
    )
    assert isinstance(model, PerPixelBaseline)
    return model


def labelled_batch() -> ImageBatch:
    batch = small_batch()
    assert batch.targets is not None
    for target, size in zip(batch.targets, batch.sizes, strict=True):
        target.label_map = torch.randint(0, 4, size)
        target.label_map[:3] = IGNORE
    return batch


@pytest.mark.parametrize("plus", [False, True])
def test_baselines_train_and_every_parameter_is_reached(plus: bool) -> None:
    model = small(plus).train()
    losses = model.losses(labelled_batch())
    assert set(losses) == ({"loss_sem_seg", "loss_sem_seg_0"} if plus else {"loss_sem_seg"})
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_ignored_and_padded_pixels_do_not_count() -> None:
    model = small(False).eval()
    batch = labelled_batch()
    with torch.no_grad():
        logits = model(batch)
        loss = model.losses(batch)["loss_sem_seg"]
    total, count = 0.0, 0
    for index, (target, (height, width)) in enumerate(zip(batch.targets or [], batch.sizes, strict=True)):
        labels = target.label_map[3:].long()
        own = logits[index, :, 3:height, :width].log_softmax(0).gather(0, labels[None])[0]
        total, count = total - float(own.sum()), count + own.numel()
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_a_batch_without_a_label_gives_zero() -> None:
    batch = labelled_batch()
    for target in batch.targets or []:
        target.label_map[:] = IGNORE
    assert float(small(False).losses(batch)["loss_sem_seg"].detach()) == 0


def test_results_have_the_output_size() -> None:
    batch = labelled_batch()
    batch.output_sizes = [(20, 30), (10, 10)]
    shapes = [tuple(r.semantic.scores.shape) for r in small(True).eval().segment(batch)]
    assert shapes == [(4, 20, 30), (4, 10, 10)]
    with pytest.raises(ValueError, match="tasks must be semantic, got panoptic"):
        small(False).segment(batch, ("panoptic",))


def test_labels_that_do_not_fit_are_named() -> None:
    batch = labelled_batch()
    batch.targets[1].label_map[5, 5] = 9
    with pytest.raises(ValueError, match=r"targets\[1\]\.label_map must hold 0\.\.3 or 255, got 9"):
        small(False).losses(batch)
    batch.targets[0].label_map = None
    with pytest.raises(ValueError, match=r"targets\[0\]\.label_map must be \[48, 70\], got None"):
        small(False).losses(batch)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": 48}, r"channels must be divisible by 32 \(GroupNorm\) and by heads \(8\), got 48"),
        ({"decoder_layers": 0, "plus": True}, "decoder_layers must be at least 1, got 0"),
        ({"size_divisor": -3}, "size_divisor must be at least 0, got -3"),
        ({"dropout": 1.5}, "dropout must be at least 0 and less than 1, got 1.5"),
    ],
)
def test_options_that_cannot_be_built_are_named(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=f"PerPixelBaselineConfig: {told}"):
        PerPixelBaselineConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("plus", [False, True])
def test_scores_are_float32_under_autocast(plus: bool) -> None:
    """As those of the other systems, and as they are written down: resized in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        (result, _) = small(plus).eval().segment(labelled_batch())
    assert result.semantic is not None
    assert result.semantic.scores.dtype == torch.float32
