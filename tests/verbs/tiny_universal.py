"""The universal recipe on generated scenes, made so small that a run takes seconds."""

from __future__ import annotations

TINY = [
    "model.num_queries=8",
    "model.channels=32",
    "model.mask_channels=32",
    "model.encoder_layers=1",
    "model.encoder_hidden=32",
    "model.decoder_layers=1",
    "model.decoder_hidden=32",
    "model.train_points=128",
    "model.object_threshold=0.0",
    "model.overlap_threshold=0.0",
    "model.detections=10",
    "data.options={size=48,images=6}",
    "schedule.steps=2",
    "engine.batch_size=2",
    "engine.workers=0",
    "engine.log_every=1",
    "engine.save_every=2",
    "engine.validate_every=2",
    "engine.tensorboard=false",
    "engine.accelerator=cpu",
    "eval.options={size=48,images=4}",
    "eval.images=3",
    "eval.validation_images=2",
    "eval.pictures=1",
]


def settings_arguments(*overrides: str) -> list[str]:
    """The tiny overrides and further ones, as arguments of a verb."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]
