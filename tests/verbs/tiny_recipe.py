"""The default recipe, made so small that it finishes in about a second."""

from __future__ import annotations

TINY = [
    "model.backbone_width=8",
    "data.size=[48,48]",
    "data.options={size=48,images_per_class=6}",
    "schedule.steps=6",
    "engine.batch_size=2",
    "engine.log_every=2",
    "engine.save_every=3",
    "engine.validate_every=3",
    "engine.tensorboard=false",
    "engine.accelerator=cpu",
    "eval.runs=2",
    "eval.episodes=10",
    "eval.validation_episodes=4",
    "eval.pictures=2",
]


def settings_arguments(*overrides: str) -> list[str]:
    """The tiny overrides and further ones, as arguments of a verb."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]
