"""Names that users type stay: operators, models, recipes, settings with their defaults, options of the verbs.

New names may join them; none may go, and none may mean another thing.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import surfaces
from fingerprints import expected

import fssops

COMMANDS = [*(verb for verb in surfaces.VERBS if verb != "data"), "data check", "data list", "data episodes"]
COMMANDS.append("data preview")

NO_DEFAULT = "no default"
"""Of a setting that must be given, or is a key of the tables in a list."""

COMPANIONS = {"data.short_sides": [64], "data.crop": [32, 32], "model.noise_scale": 0.5}
"""Settings without which some words are refused; they are left out where a model has no such setting."""

REWORDED = ("description",)
"""Keys of a recipe whose values are prose."""


def dotted(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables, with their keys; an empty table is a value."""
    for name, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain(value: object) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value))


@cache
def settings_of(model: str) -> dict[str, Any]:
    """Dotted key -> default of every setting of a model's recipes."""
    defaults = dict(dotted(surfaces.default_settings(model)))
    keys = [key for key in surfaces.settings_keys(model) if key not in REWORDED]
    return {key: plain(defaults.get(key, NO_DEFAULT)) for key in keys} | {"name": NO_DEFAULT, "model.name": NO_DEFAULT}


def pinned_settings(model: str) -> dict[str, Any]:
    """The same, as expected."""
    content = expected("settings")
    return {**content["every model"], **content[model]}


def tables_of(resolved: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, str]:
    """Table -> hash of what a recipe resolves to, of the given keys alone: keys that are new change nothing."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in dotted(resolved):
        if key in keys or any(key.startswith(f"{known}.") for known in keys):
            table, _, rest = key.rpartition(".")
            tables.setdefault(table.partition(".")[0] or "name", {})[f"{table}.{rest}"] = plain(value)
    return {
        name: hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        for name, values in tables.items()
    }


def options_of(command: str) -> list[str]:
    """The options that the help of a verb lists."""
    usage = surfaces.succeed(*command.split(), "--help")
    pairs = re.findall(r"^ +(?:(-\w)(?: \S+)?, )?(--[\w-]+)", usage, re.MULTILINE)
    return sorted({flag for pair in pairs for flag in pair if flag})


def python_names() -> dict[str, list[str]]:
    """What ``import fssops`` offers, and the arguments of it."""
    predictor = fssops.FewShotPredictor
    callables = {
        "create_model": fssops.create_model,
        "load_weights": fssops.load_weights,
        "FewShotPredictor": predictor,
        "FewShotPredictor.set_support": predictor.set_support,
        "FewShotPredictor.segment": predictor.segment,
    }
    arguments = {name: list(inspect.signature(function).parameters) for name, function in callables.items()}
    return {"fssops": sorted(fssops.__all__), **arguments}


def test_every_operator_is_there() -> None:
    assert set(expected("names")["operators"]) <= set(surfaces.operator_names())


def test_every_model_is_there() -> None:
    assert set(expected("names")["models"]) <= set(fssops.list_models())


def test_every_recipe_is_there() -> None:
    assert len(expected("recipes")) == 132
    assert set(expected("recipes")) <= set(surfaces.recipe_names())


@pytest.mark.parametrize("recipe", expected("recipes"))
def test_a_recipe_says_the_same(recipe: str) -> None:
    resolved = surfaces.resolved_recipe(recipe)
    assert tables_of(resolved, pinned_settings(resolved["model"]["name"])) == expected("recipes")[recipe]


@pytest.mark.parametrize("model", expected("names")["models"])
def test_every_setting_is_there_with_the_same_default(model: str) -> None:
    wanted = pinned_settings(model)
    assert {key: settings_of(model).get(key, "is gone") for key in wanted} == wanted


@pytest.mark.parametrize("model", expected("names")["models"])
def test_a_setting_takes_the_same_words(model: str) -> None:
    refused = [
        f"{key}={value}"
        for key, values in {**expected("choices")["every model"], **expected("choices")[model]}.items()
        for value in values
        if not surfaces.accepts(model, {**COMPANIONS, key: value})
    ]
    assert refused == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_verb_is_there(command: str) -> None:
    assert set(expected("names")["options"][command]) <= set(options_of(command))


def test_what_python_imports_is_there() -> None:
    offered = python_names()
    for name, wanted in expected("names")["python"].items():
        assert [argument for argument in offered[name] if argument in wanted] == wanted, name
