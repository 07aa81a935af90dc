"""The video recipe on generated videos, made so small that a run takes seconds."""

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
    "data.options={size=48,videos=6,frames=5}",
    "schedule.steps=2",
    "engine.batch_size=2",
    "engine.workers=0",
    "engine.log_every=1",
    "engine.save_every=2",
    "engine.validate_every=2",
    "engine.tensorboard=false",
    "engine.accelerator=cpu",
    "eval.options={size=48,videos=4,frames=5}",
    "eval.videos=3",
    "eval.validation_videos=2",
    "eval.pictures=1",
]


def settings_arguments(*overrides: str) -> list[str]:
    """The tiny overrides and further ones, as arguments of a verb."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]
