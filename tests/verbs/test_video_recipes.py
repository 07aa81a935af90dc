"""Every recipe of the video system: valid, as published, and its model can be built."""

from __future__ import annotations

import pytest
import torch

import fssops
from fssops.data.layouts import known_classes
from fssops.engine.optimizers import parameter_groups
from fssops.engine.settings import SettingsError
from fssops.recipes import list_recipes
from fssops.tasks import load_task, task_of
from fssops.tasks.video import VideoTask
from fssops.tasks.video_settings import VideoSettings

ALL = [name for name in list_recipes() if name.startswith("mask2former_vis_")]
SMALL = {"mask2former_vis_generated", "mask2former_vis_mini_davis"}
BACKBONES = {"r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_large"}


def video_settings(recipe: str, *overrides: str) -> VideoSettings:
    settings = load_task(recipe, overrides).settings
    assert isinstance(settings, VideoSettings)
    return settings


def test_every_data_set_and_backbone_has_a_recipe() -> None:
    published = {f"mask2former_vis_{data}_{b}" for data in ("ytvis2019", "ytvis2021", "ovis") for b in BACKBONES}
    assert set(ALL) == published | SMALL


@pytest.mark.parametrize("recipe", ALL)
def test_recipe_is_valid_and_its_model_can_be_built(recipe: str) -> None:
    settings = video_settings(recipe)
    assert settings.name == recipe
    assert ("published" in settings.description) == (recipe not in SMALL)
    task = task_of(settings)
    assert isinstance(task, VideoTask)
    with torch.device("meta"):
        model = fssops.create_model(settings.model.name, **settings.model.options)
    groups = parameter_groups(model, settings.optim)
    assert sum(p.numel() for group in groups for p in group["params"]) > 1e6
    known = known_classes(settings.data.source, "video")
    if settings.data.source == "ytvis":  # one's own videos, whose classes are in their files
        assert known is None
        return
    assert known is not None
    assert len(known) == task.config.num_classes
    assert len(task.classes()) == task.config.num_classes


@pytest.mark.parametrize("recipe", [name for name in ALL if "ytvis" in name])
def test_published_recipes_have_the_published_numbers(recipe: str) -> None:
    """The values of the fact sheet, sections 4, 5 and 6."""
    settings = video_settings(recipe)
    optim, schedule, data, rules = settings.optim, settings.schedule, settings.data, settings.eval
    assert (optim.name, optim.lr, optim.weight_decay, optim.backbone_lr_scale) == ("adamw", 1e-4, 0.05, 0.1)
    assert (optim.weight_decay_norm, optim.weight_decay_embedding, optim.clip_norm) == (0.0, 0.0, 0.01)
    steps, milestone = (6000, 4000) if "2019" in recipe else (8000, 5500)
    assert (schedule.steps, schedule.name, schedule.milestones, schedule.gamma) == (steps, "step", [milestone], 0.1)
    assert (settings.engine.batch_size, settings.engine.precision) == (16, "fp16")
    assert (data.frames, data.reach, data.augment, data.short_sides) == (2, 20, "flip", [360, 480])
    assert (rules.short_side, rules.longest) == (480 if "swin" in recipe else 360, 1333)
    config = task_of(settings).config
    assert (config.num_queries, config.detections, config.window) == (200 if "large" in recipe else 100, 10, 0)
    assert (config.class_weight, config.mask_weight, config.no_object_weight) == (2.0, 5.0, 0.1)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.num_classes=9", "num_classes must be the number of classes of generated_videos train, 5, got 9"),
        ("data.frames=0", "data.frames must be greater than or equal to 1, got 0"),
        ("data.source=mp4", "data.source must be"),
        ("data.reech=3", "did you mean 'data.reach'"),
        ("model.window=-2", "window must be at least 0, got -2"),
        ("eval.window=2", r"eval.window must be 0 or more than model.overlap \(2\), got 2"),
        ("model.behaviour=odd", "behaviour"),
        ("data.options={size=4}", "size must be an integer from 32 to 512, got 4"),
    ],
)
def test_wrong_settings_are_told(override: str, told: str) -> None:
    with pytest.raises((SettingsError, ValueError), match=told) as caught:
        load_task("mask2former_vis_generated", [override]).training_data()
    assert "\n" not in str(caught.value)
