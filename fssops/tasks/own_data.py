"""A recipe for a folder of one's own: looks at the data, chooses what to train and how, and says why.

The rules stand in docs/own_data.md; every choice is one line, and every one can be given instead.
"""

from __future__ import annotations

import logging
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.image_lists import write_lists
from fssops.data.images import image_size
from fssops.data.layout import TRUTHS
from fssops.data.layouts import LAYOUTS, open_data, recognise
from fssops.data.source import VideoSource
from fssops.data.splits import stratified_split
from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.launch import run_on_first
from fssops.engine.memory import available_memory
from fssops.engine.settings import SettingsError, apply_overrides
from fssops.engine.toml_text import to_toml
from fssops.models import MODELS
from fssops.models.backbones.build import row_of
from fssops.recipes import read_named_recipe
from fssops.spelling import did_you_mean
from fssops.tasks import task_from_tables, without_replaced
from fssops.tasks.described_models import described_tables
from fssops.tasks.task import Task
from fssops.weights import UnavailableWeightsError, find_weights, read_weights
from fssops.weights.sources import SOURCES

logger = logging.getLogger(__name__)

RECIPE_FILE, LIST_FILE = "recipe.toml", "split.json"
"""What a run keeps of its choices: the recipe, and the lists of a split that was made for it."""


@dataclass(frozen=True)
class Machine:
    """What is chosen by the machine.

    Attributes:
        decoder: options of models that have them.
        sides: least and largest image side, pixels.
        batch_size: items of a step.
        lr: of the mask transformers.
        clip_norm: of their gradients.
        bytes_per_pixel: memory of a step for each pixel of an item, by truth; measured with EfficientNet-Lite2 in
            float32 on a CPU, and rounded up.
        seen: items that training sees, and the least and most epochs for it.
    """

    decoder: Mapping[str, int]
    sides: tuple[int, int]
    batch_size: int
    lr: float
    clip_norm: float
    bytes_per_pixel: Mapping[str, int]
    seen: tuple[int, int, int]


MACHINES = {
    "cpu": Machine(
        decoder={
            "channels": 128,
            "mask_channels": 128,
            "encoder_layers": 3,
            "encoder_hidden": 512,
            "decoder_layers": 4,
            "decoder_hidden": 1024,
            "train_points": 4096,
        },
        sides=(128, 320),
        batch_size=4,
        lr=5e-4,
        clip_norm=1.0,
        bytes_per_pixel={"video": 6000, "few-shot": 5000, "": 3500},
        seen=(4000, 5, 50),
    ),
    "cuda": Machine(
        decoder={},
        sides=(256, 1024),
        batch_size=16,
        lr=1e-4,
        clip_norm=0.01,
        bytes_per_pixel={"video": 12000, "few-shot": 5000, "": 7000},
        seen=(24000, 12, 100),
    ),
}
"""On a GPU the published sizes and learning rate; on a CPU those of the package's small recipes."""

SYSTEMS = {"few-shot": "panet", "semantic": "mask2former", "instance": "mask2former", "panoptic": "mask2former"}
SYSTEMS |= {"video": "mask2former_vis"}
"""Truth -> what is trained where nothing is asked for."""

_KINDS = {"universal": ("panoptic", "instance", "semantic"), "semantic": ("semantic",)}
_KINDS |= {"video": ("video",), "few-shot": ("few-shot",)}
"""Task of a model -> what it can be trained on, the most specific first."""

_TASKS = {"semantic": ["semantic"], "instance": ["instance"], "panoptic": ["panoptic", "instance", "semantic"]}
_METRICS = {
    "few-shot": "val/miou",
    "semantic": "val/miou",
    "instance": "val/ap",
    "panoptic": "val/pq",
    "video": "val/ap",
}
_BACKBONE = "efficientnet_lite2"
_STRIDE = 32
_SAMPLE = 200
"""Items that are looked at for sizes and numbers of objects."""
_COUNTED = 5000
"""Up to so many images, which classes each one shows is counted."""
_RARE = 0.01
_MEMORY = 0.5
"""Share of the free memory that a step may be estimated to take."""
_VALIDATIONS, _PATIENCE = 20, 8
_PARTS = {
    "train": re.compile(r"(train|training|trn)\d*", re.IGNORECASE),
    "val": re.compile(r"(val|valid|validation|dev)\d*", re.IGNORECASE),
    "test": re.compile(r"(test|testing|tst)\d*", re.IGNORECASE),
}


@dataclass
class OwnRecipe:
    """What was chosen for a folder.

    Attributes:
        tables: the recipe, as :func:`fssops.tasks.task_from_tables` takes it once it has its place.
        choices: (what, the choice and why) of each.
        lists: names of the items of each split that was made here; None where the data have splits.
        of: split of the layout that these divide.
    """

    tables: dict[str, Any]
    choices: list[tuple[str, str]] = field(default_factory=list)
    lists: dict[str, list[str]] | None = None
    of: str | None = None

    def say(self) -> None:
        """Tell the choices, a line each."""
        for what, text in self.choices:
            logger.info("%-14s %s", what, text)

    def task(self) -> Task:
        """What will be trained; its data can be opened once :meth:`settled` has given them a place."""
        return task_from_tables(self.tables, "--data")

    def settled(self, fabric: Fabric, run: Path) -> Task:
        """Write recipe and lists into the folder of a run, and return what is trained in it; every process must call.

        Raises:
            OSError: they cannot be written.
        """
        # The first process decides: what memory is free and when a run began may differ between them.
        tables = run_on_first(fabric, lambda: self.tables_in(run))
        run_on_first(fabric, lambda: self.write(run))
        return task_from_tables(tables, "--data")

    def tables_in(self, run: Path) -> dict[str, Any]:
        """The recipe of a run in this folder, which will hold its lists."""
        if self.lists is None:
            return self.tables
        return {**self.tables, "data": {**self.tables["data"], "lists": str(run.resolve() / LIST_FILE)}}

    def text(self, run: Path) -> str:
        """The recipe of a run in this folder as a file, the choices as comments."""
        return "".join(f"# {what:<14} {text}\n" for what, text in self.choices) + to_toml(self.tables_in(run))

    def write(self, run: Path) -> None:
        """Write the recipe, which can be edited and trained again, and its lists into an existing folder.

        Raises:
            OSError: they cannot be written.
        """
        if self.lists is not None:
            write_lists(run / LIST_FILE, self.of, self.lists)
        write_text_atomically(run / RECIPE_FILE, self.text(run))
        logger.info("recipe         %s: edit it, and train it with python -m fssops.train FILE", run / RECIPE_FILE)


@dataclass
class _Data:
    """A folder as it will be trained on.

    Attributes:
        folder: which.
        truth: what it is read for.
        layout: its name.
        splits: those of the layout.
        source: of training.
        classes: names.
        things: indices of the countable ones.
        sizes: (height, width) of a sample.
        objects: most of an item of the sample.
        shown: numbers of the classes that each item shows; empty where there are too many items to look.
    """

    folder: Path
    truth: str
    layout: str
    splits: list[str]
    source: Any
    classes: list[str]
    things: list[int]
    sizes: list[tuple[int, int]]
    objects: int
    shown: dict[str, Collection[int]]


def recipe_for(
    folder: str | os.PathLike[str],
    *,
    task: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    epochs: float | None = None,
    size: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    freeze: int | str | None = None,
    overrides: Sequence[str] = (),
) -> OwnRecipe:
    """Choose what to train on a folder, and how; what is given is not chosen.

    Args:
        folder: of data in any layout of :mod:`fssops.data.layouts`.
        task: ``semantic``, ``instance``, ``panoptic``, ``video`` or ``few-shot``; None: the most specific that the
            data have truth for.
        model: a system (:func:`fssops.list_models`), or the name of published weights of one.
        weights: a run, file or name: of a backbone, or of a whole system, whose class head starts anew.
        epochs: passes over the training images.
        size: side of training images, pixels.
        batch: items of a step.
        lr: learning rate.
        freeze: layers of the backbone, from the first, that are not trained; ``all``.
        overrides: ``table.key=value`` each, which are applied last.

    Raises:
        SettingsError: something asked for does not fit the data, or which split is for training cannot be told.
        DataError, FileNotFoundError: the folder is of no layout, or cannot be read.
        UnavailableWeightsError: weights that were asked for cannot be had.
    """
    given = apply_overrides({}, overrides)
    if model is not None and model not in MODELS:
        if model not in SOURCES or not SOURCES[model].recipe or weights is not None:
            names = [*MODELS, *(name for name, row in SOURCES.items() if row.recipe)]
            raise SettingsError(
                f"--model: must be one of {', '.join(MODELS)}, or (without --weights) published weights of one, got "
                f"{model!r}{did_you_mean(model, names)}"
            )
        model, weights = None, model
    start = {} if weights is None else _described(weights)
    system = model or start.get("name")
    if start and model not in (None, start["name"]):
        raise SettingsError(f"--weights: must be of --model {model} or of a backbone, got weights of {start['name']}")
    data, skipped = _look(Path(folder), task, system, given)
    system = system or SYSTEMS[data.truth]
    recipe = OwnRecipe({})
    choose = recipe.choices.append
    choose(("data", f"{data.source.label}: {len(data.source.names)} {data.source.items} in {folder}"))
    choose(("task", f"{data.truth}, {'as asked for' if task else 'the most specific that the files have truth for'}"))
    recipe.choices += [("", text) for text in skipped]
    more = f" and {len(data.classes) - 8} more" if len(data.classes) > 8 else ""
    choose(("classes", f"{len(data.classes)}: {', '.join(data.classes[:8])}{more}"))
    engine = given.get("engine", {})
    cuda = torch.cuda.is_available() and engine.get("accelerator", "auto") != "cpu"
    machine = MACHINES["cuda" if cuda else "cpu"]
    splits, count, lines = _split(data, recipe, given, engine.get("seed", 1234))
    recipe.choices += [("split", text) for text in lines]
    table, lines = _model(system, start, weights, data, machine, given.get("model", {}).get("backbone"))
    recipe.choices += zip(("model", "weights"), lines, strict=True)
    side, line = _side(data, machine, size)
    choose(("size", line))
    free = available_memory(torch.device("cuda" if cuda else "cpu"))
    one = side * side * machine.bytes_per_pixel.get(data.truth, machine.bytes_per_pixel[""])
    batch_size = batch or min(machine.batch_size, _power_of_two(count))
    fitting = max(1, int(_MEMORY * free / one))
    accumulate = next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= fitting)
    parts = f" in {accumulate} parts, added up" if accumulate > 1 else ""
    told = f"an item takes some {one / 2**20:.0f} MB, {free / 2**30:.1f} GB are free"
    why = "as asked for" if batch else "usual here"
    choose(("batch", f"{batch_size}{parts}, {why}; {told}"))
    seen, least, most = machine.seen
    length = float(epochs or min(max(math.ceil(seen / count), least), most))
    steps = given.get("schedule", {}).get("steps")
    if steps is None:
        steps = max(1, round(length * count / batch_size))
        why = "as asked for" if epochs else f"to see some {seen} {data.source.items} in {least} to {most} epochs"
        choose(("length", f"{length:g} epochs of {count} {data.source.items} = {steps} steps; {why}"))
    else:
        choose(("length", f"{steps} steps, as asked for"))

    title, small = Path(folder).resolve().name, data.truth == "few-shot"
    tables: dict[str, Any] = {
        "name": re.sub(r"[^\w.+-]", "_", f"{system}_{title}"),
        "description": f"{system} on {title}, chosen by python -m fssops.train --data",
        "model": table,
        "data": {"source": data.layout, "root": str(Path(folder).resolve()), "split": splits["train"]},
        "optim": _optim(system, machine, table, lr, freeze),
        "schedule": {"epochs": length, "name": "cosine" if small else "poly", "warmup_steps": min(100, steps // 10)},
        "engine": {"batch_size": batch_size, "accumulate": accumulate, "workers": min(4, (os.cpu_count() or 2) // 2)},
        "eval": {"split": splits["test"]},
    }
    tables["data"] |= _augmentation(data.truth, side)
    tables["eval"] |= _evaluation(data.truth, side)
    if cuda:
        tables["engine"]["precision"] = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if splits["val"] != splits["train"]:
        every = max(1, min(steps, max(round(count / batch_size), steps // _VALIDATIONS)))
        tables["engine"] |= {"validate_every": every, "save_every": every, "patience": _PATIENCE}
        tables["engine"] |= {"best_metric": _METRICS[data.truth], "best_mode": "max"}
        tables["eval"] |= {"validation_split": splits["val"], "checkpoint": "best"}
        told = f"every {every} steps by {_METRICS[data.truth]}; training ends after {_PATIENCE} without a gain"
        choose(("validation", told))
    else:
        tables["engine"]["save_every"] = max(1, steps // _VALIDATIONS)
    counts = Counter(number for numbers in data.shown.values() for number in numbers)
    if data.truth not in ("few-shot", "video") and counts and min(counts.values()) < _RARE * len(data.shown):
        tables["data"]["rare_classes"] = _RARE
        choose(("rare classes", f"some are in less than {100 * _RARE:g} % of the images, which come more often"))
    recipe.tables = apply_overrides(without_replaced(tables, overrides), overrides)
    return recipe


# -- the data -----------------------------------------------------------------------------------------------------


def _look(folder: Path, task: str | None, system: str | None, given: Mapping[str, Any]) -> tuple[_Data, list[str]]:
    """Open a folder for the most specific truth that it has; and why more specific ones cannot be read."""
    kinds: tuple[str, ...] = ("video", "panoptic", "instance", "semantic", "few-shot")
    if system is not None:
        if MODELS[system].task not in _KINDS:
            raise SettingsError(f"--model: {system} is not trained on a folder alone, but by its recipes")
        kinds = _KINDS[MODELS[system].task]
    if task is not None:
        if task not in TRUTHS:
            raise SettingsError(f"--task: must be one of {', '.join(TRUTHS)}, got {task!r}")
        if task not in kinds:
            raise SettingsError(f"--task: must be {' or '.join(kinds)} for {system}, got {task!r}")
        kinds = (task,)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data: {folder} must be a folder, got no such folder")
    skipped: list[str] = []
    first: Exception | None = None
    layouts: dict[str, str] = {}
    for kind in kinds:
        try:
            layouts[kind] = given.get("data", {}).get("source") or recognise(folder, kind)  # type: ignore[arg-type]
        except DataError as error:
            first = first or error
    for kind, layout in layouts.items():
        try:
            return _opened(folder, kind, layout, given), skipped
        except (DataError, OSError) as error:
            if not skipped:
                first = error
            skipped.append(f"not {kind}: {error}")
    if layouts or task is not None or system is not None:
        raise first or DataError(f"--data: {folder} must have truth of {', '.join(kinds)}, got none")
    recognise(folder)  # says for every layout why not
    raise first or DataError(f"--data: {folder} must be of a layout that can be trained, got none")


def _opened(folder: Path, truth: Any, layout: str, given: Mapping[str, Any]) -> _Data:
    table = given.get("data", {})
    options, splits = table.get("options", {}), LAYOUTS[layout].splits(folder)
    split = table.get("split") or _part("train", splits) or (splits[0] if len(splits) == 1 else None)
    if split is None and splits:
        raise SettingsError(
            f"--data: {folder} must have a split train, got {', '.join(splits)}; say --set data.split=... and --set "
            "eval.split=..."
        )
    source = open_data(layout, folder, split=split, truth=truth, **options)  # type: ignore[call-overload]
    if not source.names:
        raise DataError(f"{folder}: {source.label} must hold an item, got none")
    sample = source.names[:: math.ceil(len(source.names) / _SAMPLE)]
    images = source.images if isinstance(source, FewShotSource) else source
    if isinstance(source, VideoSource):
        sizes = [source.size(name) for name in sample]
        objects = max(len(source.tracks(name)) for name in sample)
        shown: dict[str, Collection[int]] = {}
        if len(source.names) <= _COUNTED:
            shown = {name: {track.label for track in source.tracks(name)} for name in source.names}
    else:
        images.truth(sample[0])
        sizes = [_size(images, name) for name in sample]
        crowds = [] if truth in ("semantic", "few-shot") else [images.crowds(name, truth) for name in sample]
        objects = max((of_image.count(False) for of_image in crowds), default=0)
        view, shown = source if isinstance(source, FewShotSource) else FewShotSource(source), {}
        if len(source.names) <= _COUNTED or truth == "few-shot":
            shown = {name: areas.keys() for name, areas in view.areas().items()}
    classes = list(source.classes.values()) if isinstance(source, FewShotSource) else list(source.classes.names)
    things = [] if isinstance(source, FewShotSource) else list(source.classes.things)
    return _Data(folder, truth, layout, splits, source, classes, things, sizes, objects, shown)


def _size(images: Any, name: str) -> tuple[int, int]:
    """(height, width)."""
    file = images.image_file(name)
    width, height = images.image(name).size if file is None else image_size(file)
    return height, width


def _part(part: str, splits: Sequence[str]) -> str | None:
    """The split that is called as a part usually is; the plain name before others."""
    fitting = [split for split in splits if _PARTS[part].fullmatch(split)]
    return part if part in fitting else next(iter(fitting), None)


def _split(
    data: _Data, recipe: OwnRecipe, given: Mapping[str, Any], seed: int
) -> tuple[dict[str, str], int, list[str]]:
    """Names of the splits to train, validate and test on, the number of items to train on, and what is said of it."""
    source, rules = data.source, given.get("eval", {})
    train, count = source.split, len(source.names)
    others = {part: _part(part, [name for name in data.splits if name != train]) for part in ("val", "test")}
    test = rules.get("split") or _usable(data, others["test"], given) or others["val"]
    val = rules.get("validation_split") or others["val"] or test
    if test and val:
        chosen = f", the best checkpoint is chosen by {val}" if val != test else ""
        lines = [f"trained on {train} ({count}){chosen}, scored on {test}: the data's own"]
        if val == test:
            lines.append(f"the best checkpoint is chosen by {val} too, so its scores there flatter a little")
        return {"train": train, "val": val, "test": test}, count, lines
    shown = dict(data.shown) or dict.fromkeys(source.names, ())
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1} if count >= 100 else {"train": 0.8, "val": 0.2}
    if data.truth == "few-shot":
        least = min((n for n in Counter(c for of in shown.values() for c in of).values() if n >= 4), default=0)
        # A class is tested with a support and a query of its own.
        held = min(0.5, max(0.2, 2 / least)) if least else 0.0
        fractions = {"train": 1 - held, "val": held}
    if count < 5 or not fractions["val"]:
        words = f"{count} {source.items} are too few to hold any out: scores are of what was trained on"
        return dict.fromkeys(("train", "val", "test"), train), count, [words]
    recipe.lists, recipe.of = stratified_split(shown, fractions, seed), train or None
    sizes = ", ".join(f"{part} {len(names)}" for part, names in recipe.lists.items())
    why = "the data have none of their own"
    lines = [f"{sizes}; each class in proportion, seed {seed}, names in {LIST_FILE}: {why}"]
    if "test" not in fractions:
        lines.append("the best checkpoint is chosen by val too, so its scores there flatter a little")
    parts = {"train": "train", "val": "val", "test": "test" if "test" in fractions else "val"}
    return parts, len(recipe.lists["train"]), lines


def _usable(data: _Data, split: str | None, given: Mapping[str, Any]) -> str | None:
    """The split where it has truth; those of challenges have not."""
    if split is None:
        return None
    options = given.get("data", {}).get("options", {})
    try:
        source: Any = open_data(data.layout, data.folder, split=split, truth=data.truth, **options)  # type: ignore
        source.truth(source.names[0])
    except (DataError, OSError):
        return None
    return split


# -- the model and how it is trained ------------------------------------------------------------------------------


def _described(weights: str) -> dict[str, Any]:
    """Table ``[model]`` of weights of a whole system; empty of those of a backbone, or that do not say."""
    found = find_weights(weights, "--weights")
    if found.row is not None:
        return dict(read_named_recipe(found.row.recipe)["model"]) if found.row.recipe else {}
    checkpoint = read_weights(found.path)
    if checkpoint.settings:
        return dict(checkpoint.settings["model"])
    if checkpoint.config or checkpoint.model:
        return dict(described_tables(checkpoint, found.called)["model"])
    return {}


def _model(
    system: str,
    start: Mapping[str, Any],
    weights: str | None,
    data: _Data,
    machine: Machine,
    backbone: str | None,
) -> tuple[dict[str, Any], list[str]]:
    """Table ``[model]``, and what is said of the model and of its weights."""
    known = {option.name for option in fields(MODELS[system].config_class())}
    if start:
        table = {key: value for key, value in start.items() if key != "things"}
        table |= {"weights": weights, "new_classes": True}
        lines = [f"{system}, as its weights say", f"{weights}, of the whole model; its class head starts anew"]
    else:
        row = SOURCES.get(weights or "")
        backbone = backbone or (row.backbone if row else "") or _BACKBONE
        table = {"name": system, "backbone": backbone, **{k: v for k, v in machine.decoder.items() if k in known}}
        weights, said = (weights, "as asked for") if weights else _installed(backbone)
        if weights:
            table["weights"] = weights
        elif "norm" in row_of(backbone).options:
            table["backbone_norm"] = "batch"
        lines = [f"{system} on {backbone}, {'smaller than published' if machine.decoder else 'as published'}", said]
        lines[1] = f"{weights}, {said}" if weights else said
    if "num_classes" in known:
        table["num_classes"] = len(data.classes)
    if "tasks" in known and data.truth in _TASKS:
        # MaskFormer was trained for panoptic and semantic segmentation together, or for one alone.
        table["tasks"] = [
            t for t in _TASKS[data.truth] if not (system == "maskformer" and t == "instance" != data.truth)
        ]
    if "things" in known and data.truth == "panoptic":
        table["things"] = data.things
    if "num_queries" in known and not start:
        most = len(data.classes) if data.truth == "semantic" else data.objects
        usual = 20 if machine.decoder else 100
        table["num_queries"] = max(usual, min(100, 20 * math.ceil(most / 10)), 10 * math.ceil(most / 10))
        lines[0] += f", {table['num_queries']} queries for up to {most} masks"
    return table, lines


def _installed(backbone: str) -> tuple[str, str]:
    """Name of a backbone's weights that are in an installed package, or "", and what is said of them."""
    rows = [row for row in SOURCES.values() if row.backbone == backbone]
    for row in rows:
        if row.address.startswith("package:"):
            try:
                find_weights(row.name)
            except UnavailableWeightsError as error:
                return "", f"random: {error}"
            return row.name, "which are installed"
    return "", f"random; nothing is downloaded unasked (--weights {' or '.join(r.name for r in rows) or 'FILE'})"


def _side(data: _Data, machine: Machine, size: int | None) -> tuple[int, str]:
    """Side of training images, and what is said of it."""
    if size is not None:
        if size < _STRIDE:
            raise SettingsError(f"--size: must be at least the backbone's stride {_STRIDE}, got {size}")
        return size, f"{size}, as asked for"
    longer = data.truth in ("instance", "panoptic")
    middle = statistics.median(max(sides) if longer else min(sides) for sides in data.sizes)
    least, most = machine.sides
    side = min(max(_STRIDE * round(middle / _STRIDE), least), most)
    told = f"{'longer' if longer else 'shorter'} sides are {middle:g} in the middle, {least} to {most} are usual here"
    return side, f"{side} pixels; {told}"


def _optim(
    system: str, machine: Machine, table: Mapping[str, Any], lr: float | None, freeze: int | str | None
) -> dict[str, Any]:
    if MODELS[system].task == "few-shot":
        optim: dict[str, Any] = {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
    else:
        optim = {"name": "adamw", "lr": machine.lr, "weight_decay": 0.05, "weight_decay_norm": 0.0}
        optim |= {"weight_decay_embedding": 0.0, "clip_norm": machine.clip_norm}
        optim["backbone_lr_scale"] = 0.1 if table.get("weights") else 1.0
    optim |= {"ema": 0.999, "lr": optim["lr"] if lr is None else lr}
    return optim if freeze is None else {**optim, "frozen_layers": freeze}


def _augmentation(truth: str, side: int) -> dict[str, Any]:
    """What ``[data]`` says beside the data: multi-scale training around ``side``."""
    if truth == "few-shot":
        return {"folds": "all", "size": [side, side], "too_few": "skip", "augment": "flip"}
    if truth == "video":
        return {
            "augment": "flip",
            "short_sides": [round(side * share / 8) for share in range(6, 11)],
            "longest": 2 * side,
        }
    if truth == "semantic":
        sides = [round(side * share / 10) for share in range(5, 21)]
        return {
            "truth": truth,
            "augment": "resize_crop",
            "short_sides": sides,
            "longest": 4 * side,
            "crop": [side, side],
        }
    return {"truth": truth, "augment": "large_scale_jitter", "side": side, "scales": [0.5, 2.0]}


def _evaluation(truth: str, side: int) -> dict[str, Any]:
    """What ``[eval]`` says beside the splits."""
    if truth == "few-shot":
        return {"protocol": "fssops", "runs": 1, "episodes": 200, "validation_episodes": 50}
    sizes = {"short_side": side, "longest": side if truth in ("instance", "panoptic") else 2 * side}
    return {**sizes, **({"validation_videos": 50} if truth == "video" else {"validation_images": 200})}


def _power_of_two(number: float) -> int:
    """The greatest one that is not above a number of at least 1."""
    return 1 << (int(number).bit_length() - 1)
