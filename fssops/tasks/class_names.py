"""Classes are the same where their names are: numbers alone say nothing, since every data set numbers its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssops.engine.run_folder import SETTINGS_FILE
from fssops.engine.settings import SettingsError

CLASS_FILE = "classes.json"
"""In a run folder: the classes of the data that the model was trained with."""


def file_of_run(checkpoint: Path, name: str) -> Path | None:
    """A file in the run folder of a checkpoint (or in the folder itself); None where it keeps none.

    Other folders are passed over: a data set's ``classes.json`` may lie beside a weights file.
    """
    folders = (checkpoint, *checkpoint.parents[:2])
    run = next((folder for folder in folders if (folder / SETTINGS_FILE).is_file()), None)
    return run / name if run is not None and (run / name).is_file() else None


def numbered_names(content: Any) -> dict[int, str]:
    """Number -> name of the content of ``classes.json``.

    Args:
        content: ``{"classes": [{"name": ...}, ...]}`` in the order of outputs, ``{"numbers": {number: name}}``
            of a few-shot data set, or ``{name: number}`` of base classes.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: another form.
    """
    if "classes" in content:
        return {index: str(row["name"]) for index, row in enumerate(content["classes"])}
    if "numbers" in content:
        return {int(number): str(name) for number, name in content["numbers"].items()}
    return {int(number): str(name) for name, number in content.items()}


def classes_of_run(checkpoint: Path) -> dict[str, Any] | None:
    """The content of the ``classes.json`` that a run keeps; None where it keeps none, as weights alone do.

    Raises:
        SettingsError: the file is damaged.
    """
    file = file_of_run(checkpoint, CLASS_FILE)
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file}: must list the classes of the run, got {error}") from None
    return checked_classes(content, str(file))


def checked_classes(content: Any, where: str) -> dict[str, Any]:
    """The content itself, if :func:`numbered_names` understands it.

    Raises:
        SettingsError: it does not.
    """
    try:
        numbered_names(content)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SettingsError(f"{where}: must list the classes of the run, got {error}") from None
    return content  # type: ignore[no-any-return]


def compare_names(trained: Mapping[int, str], data: Mapping[int, str], label: str) -> None:
    """See that each number stands for the same class.

    Args:
        trained: number -> name, of the model.
        data: the same of a data set; numbers that one of the two has not are not compared.
        label: of the data set.

    Raises:
        SettingsError: a number stands for another class.
    """
    for number, name in trained.items():
        other = data.get(number, name)
        if other.strip().casefold() != name.strip().casefold():
            raise SettingsError(
                f"data: classes of {label} must be those that the model was trained for, got {other!r} as class "
                f"{number}, which is {name!r} to the model; where only the spelling differs, give the data that name"
            )
