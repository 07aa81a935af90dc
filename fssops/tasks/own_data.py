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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from fssops.data.splits import SUFFIX, write_lists
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
from fssops.tasks.looked_data import Division, LookedAt, divide, look
from fssops.tasks.task import Task
from fssops.weights import UnavailableWeightsError, find_weights, read_weights
from fssops.weights.sources import SOURCES

logger = logging.getLogger(__name__)

RECIPE_FILE, LIST_FOLDER = "recipe.toml", "splits"
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
_RARE = 0.01
_MEMORY = 0.5
"""Share of the free memory that a step may be estimated to take."""
_VALIDATIONS, _PATIENCE = 20, 8


@dataclass
class OwnRecipe:
    """What was chosen for a folder.

    Attributes:
        tables: the recipe, as :func:`fssops.tasks.task_from_tables` takes it once it has its place.
        division: of the data; what was made here is written with the recipe.
        choices: (what, the choice and why) of each.
    """

    tables: dict[str, Any]
    division: Division
    choices: list[tuple[str, str]] = field(default_factory=list)

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
        if self.division.made is None:
            return self.tables
        placed = {name: dict(table) if isinstance(table, dict) else table for name, table in self.tables.items()}
        for table, key in (("data", "split"), ("eval", "split"), ("eval", "validation_split")):
            if (part := placed[table].get(key)) in self.division.made.parts:
                placed[table][key] = str(run.resolve() / LIST_FOLDER / f"{part}{SUFFIX}")
        return placed

    def text(self, run: Path) -> str:
        """The recipe of a run in this folder as a file, the choices as comments."""
        return "".join(f"# {what:<14} {text}\n" for what, text in self.choices) + to_toml(self.tables_in(run))

    def write(self, run: Path) -> None:
        """Write the recipe, which can be edited and trained again, and its lists into an existing folder.

        Raises:
            OSError: they cannot be written.
        """
        if self.division.made is not None:
            write_lists(self.division.made, run / LIST_FOLDER, overwrite=True)
        write_text_atomically(run / RECIPE_FILE, self.text(run))
        logger.info("recipe         %s: edit it, and train it with python -m fssops.train FILE", run / RECIPE_FILE)


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
    for name, value in {"epochs": epochs, "batch": batch}.items():
        if value is not None and not value > 0:
            raise SettingsError(f"--{name}: must be above 0, got {value}")
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
    if weights is not None and os.path.exists(weights):
        weights = str(Path(weights).resolve())
    system = model or start.get("name")
    if start and model not in (None, start["name"]):
        raise SettingsError(f"--weights: must be of --model {model} or of a backbone, got weights of {start['name']}")
    data, skipped = look(Path(folder), task, system, given)
    system = system or SYSTEMS[data.truth]
    division = divide(data, given, given.get("engine", {}).get("seed", 1234))
    recipe, count = OwnRecipe({}, division), division.count
    choose = recipe.choices.append
    choose(("data", f"{data.source.label}: {len(data.source.names)} {data.source.items} in {folder}"))
    choose(("task", f"{data.truth}, {'as asked for' if task else 'the most specific that the files have truth for'}"))
    recipe.choices += [("", text) for text in skipped]
    more = f" and {len(data.classes) - 8} more" if len(data.classes) > 8 else ""
    choose(("classes", f"{len(data.classes)}: {', '.join(data.classes[:8])}{more}"))
    engine = given.get("engine", {})
    cuda = torch.cuda.is_available() and engine.get("accelerator", "auto") != "cpu"
    machine = MACHINES["cuda" if cuda else "cpu"]
    recipe.choices += [("split", text) for text in division.lines]
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
        "data": {"source": data.layout, "root": str(Path(folder).resolve()), "split": division.train},
        "optim": _optim(system, machine, table, lr, freeze),
        "schedule": {"epochs": length, "name": "cosine" if small else "poly", "warmup_steps": min(100, steps // 10)},
        "engine": {"batch_size": batch_size, "accumulate": accumulate, "workers": min(4, (os.cpu_count() or 2) // 2)},
        "eval": {"split": division.test},
    }
    tables["data"] |= _augmentation(data.truth, side)
    tables["eval"] |= _evaluation(data.truth, side)
    if cuda:
        tables["engine"]["precision"] = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if division.val != division.train:
        every = max(1, min(steps, max(round(count / batch_size), steps // _VALIDATIONS)))
        tables["engine"] |= {"validate_every": every, "save_every": every, "patience": _PATIENCE}
        tables["engine"] |= {"best_metric": _METRICS[data.truth], "best_mode": "max"}
        tables["eval"] |= {"validation_split": division.val, "checkpoint": "best"}
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
    data: LookedAt,
    machine: Machine,
    backbone: str | None,
) -> tuple[dict[str, Any], list[str]]:
    """Table ``[model]``, and what is said of the model and of its weights."""
    known = {option.name for option in fields(MODELS[system].config_class())}
    if start:
        table = {key: value for key, value in start.items() if key != "things"}
        table |= {"weights": weights, "new_classes": True}
        head = "its class head starts anew where the number of classes differs"
        lines = [f"{system}, as its weights say", f"{weights}, of the whole model; {head}"]
    else:
        row = SOURCES.get(weights or "")
        backbone = backbone or (row.backbone if row else "") or _BACKBONE
        decoder = {key: value for key, value in machine.decoder.items() if key in known}
        table = {"name": system, "backbone": backbone, **decoder}
        named, said = (weights, f"{weights}, as asked for") if weights else _installed(backbone)
        if named:
            table["weights"] = named
        elif "norm" in row_of(backbone).options:
            table["backbone_norm"] = "batch"
        lines = [f"{system} on {backbone}{', with a smaller decoder than published' if decoder else ''}", said]
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
            return row.name, f"{row.name}, which are installed"
    return "", f"random; nothing is downloaded unasked (--weights {' or '.join(r.name for r in rows) or 'FILE'})"


def _side(data: LookedAt, machine: Machine, size: int | None) -> tuple[int, str]:
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
