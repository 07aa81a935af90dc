"""Every recipe of the fixed-class systems: valid, as published, and its model can be built."""

from __future__ import annotations

import pytest
import torch

import fssops
from fssops.data.layouts import known_classes
from fssops.engine.optimizers import parameter_groups
from fssops.engine.schedules import learning_rate_factor
from fssops.recipes import list_recipes
from fssops.tasks import load_task, task_of
from fssops.tasks.universal import UniversalTask
from fssops.tasks.universal_settings import UniversalSettings

FAMILY = ("mask2former_", "maskformer_", "per_pixel_baseline_")
ALL = [name for name in list_recipes() if name.startswith(FAMILY) and not name.startswith("mask2former_vis")]
PUBLISHED = [name for name in ALL if name.split("_")[-1] not in ("generated", "camvid") and "_mini_" not in name]
BACKBONES = {"r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_large"}


def universal_settings(recipe: str) -> UniversalSettings:
    settings = load_task(recipe).settings
    assert isinstance(settings, UniversalSettings)
    return settings


@pytest.mark.parametrize("recipe", ALL)
def test_recipe_is_valid_and_its_model_can_be_built(recipe: str) -> None:
    settings = universal_settings(recipe)
    assert settings.name == recipe
    assert "published" in settings.description or recipe not in PUBLISHED
    task = task_of(settings)
    assert isinstance(task, UniversalTask)
    with torch.device("meta"):
        model = fssops.create_model(settings.model.name, **settings.model.options)
    groups = parameter_groups(model, settings.optim)
    assert sum(p.numel() for group in groups for p in group["params"]) > 1e6
    known = known_classes(settings.data.source, settings.data.truth)
    assert known is not None
    assert len(known) == task.config.num_classes
    if settings.data.truth == "panoptic":
        assert task.config.things == known.things


def test_every_published_setting_has_a_recipe() -> None:
    expected = {f"mask2former_coco_{task}_{b}" for task in ("panoptic", "instance") for b in BACKBONES}
    expected |= {f"mask2former_cityscapes_{t}_{b}" for t in ("semantic", "instance", "panoptic") for b in BACKBONES}
    expected |= {f"mask2former_ade20k_semantic_{b}" for b in BACKBONES}
    expected |= {f"mask2former_ade20k_{task}_{b}" for task in ("panoptic", "instance") for b in ("r50", "swin_large")}
    expected |= {f"maskformer_ade20k_semantic_{b}" for b in (*BACKBONES, "r101c")}
    expected |= {f"maskformer_coco_panoptic_{b}" for b in BACKBONES}
    expected |= {f"maskformer_ade20k_panoptic_{b}" for b in ("r50", "r101")}
    expected |= {f"maskformer_cityscapes_semantic_{b}" for b in ("r101", "r101c")}
    expected |= {"per_pixel_baseline_ade20k_semantic_r50", "per_pixel_baseline_plus_ade20k_semantic_r50"}
    assert set(PUBLISHED) == expected


@pytest.mark.parametrize("recipe", [name for name in PUBLISHED if name.startswith("mask2former")])
def test_mask2former_recipes_train_as_published(recipe: str) -> None:
    """The fact sheet, sections 8 and 9."""
    settings = universal_settings(recipe)
    optim, schedule, data = settings.optim, settings.schedule, settings.data
    assert (optim.name, optim.lr, optim.weight_decay, optim.backbone_lr_scale) == ("adamw", 1e-4, 0.05, 0.1)
    assert (optim.weight_decay_norm, optim.weight_decay_embedding, optim.weight_decay_bias) == (0.0, 0.0, None)
    assert (optim.clip_norm, optim.betas, optim.eps) == (0.01, (0.9, 0.999), 1e-8)
    assert (settings.engine.batch_size, settings.engine.precision) == (16, "fp16")
    steps = {"ade20k": 160000, "cityscapes": 90000, "coco": 737500 if "swin_large" in recipe else 368750}
    assert schedule.steps == steps[recipe.split("_")[1]]
    assert schedule.name == ("step" if "_coco_" in recipe else "poly")
    queries = settings.model.options.get("num_queries", 100)
    assert queries == (200 if recipe.endswith("swin_large") and "semantic" not in recipe else 100)
    if "_coco_" in recipe:
        assert (data.augment, data.side, data.scales) == ("large_scale_jitter", 1024, (0.1, 2.0))
        assert (settings.eval.short_side, settings.eval.longest) == (800, 1333)
    elif "_cityscapes_" in recipe:
        assert (data.crop, data.pad, data.longest, min(data.short_sides), max(data.short_sides)) == (
            (512, 1024), False, 4096, 512, 2048,
        )  # fmt: skip
    else:
        base = 640 if "semantic" not in recipe or recipe.endswith(("base", "large")) else 512
        assert (data.crop, data.pad, data.longest) == ((base, base), True, 4 * base)
        assert data.short_sides == [int(0.1 * k * base) for k in range(5, 21)]


def test_learning_rates_fall_as_published() -> None:
    coco = learning_rate_factor(universal_settings("mask2former_coco_panoptic_r50").schedule)
    assert [coco(step) for step in (0, 327777, 327778, 355092)] == pytest.approx([1, 1, 0.1, 0.01])
    ade = learning_rate_factor(universal_settings("mask2former_ade20k_semantic_r50").schedule)
    assert ade(80000) == pytest.approx(0.5**0.9)
    swin = learning_rate_factor(universal_settings("maskformer_ade20k_semantic_swin_tiny").schedule)
    assert swin(0) == pytest.approx(1e-6)
    assert swin(750) == pytest.approx(0.5 * (1 - 750 / 160000) ** 0.9, rel=1e-5)
    assert swin(1500) == pytest.approx((1 - 1500 / 160000) ** 0.9)


@pytest.mark.parametrize("backbone", ["r50", "swin_tiny"])
def test_maskformer_recipes_differ_by_backbone_as_published(backbone: str) -> None:
    optim = universal_settings(f"maskformer_coco_panoptic_{backbone}").optim
    expected = (1e-4, 1e-4, 0.1) if backbone == "r50" else (6e-5, 0.01, 1.0)
    assert (optim.lr, optim.weight_decay, optim.backbone_lr_scale) == expected


def test_models_other_than_the_data_set_are_told() -> None:
    from fssops.engine.settings import SettingsError

    for override, told in (
        ("model.num_classes=9", "model.num_classes must be the number of classes of generated train, 8, got 9"),
        (
            "model.things=[3]",
            r"model.things must list the countable classes of generated train, \[3, 4, 5, 6, 7\], got \[3\]",
        ),
        ("data.augment=resize_crop", "short_sides must be given for augment resize_crop"),
        ("data.truth=boxes", "data.truth must be"),
        ("data.sides=3", "did you mean 'data.side'"),
        ("eval.tasks=['depth']", "eval.tasks"),
    ):
        with pytest.raises(SettingsError, match=told):
            load_task("mask2former_generated", [override]).training_data()
