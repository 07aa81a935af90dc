"""The one place where the pins touch Python modules of the package that may move; all else goes through the verbs.

What is pinned must stay; how it is reached may change, and then this file is adapted, never the expectations.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VERBS = ("train", "evaluate", "predict", "convert", "doctor", "models", "data")
"""What stands behind ``python -m fssops.``; the last two are packages."""


def run_verb(verb: str, *arguments: object) -> tuple[int, str, str]:
    """Run ``python -m fssops.<verb>`` within this process.

    Returns:
        exit code, standard output, standard error.
    """
    module = f"fssops.{verb}.__main__" if verb in ("models", "data") else f"fssops.{verb}"
    from fssops.command_line import messages_shown

    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), messages_shown():
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
    return code, out.getvalue(), err.getvalue()


def succeed(verb: str, *arguments: object) -> str:
    """Run a verb that must succeed; its standard output."""
    code, out, err = run_verb(verb, *arguments)
    assert code == 0, f"python -m fssops.{verb} gave exit code {code}: {err[-2000:]}"
    return out


def arguments_of(overrides: Sequence[str]) -> list[str]:
    """``table.key=value`` each, as arguments of a verb."""
    return [part for override in overrides for part in ("--set", override)]


def recipe_names() -> list[str]:
    """Every name that ``python -m fssops.train`` takes for a recipe of the package."""
    from fssops.recipes import list_recipes

    return list_recipes()


def resolved_recipe(recipe: str) -> dict[str, Any]:
    """The tables of a recipe with every default filled in."""
    from fssops.tasks import load_task

    tables: dict[str, Any] = load_task(recipe).settings.as_tables()
    return tables


def settings_keys(model: str) -> list[str]:
    """Every dotted key that a recipe of a model may set, the model's options among them."""
    from fssops.engine.settings import known_keys

    settings, config = _bare_settings(model)
    return known_keys(type(settings), list(vars(config)))


def default_settings(model: str) -> dict[str, Any]:
    """The tables of a recipe that names a model and nothing else; the model's options with their defaults."""
    settings, config = _bare_settings(model)
    tables: dict[str, Any] = settings.as_tables()
    tables["model"] = {**vars(config), **tables["model"]}
    return tables


def choices(model: str) -> dict[str, list[str]]:
    """The settings of a model's recipes that take one of some words, with these words; for recording alone."""
    from pydantic import TypeAdapter

    settings, config = _bare_settings(model)
    found: dict[str, list[str]] = {}

    def collect(schema: Mapping[str, Any], key: str, definitions: Mapping[str, Any]) -> None:
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        if "enum" in schema:
            found[key] = [value for value in schema["enum"] if isinstance(value, str)]
        for name, part in schema.get("properties", {}).items():
            collect(part, f"{key}.{name}".lstrip("."), definitions)
        for part in schema.get("anyOf", ()):
            collect(part, key, definitions)

    for annotated, prefix in ((type(settings), ""), (type(config), "model")):
        schema = TypeAdapter(annotated).json_schema()
        collect(schema, prefix, schema.get("$defs", {}))
    return found


def accepts(model: str, values: Mapping[str, object]) -> bool:
    """Whether a recipe of a model may say so; keys that it does not have are left out."""
    from fssops.engine.settings import SettingsError
    from fssops.tasks import settings_from_tables

    tables: dict[str, Any] = {"name": "bare", "model": {"name": model}}
    existing = settings_keys(model)
    for key, value in values.items():
        table, _, name = key.partition(".")
        if key in existing:
            tables.setdefault(table, {})[name] = value
    try:
        settings_from_tables(tables, "bare")
    except SettingsError:
        return False
    return True


@functools.cache
def _bare_settings(model: str) -> tuple[Any, Any]:
    from fssops.models import create_config
    from fssops.tasks import settings_from_tables

    return settings_from_tables({"name": "bare", "model": {"name": model}}, "bare"), create_config(model, {})


def _task(recipe: str, overrides: Sequence[str]) -> Any:
    from fssops.tasks import load_task

    return load_task(recipe, overrides)


def training_batches(recipe: str, overrides: Sequence[str], count: int) -> list[Any]:
    """The first batches that training a recipe takes, as its loader hands them to the model.

    Args:
        recipe: by name.
        overrides: ``table.key=value`` each; they also say the seed and the size of a batch.
        count: batches.

    Returns:
        records of ``fssops.structures``.
    """
    from fssops.engine.training_stream import TrainingStream

    task = _task(recipe, overrides)
    dataset, _ = task.training_data()
    stream = TrainingStream(dataset, task.collate, task.settings.engine)
    return [next(stream) for _ in range(count)]


def evaluation_items(recipe: str, overrides: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The first items that evaluating a recipe takes: what the model sees, and the truth it is compared with.

    Args:
        recipe: by name.
        overrides: ``table.key=value`` each.
        count: items; of a few-shot system of each run.

    Returns:
        one dict an item; the words that it holds are those of its kind of task.
    """
    from fssops.models import MODELS

    task = _task(recipe, overrides)
    kind = MODELS[task.settings.model.name].task
    if kind == "base classes":
        return [{"item": task.evaluation_data[index]} for index in range(count)]
    if kind == "video":
        return [_video_item(task, index) for index in range(count)]
    if kind in ("universal", "semantic"):
        return [_universal_item(task, index) for index in range(count)]
    novel = task.novel_runs(task.settings.data.fold)
    return [
        {"seed": seed, "episode": run[index], "truth": run.query_truth(index)}
        for run, seed in zip(novel.datasets, novel.seeds, strict=True)
        for index in range(count)
    ]


def _universal_item(task: Any, index: int) -> dict[str, Any]:
    from fssops.tasks.universal import TestItems

    source = task.source(evaluation=True)
    item = TestItems(source, range(index + 1), task.preparation())[index]
    truth = item.truth
    found: dict[str, Any] = {"image": item.prepared.image, "output size": item.prepared.output_size}
    if source.offers("semantic"):
        found["label map"] = truth.semantic()
    if source.offers("panoptic"):
        found["segment ids"] = truth.segment_ids
        found["segments"] = [(segment.id, segment.label, segment.crowd) for segment in truth.segments]
    if source.offers("instance"):
        objects = truth.instances(source.classes.things)
        found["objects"] = [(one.id, one.label, one.crowd) for one in objects]
        found["object masks"] = [one.mask(truth.height, truth.width) for one in objects]
    return found


def _video_item(task: Any, index: int) -> dict[str, Any]:
    source = task.source(evaluation=True)
    name = source.names[index]
    tracks = source.tracks(name)
    drawn = [[track.mask(frame, *source.size(name)) for frame in range(source.frames(name))] for track in tracks]
    return {
        "name": name,
        "frames": list(task._frames_ahead(source, name)),
        "tracks": [(track.label, track.crowd) for track in tracks],
        "annotated": [[mask is not None for mask in masks] for masks in drawn],
        "masks": [mask for masks in drawn for mask in masks if mask is not None],
    }


def operator_names() -> list[str]:
    """Names of the public operators."""
    from fssops import ops

    return list(ops.__all__)


def drawn_mask(run_lengths: Mapping[str, Any]) -> np.ndarray:
    """Bool [H, W] of COCO's compressed run lengths."""
    from fssops.run_lengths import decode

    return decode(run_lengths)


def pictures_for(model: str) -> dict[str, np.ndarray]:
    """What an earlier run of a model is asked about: path -> [H, W, 3] uint8, or a mask [H, W]."""
    from fssops.data.layouts import open_data

    if model == "mask2former_vis":
        clips = open_data("generated_videos", truth="video", split="val", size=48, videos=2, frames=5)
        frames = (np.asarray(clips.frame(clips.names[1], number)) for number in range(5))
        return {f"queries/{number:05d}.png": frame for number, frame in enumerate(frames)}
    if model not in ("panet", "msanet", "mm_former"):
        scenes = open_data("generated", truth="panoptic", split="val", size=64, images=3)
        pictures = [np.asarray(scenes.image(name)) for name in scenes.names]
        return {"queries/17.png": pictures[0], "queries/street.png": pictures[2][:56]}
    images = open_data("generated", truth="few-shot", split="test", size=64, images_per_class=3)
    support, *queries = images.names[::28]  # the main object of each is of the first class, which fold 0 tests
    return {
        "support.png": np.asarray(images.image(support)),
        "support_mask.png": (images.label_map(support, [1]) == 1) * np.uint8(255),
        **{f"queries/{number}.png": np.asarray(images.image(name)) for number, name in enumerate(queries)},
    }


def read_checkpoint(run: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run folder holds; for recording alone."""
    from fssops.engine import checkpoints

    return checkpoints.read_checkpoint(run / "checkpoints" / "last.pt")


def write_checkpoint(run: Path, state: Mapping[str, Any]) -> None:
    """Write the newest checkpoint of a run folder; for recording alone."""
    from fssops.engine import checkpoints

    content = {key: value for key, value in state.items() if key != "format"}
    checkpoints.write_checkpoint(run / "checkpoints" / "last.pt", content)
