"""Prediction as a run over many inputs: what cannot be used is named and costs nothing else; a summary is left."""

from __future__ import annotations

import errno
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.progress import ProgressBar
from fssops.engine.settings import SettingsError

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the disk that results are written to: the next input would meet them too."""


class Input(Protocol):
    """Something to segment."""

    @property
    def origin(self) -> str:
        """Where it comes from, for messages."""
        ...


class Predictor(ABC):
    """Segments pictures or videos one by one and writes what it finds.

    Args:
        out: folder of the results; made where it is missing.
        label: what to call the model.

    Attributes:
        noun: what one input is called.
        unusable: what is said of those that could not be segmented.
        rows: what the summary says of each input that was segmented.
    """

    noun: ClassVar[str] = "image"
    unusable: ClassVar[str] = "images could not be read"

    def __init__(self, out: Path, label: str) -> None:
        self.out, self.label = out, label
        self.rows: list[dict[str, Any]] = []

    @abstractmethod
    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, Iterable[Input]]:
        """Find what paths stand for.

        Returns:
            all files that will be read, the number of inputs as far as it is known, and the inputs.

        Raises:
            FileNotFoundError: a path does not exist, or holds nothing to segment.
            SettingsError: a file needs a package that is not installed.
        """

    @abstractmethod
    def segment(self, one: Any) -> Any:
        """Segment one input, write its files, and add a row.

        Raises:
            ValueError, OSError: it cannot be read.
        """

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says beside the inputs."""

    @abstractmethod
    def files(self) -> str:
        """Which files are left, in words."""

    def problems(self, one: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Parts of an input that could not be used, as (row for the summary, line for the reader)."""
        return iter(())

    def finish(self) -> None:
        """Write the files that are about all inputs together."""
        return

    def run(self, queries: Sequence[str]) -> int:
        """Segment everything that paths stand for.

        Returns:
            exit code: 1 where something could not be used.

        Raises:
            FileNotFoundError, SettingsError: see :meth:`find`; or the results would lie among the queries.
        """
        paths, count, inputs = self.find(queries)
        if self.out.resolve() in {path.parent.resolve() for path in paths}:
            raise SettingsError(f"--out: {self.out} must be another folder than that of the queries")
        self.out.mkdir(parents=True, exist_ok=True)
        failed: list[Mapping[str, Any]] = []
        with ProgressBar("predict", count) as bar:
            for one in inputs:
                try:
                    self.segment(one)
                except (ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
                        raise
                    # One that cannot be read must not cost the other thousand.
                    failed.append({self.noun: one.origin, "error": str(error)})
                    bar.say(f"left out {one.origin}: {error}")
                for row, line in self.problems(one):
                    failed.append(row)
                    bar.say(line)
                bar.advance()
        self.finish()
        summary = {"model": self.label, **self.summary(), f"{self.noun}s": self.rows, "failed": failed}
        self.write_json("summary.json", summary)
        print(f"{len(self.rows)} {self.noun}s segmented into {self.out}/ ({self.files()})")
        if failed:
            print(f"{len(failed)} {self.unusable}, see summary.json")
        return 1 if failed else 0

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file into the output folder."""
        write_text_atomically(self.out / name, json.dumps(content) + "\n")

    def save(self, picture: Image.Image | np.ndarray, *below: str) -> str:
        """Save a picture under the output folder, folders included; returns its name there."""
        target = self.out.joinpath(*below)
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        if target.suffix == ".jpg":
            image.save(target, quality=92)
        else:
            image.save(target)
        return "/".join(below)


def find_device(name: str) -> str:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        SettingsError: there is none of that name here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in counts or not (number.isdecimal() or name == kind):
        raise SettingsError(f"--device: must be auto, cpu, cuda, cuda:1, ... or mps, got {name!r}")
    if int(number or 0) >= counts[kind]:
        raise SettingsError(
            f"--device: {name} must be available, got a torch or machine with {counts[kind]} of its kind"
        )
    return name
