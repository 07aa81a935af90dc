"""The recipes of the package: valid, and the published ones exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssops.engine.settings import SettingsError
from fssops.protocols import find_protocol
from fssops.recipes import DEFAULT, compact, list_recipes, read_named_recipe
from fssops.tasks import load_task, task_of
from fssops.tasks.few_shot_settings import FewShotSettings
from fssops.tasks.trained_models import load_trained

FEW_SHOT = [name for name in list_recipes() if name.startswith("panet_")]


def few_shot(recipe: str, *overrides: str) -> FewShotSettings:
    settings = load_task(recipe, overrides).settings
    assert isinstance(settings, FewShotSettings)
    return settings


@pytest.mark.parametrize("recipe", FEW_SHOT)
def test_recipe_is_valid_and_named_as_its_file(recipe: str) -> None:
    settings = few_shot(recipe)
    assert settings.name == recipe
    assert task_of(settings).rules == find_protocol(settings.eval.protocol).name


def test_default_recipe_exists() -> None:
    assert DEFAULT in list_recipes()


@pytest.mark.parametrize("recipe", ["panet_pascal5i", "panet_coco20i"])
def test_panet_recipes_are_as_published(recipe: str) -> None:
    """The values of the fact sheet, sections 2, 3, 5 and 6."""
    settings = few_shot(recipe)
    optim, schedule, data = settings.optim, settings.schedule, settings.data
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-3, 0.9, 5e-4)
    assert (optim.nesterov, optim.clip_norm, optim.frozen, optim.groups) == (False, 0.0, [], [])
    assert (schedule.steps, schedule.name, schedule.gamma) == (30000, "step", 0.1)
    assert schedule.milestones == [10000, 20000, 30000]
    assert schedule.warmup_steps == 0
    assert (settings.engine.seed, settings.engine.batch_size, settings.engine.save_every) == (1234, 1, 10000)
    assert (data.ways, data.shots, data.queries, data.size, data.augment) == (1, 1, 1, (417, 417), "flip")
    assert (data.draw, data.drop_novel, data.ignore_in_support, data.min_area) == ("panet", False, "background", 1)
    assert settings.model.options == {"backbone": "vgg16", "align": True, "align_weight": 1.0, "scale": 20.0}
    assert (settings.eval.protocol, settings.eval.checkpoint) == ("panet", "last")
    protocol = find_protocol(settings.eval.protocol)
    assert protocol.runs * protocol.episodes == 5000


def test_panet_data_sets_differ_as_published() -> None:
    pascal, coco = few_shot("panet_pascal5i").data, few_shot("panet_coco20i").data
    assert (pascal.source, pascal.split, pascal.folds, pascal.other_ways) == ("voc", "trainaug", "pascal5i", "label")
    assert (coco.source, coco.split, coco.folds, coco.definition) == ("coco", "train2014", "coco20i", "panet")
    assert (coco.other_ways, coco.options) == ("background", {"crowd": "object"})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.bakbone=vgg16", "did you mean 'model.backbone'|did you mean 'backbone'"),
        ("model.backbone=vgg19", "backbone"),
        ("model.align_weight=heavy", "align_weight"),
        ("data.fold=4", "data.fold must be less than or equal to 3, got 4"),
        ("data.sise=[1,1]", "did you mean 'data.size'"),
        ("eval.protocol=panett", "did you mean 'panet'"),
        ("model.name=panit", "model.name must be one of .*panet.*, got 'panit'"),
    ],
)
def test_wrong_setting_is_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        load_task("panet_generated", [override])
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'panet_pascal5i'"):
        load_task("panet_pascal")


def test_another_data_source_drops_what_the_recipe_says_of_its_own() -> None:
    settings = few_shot("panet_generated", "data.source=folder", "data.root=mine", "data.split=val")
    assert settings.data.options == {}
    assert (settings.data.folds, settings.data.split, settings.eval.split) == ("custom", "val", None)
    assert settings.data.size == (96, 96)
    assert few_shot("panet_generated", "data.source=generated").data.options["size"] == 96
    scenes = load_task("mask2former_generated", ["data.source=camvid", "data.root=mine"]).settings
    assert (scenes.data.options, scenes.eval.options) == ({}, None)  # type: ignore[attr-defined]


def test_another_data_source_drops_what_a_run_says_of_its_own(tiny_run: Path) -> None:
    settings = load_trained(tiny_run, None, ["data.source=folder", "data.root=mine"]).task.settings
    assert (settings.data.options, settings.data.folds) == ({}, "custom")  # type: ignore[attr-defined]
    settings = load_trained(tiny_run, None, ["data.source=generated"]).task.settings
    assert settings.data.options["size"] == 48  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.scales=[2.0,0.1]", r"data.scales must be two factors above 0, the lesser first, got \[2.0, 0.1\]"),
        ("data.scales=[0.0,1.0]", r"data.scales must be two factors above 0"),
        ("data.crop=[0,-3]", "data.crop.0 must be greater than or equal to 1, got 0"),
    ],
)
def test_sizes_of_augmentation_that_cannot_be_are_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_task("mask2former_generated", [override])


COMMON = """
[model]
name = "panet"
backbone = "vgg16"
[data]
size = [96, 96]
options = { size = 48, classes = 4 }
[optim]
lr = 0.1
[variants.deep]
description = "a deep one"
model.backbone = "resnet50"
data.options.size = 64
[variants.wide]
data.size = [128]
optim = { lr = 0.2, momentum = 0.5 }
"""


def test_a_variant_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(COMMON)
    common = {
        "model": {"name": "panet", "backbone": "vgg16"},
        "data": {"size": [96, 96], "options": {"size": 48, "classes": 4}},
        "optim": {"lr": 0.1},
    }
    deep = read_named_recipe(f"{tmp_path}/mine.toml:deep")
    assert deep == {
        **common,
        "name": "mine_deep",
        "description": "a deep one",
        "model": {"name": "panet", "backbone": "resnet50"},
        "data": {"size": [96, 96], "options": {"size": 64, "classes": 4}},
    }
    wide = read_named_recipe(f"{tmp_path}/mine.toml:wide")
    assert wide == {
        **common,
        "name": "mine_wide",
        "data": {"size": [128], "options": {"size": 48, "classes": 4}},
        "optim": {"lr": 0.2, "momentum": 0.5},
    }


def test_a_file_with_a_name_is_a_recipe_without_its_variants_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'name = "ours"\n{COMMON}')
    assert read_named_recipe(f"{tmp_path}/mine.toml")["name"] == "ours"
    assert read_named_recipe(f"{tmp_path}/mine.toml")["model"]["backbone"] == "vgg16"
    assert read_named_recipe(f"{tmp_path}/mine.toml:deep")["name"] == "ours_deep"
    assert few_shot("msanet_pascal5i_vgg16").model.options["backbone"] == "vgg16"
    assert few_shot("msanet_pascal5i").model.options["backbone"] == "resnet50"


@pytest.mark.parametrize(
    ("recipe", "content", "told"),
    [
        ("mine.toml", COMMON, r"must be given with a variant, .*mine\.toml:deep or .*mine\.toml:wide"),
        (
            "mine.toml:dep",
            COMMON,
            "the variant that is asked for, deep, wide, got 'dep'; did you mean 'deep'",
        ),
        ("mine.toml:deep", 'name = "x"', "asked for, it has none, got 'deep'"),
        ("mine.toml:deep", "variants = 3", r"variants of .*mine\.toml must be tables \[variants\.<name>\], got 3"),
        ("mine.toml:deep", "[variants]\ndeep = 1", r"must be tables \[variants\.<name>\], got {'deep': 1}"),
        ("none.toml:deep", "", r"none\.toml must be a readable file"),
    ],
)
def test_a_wrong_variant_is_told_in_one_line(tmp_path: Path, recipe: str, content: str, told: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(SettingsError, match=told) as caught:
        read_named_recipe(f"{tmp_path}/{recipe}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "nearest"),
    [
        ("mask2former_coco_panoptic_r51", "mask2former_coco_panoptic_r50"),
        ("mask2former_ovis_r50", "mask2former_vis_ovis_r50"),
        ("msanet_pascal5i_vgg", "msanet_pascal5i_vgg16"),
    ],
)
def test_an_unknown_variant_of_the_package_names_the_nearest(recipe: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{nearest}'"):
        load_task(recipe)


def test_recipes_read_twice_do_not_share_their_tables() -> None:
    first = read_named_recipe("maskformer_ade20k_semantic_swin_tiny")
    first["data"]["crop"][0] = 7
    assert read_named_recipe("maskformer_ade20k_semantic_swin_tiny")["data"]["crop"] == [512, 512]


def test_recipes_of_one_file_are_listed_on_one_line() -> None:
    lines = compact(list_recipes())
    assert "mask2former_coco_instance{_r101,_r50,_swin_base,_swin_large,_swin_small,_swin_tiny}" in lines
    assert "msanet_coco20i{,_resnet101,_vgg16}" in lines
    assert "panet_generated" in lines
    assert compact(["mm_former_coco20i_svf"]) == ["mm_former_coco20i_svf"]
    assert len(set(list_recipes())) == sum(line.count(",") + 1 for line in lines)
