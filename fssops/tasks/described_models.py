"""Settings of a model that its weights describe, where no recipe says them; and what weights keep of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssops.data.layouts import LAYOUTS
from fssops.engine.settings import SettingsError
from fssops.tasks.class_names import classes_of_run
from fssops.truth import Classes
from fssops.weights.reading import Checkpoint
from fssops.weights.transformers_folder import class_names_of

logger = logging.getLogger(__name__)

_KEPT = {"data": ("size", "geometry"), "eval": ("short_side", "longest")}
"""Settings that say how images enter a model: what weights may say of them, and no more."""
_TASKS = {"semantic": ["semantic"], "instance": ["instance"], "panoptic": ["panoptic", "instance", "semantic"]}
"""What a model is asked for that was trained for a form of truth."""


def described_tables(checkpoint: Checkpoint, called: str) -> dict[str, Any]:
    """Tables of a recipe, from what weights say of their model; class names go to ``checkpoint.classes``.

    Args:
        checkpoint: of ``save_pretrained``, ``save_weights`` or transformers.
        called: what the user calls it: transformers says nowhere else what a model is for.

    Raises:
        ValueError: it does not say which model it is of, or says what it may not.
    """
    name, options = checkpoint.described_model()
    if checkpoint.config:
        options = {**options, **_of_transformers(checkpoint, name, called)}
    for table, settings in checkpoint.preprocessing.items():
        unknown = set(settings) - set(_KEPT.get(table, ())) if isinstance(settings, Mapping) else {"another form"}
        if table not in _KEPT or unknown:
            known = ", ".join(f"{table}.{key}" for table, keys in _KEPT.items() for key in keys)
            raise SettingsError(
                f"{checkpoint.source}: preprocessing must be of {known}, got {table} with {settings!r:.60}"
            )
    return {"name": name, "model": {**options, "name": name}, **checkpoint.preprocessing}


def kept_of_run(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What weights say of the run that they are of, as keywords of ``save_pretrained``.

    Args:
        checkpoint: of the run.
        path: where it was read from.
    """
    settings = checkpoint.settings
    preprocessing = {
        table: {key: settings[table][key] for key in keys if settings[table].get(key)}
        for table, keys in _KEPT.items()
        if isinstance(settings.get(table), Mapping)
    }
    return {
        "classes": classes_of_run(path) or checkpoint.classes,
        "preprocessing": {table: kept for table, kept in preprocessing.items() if kept} or checkpoint.preprocessing,
    }


def _of_transformers(checkpoint: Checkpoint, name: str, called: str) -> dict[str, Any]:
    """What the model is for and which classes are countable: by its name, and where its classes are published ones."""
    names = class_names_of(checkpoint.config)
    said = re.search("|".join(_TASKS), called.rpartition("/")[2])
    published = _published_classes(names)
    truth = said[0] if said else next(iter(published), "semantic")
    classes = published.get(truth) or next(iter(published.values()), None)
    if classes is None:
        classes = Classes.from_names(names, things=range(len(names)))
        if truth == "panoptic":
            logger.warning(
                "%s: which classes are countable is not said; every class is, but for --set model.things=...", called
            )
    checkpoint.classes = classes.as_json()
    tasks = [task for task in _TASKS[truth] if not (name == "maskformer" and task == "instance" != truth)]
    logger.info(
        "%s: taken for %s segmentation%s", called, truth, "" if said else ", by its classes; else set model.tasks"
    )
    return {"tasks": tasks, **({"things": list(classes.things)} if truth == "panoptic" else {})}


def _published_classes(names: list[str]) -> dict[str, Classes]:
    """Form of truth -> classes, of the layout whose published classes are called so; its usual form comes first."""
    wanted = [name.casefold() for name in names]
    for layout in LAYOUTS.values():
        offered = {str(truth): layout.classes(truth) for truth in layout.offers if truth in _TASKS}
        same = {t: c for t, c in offered.items() if c is not None and [n.casefold() for n in c.names] == wanted}
        if same:
            return same
    return {}
