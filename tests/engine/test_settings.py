"""Recipes and overrides: what is accepted, and how a mistake is told."""

from __future__ import annotations

import pytest

from fssops.engine.settings import (
    Settings,
    SettingsError,
    apply_overrides,
    changed_settings,
    nearest_key,
    read_recipe,
    validate,
)
from fssops.engine.toml_text import parse_toml, to_toml

TABLES = {"name": "r", "model": {"name": "panet", "backbone": "vgg16"}, "optim": {"lr": 0.001}}


def checked(*overrides: str) -> Settings:
    return validate(Settings, apply_overrides(TABLES, overrides), "recipe r", ["backbone", "align"])


def message(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        checked(*overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_overrides_change_values_of_every_kind() -> None:
    settings = checked(
        "optim.lr=1e-4", "schedule.milestones=[10, 20]", "schedule.name=step", "optim.betas=[0.8, 0.9]", "optim.lr = 2"
    )
    assert settings.optim.lr == 2.0
    assert settings.schedule.milestones == [10, 20]
    assert settings.schedule.name == "step"
    assert settings.optim.betas == (0.8, 0.9)


def test_options_of_the_model_stand_directly_in_its_table() -> None:
    settings = checked("model.align=false", "model.backbone=resnet50")
    assert settings.model.options == {"backbone": "resnet50", "align": False}
    assert settings.as_tables()["model"] == {
        "name": "panet",
        "weights": "",
        "new_classes": False,
        "backbone": "resnet50",
        "align": False,
    }


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("optim.momentun=0.9", "optim.momentum"),
        ("optimm.lr=1e-4", "optim.lr"),
        ("schedule.step=3", "schedule.steps"),
        ("engine.precison=bf16", "engine.precision"),
        ("engine.lr=1e-4", "optim.lr"),
        ("optim.batch=4", "engine.batch_size"),
        ('optim.groups=[{mach="bias"}]', "optim.groups.match"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(override: str, nearest: str) -> None:
    text = message(override)
    key = override.partition("=")[0]
    assert f"unknown key '{key}" in text
    assert f"; did you mean {nearest!r}?" in text


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("optim.lr=fast", "optim.lr must be a valid number, got 'fast'"),
        ("optim.lr=-1", "optim.lr must be greater than 0, got -1"),
        ("schedule.steps=1.5", "schedule.steps must be a valid integer"),
        ("optim.nesterov=1", "optim.nesterov must be a valid boolean, got 1"),
        ("engine.precision=half", "'32', 'bf16' or 'fp16', got 'half'"),
        ("optim=3", "optim must be"),
        ("optim.lr=inf", "optim.lr must be a finite number, got inf"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1 must be less than 1, got 1.0"),
        ("engine.seed=99999999999999999999", "engine.seed must be less than 9223372036854775808"),
        ("name=../../elsewhere", "name must begin with a letter or digit"),
        ("name=", "or spaces, got ''"),
    ],
)
def test_ill_typed_value_names_key_rule_and_value(override: str, rule: str) -> None:
    assert rule in message(override)


def test_batch_that_cannot_be_cut_into_micro_batches_is_refused() -> None:
    assert "multiple of devices * nodes * accumulate = 4, got 6" in message(
        "engine.batch_size=6", "engine.accumulate=4"
    )


def test_nesterov_without_momentum_is_refused() -> None:
    assert "optim.nesterov must be false without momentum" in message("optim.nesterov=true", "optim.momentum=0.0")


def test_words_without_quotes_in_a_list_are_told_of() -> None:
    assert "optim.frozen must be a value of TOML, got '[backbone]' (words within" in message("optim.frozen=[backbone]")


def test_overrides_leave_the_tables_alone_that_they_are_applied_to() -> None:
    tables = {"data": {"options": {"size": 48}}}
    assert apply_overrides(tables, ["data.options.size=64"]) == {"data": {"options": {"size": 64}}}
    assert tables == {"data": {"options": {"size": 48}}}


def test_override_without_value_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"must read table\.key=value, got 'optim\.lr'"):
        apply_overrides(TABLES, ["optim.lr"])


def test_missing_and_malformed_recipe_files_are_named(tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml must be a readable file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[optim\nlr = 1")
    with pytest.raises(SettingsError, match=r"bad\.toml must be valid TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_changed_settings_are_listed_by_dotted_key() -> None:
    before, after = checked().as_tables(), checked("optim.lr=1e-4", "model.align=false").as_tables()
    assert changed_settings(before, after) == ["model.align: None -> False", "optim.lr: 0.001 -> 0.0001"]
    assert changed_settings(before, before) == []


@pytest.mark.parametrize("key", ["callbacks", "wall_clock", "early_stopping"])
def test_an_unknown_key_that_is_like_no_other_is_told_what_there_is(key: str) -> None:
    text = message(f"engine.{key}=3")
    assert "keys of [engine] are engine." in text
    assert "did you mean" not in text


def test_epochs_are_pointed_to_where_they_are_said() -> None:
    assert "did you mean 'schedule.epochs'?" in message("engine.epochs=3")


def test_settings_survive_writing_and_reading() -> None:
    settings = checked('optim.groups=[{match = "norm", weight_decay = 0.0}]', 'description=Quote " and \\ and ü')
    again = validate(Settings, parse_toml(to_toml(settings.as_tables())), "again")
    assert again == settings


def test_keys_that_are_no_bare_words_survive_writing_and_reading() -> None:
    tables = {"data": {"options": {"traffic light": 1, "a.b": {"ü": True}}}}
    assert parse_toml(to_toml(tables)) == tables


def test_nearest_key_prefers_the_same_table() -> None:
    keys = ["data.size", "model.scale", "optim.lr", "schedule.steps"]
    assert nearest_key("data.sise", keys) == "data.size"
    assert nearest_key("steps", keys) == "schedule.steps"


def test_the_length_is_said_in_steps_or_in_epochs_and_what_is_written_can_be_read() -> None:
    with pytest.raises(SettingsError, match=r"schedule\.epochs must be 0 beside steps, got epochs 3 and steps 9"):
        checked("schedule.steps=9", "schedule.epochs=3.0")
    tables = validate(Settings, {"name": "r", "model": {"name": "m"}, "schedule": {"epochs": 3.0}}, "r").as_tables()
    assert "steps" not in tables["schedule"]
    assert validate(Settings, tables, "r").schedule.epochs == 3


@pytest.mark.parametrize("without", [[], ["engine.validate_every=5"]])
def test_patience_must_have_validations_to_wait_for(without: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"engine\.patience must be 0 without validate_every and a best_metric"):
        checked("engine.patience=2", *without)
