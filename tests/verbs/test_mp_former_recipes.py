"""Every recipe of MP-Former: valid, as published, and its model can be built."""

from __future__ import annotations

import pytest
import torch

import fssops
from fssops.data.layouts import known_classes
from fssops.engine.optimizers import parameter_groups
from fssops.engine.schedules import learning_rate_factor
from fssops.models.mp_former import MPFormer, MPFormerConfig
from fssops.recipes import list_recipes
from fssops.tasks import load_task, task_of
from fssops.tasks.universal_settings import UniversalSettings

ALL = [name for name in list_recipes() if name.startswith("mp_former_")]
PUBLISHED = [name for name in ALL if name != "mp_former_generated"]

SCHEDULES = {
    "12ep": (88500, [73750, 81125]),
    "24ep": (177000, [162250, 169625]),
    "36ep": (265500, [245000, 260000]),
    "50ep": (368750, [327778, 355092]),
    "drop145k": (250000, [145000, 175000]),
    "drop170k": (250000, [170000, 200000]),
    "drop270k": (350000, [270000, 300000]),
    "drop395k": (450000, [395000, 425000]),
    "150k": (150000, [80000, 85000]),
    "ade20k": (160000, [135000, 150000]),
    "cityscapes": (90000, [80000, 85000]),
}


def settings_of(recipe: str) -> UniversalSettings:
    settings = load_task(recipe).settings
    assert isinstance(settings, UniversalSettings)
    return settings


def test_every_published_setting_has_a_recipe() -> None:
    expected = {f"coco_{task}_r50_{e}ep" for task in ("instance", "panoptic") for e in (12, 24, 36, 50)}
    expected |= {f"coco_instance_swin_large_drop{k}k" for k in (145, 170, 270, 395)}
    expected |= {f"ade20k_{t}_{b}" for t in ("semantic", "instance", "panoptic") for b in ("r50", "swin_large")}
    expected |= {f"cityscapes_{t}_{b}" for t in ("semantic", "instance") for b in ("r50", "r101", "swin_large")}
    expected |= {"cityscapes_panoptic_r50", "cityscapes_panoptic_swin_large", "cityscapes_semantic_r50_150k"}
    assert set(PUBLISHED) == {f"mp_former_{name}" for name in expected}


@pytest.mark.parametrize("recipe", ALL)
def test_recipe_is_valid_and_its_model_can_be_built(recipe: str) -> None:
    settings = settings_of(recipe)
    assert settings.name == recipe
    task = task_of(settings)
    with torch.device("meta"):
        model = fssops.create_model(settings.model.name, **settings.model.options)
    assert isinstance(model, MPFormer)
    groups = {name: group for group in parameter_groups(model, settings.optim) for name in group["names"]}
    assert groups["transformer_decoder.label_enc.weight"]["weight_decay"] == 0
    known = known_classes(settings.data.source, settings.data.truth)
    assert known is not None
    assert len(known) == task.config.num_classes
    if settings.data.truth == "panoptic":
        assert task.config.things == known.things


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipes_train_as_published(recipe: str) -> None:
    """The fact sheet, sections 1 and 5; data and optimiser are those of Mask2Former's recipes."""
    settings = settings_of(recipe)
    config = task_of(settings).config
    assert isinstance(config, MPFormerConfig)
    assert (config.pilot_mode, config.pilot_groups, config.noise_scale, config.label_noise) == ("points", 1, 0.0, 0.2)
    assert (config.all_layers, config.classify_piloted, config.head_noise) == (True, True, False)
    steps, milestones = next(value for key, value in SCHEDULES.items() if key in recipe.split("_"))
    assert settings.schedule.name == "step"
    assert settings.schedule.steps == steps
    factor = learning_rate_factor(settings.schedule)
    assert [factor(milestones[0] - 1), factor(milestones[0]), factor(milestones[1])] == pytest.approx([1, 0.1, 0.01])
    other = recipe.replace("mp_former", "mask2former")
    for key in SCHEDULES:
        other = other.removesuffix(f"_{key}")
    relative = settings_of(other)
    assert settings.optim == relative.optim
    assert settings.data == relative.data
    assert config.num_queries == task_of(relative).config.num_queries
