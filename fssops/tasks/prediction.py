"""Prediction as a run over many inputs: what cannot be used is named and costs nothing else; a summary is left."""

from __future__ import annotations

import csv
import errno
import io
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
from fssops.segmentations import ClassCount, Segmentation
from fssops.tasks.prediction_inputs import (
    Picture,
    find_pictures,
    is_camera,
    output_names,
    pictures,
    require_decoder,
)
from fssops.tasks.video_files import DEFAULT_RATE, animation_suffix, write_video

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
        suffix: of the videos that are made of videos, without the dot; "none" makes none.
        rate: their frames a second.

    Raises:
        SettingsError: a rate that is no number above 0.

    Attributes:
        noun: what one input is called.
        unusable: what is said of those that could not be segmented.
        rows: what the summary says of each input that was segmented.
    """

    noun: ClassVar[str] = "image"
    unusable: ClassVar[str] = "images could not be read"

    def __init__(self, out: Path, label: str, *, suffix: str = "none", rate: float = DEFAULT_RATE) -> None:
        if not 0 < rate < float("inf"):
            raise SettingsError(f"--rate: frames a second must be a number above 0, got {rate}")
        self.out, self.label, self.suffix, self.rate = out, label, suffix, rate
        self.rows: list[dict[str, Any]] = []
        self._counts: list[list[Any]] = []

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
            try:
                for one in inputs:
                    failed += self._one(one, bar)
            except KeyboardInterrupt:
                if not any(is_camera(path) for path in paths):
                    raise
                bar.say("stopped: what the camera has shown is written")
        self.finish()
        self._write_counts()
        summary = {"model": self.label, **self.summary(), f"{self.noun}s": self.rows, "failed": failed}
        self.write_json("summary.json", summary)
        print(f"{len(self.rows)} {self.noun}s segmented into {self.out}/ ({self.files()})")
        if failed:
            print(f"{len(failed)} {self.unusable}, see summary.json")
        return 1 if failed else 0

    def _one(self, one: Input, bar: ProgressBar) -> list[Mapping[str, Any]]:
        """Segment one input; what could not be used of it is said, and returned for the summary."""
        failed: list[Mapping[str, Any]] = []
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
        return failed

    def count(self, origin: str, counts: Sequence[ClassCount]) -> None:
        """Note the classes of an input for ``summary.csv``."""
        for one in counts:
            mean = "" if one.mean_score is None else round(one.mean_score, 4)
            self._counts.append([origin, one.name, one.count, one.pixels, mean])

    def _write_counts(self) -> None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows([[self.noun, "class", "count", "pixels", "mean_score"], *self._counts])
        write_text_atomically(self.out / "summary.csv", text.getvalue())

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


class PicturePrediction(Predictor):
    """Segments pictures, and videos and cameras frame by frame.

    Args:
        out, label, suffix, rate: as of :class:`Predictor`.
        arrays: write ``.npz`` files too.
        frames: at most so many frames of each video or camera; 0 all.
    """

    def __init__(
        self,
        out: Path,
        label: str,
        *,
        suffix: str = "none",
        rate: float = DEFAULT_RATE,
        arrays: bool = False,
        frames: int = 0,
    ) -> None:
        super().__init__(out, label, suffix=suffix, rate=rate)
        self.arrays, self.frames = arrays, frames
        self._drawn: dict[str, list[Path]] = {}

    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, Iterable[Picture]]:
        """Pictures of files and folders, and the frames of videos and cameras."""
        paths = find_pictures(queries)
        require_decoder(paths)
        self.name_outputs(paths, names := output_names(paths))
        return paths, len(paths), pictures(paths, names, self.frames)

    def name_outputs(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        """Take note of the inputs and of what the files written for each are called."""
        return

    def save_overlay(self, one: Picture, picture: Image.Image, *below: str) -> str:
        """Save what was drawn of a picture under the output folder; of frames a video is made at the end."""
        name = self.save(picture, *below)
        if one.video:
            self._drawn.setdefault("/".join((*below[:-1], one.video)), []).append(self.out / name)
        return name

    def save_arrays(self, found: Segmentation, *below: str) -> list[str]:
        """Write the arrays of a result where they are asked for; returns the files' names."""
        return ["/".join(found.save(self.out.joinpath(*below)).parts[-len(below) :])] if self.arrays else []

    def finish(self) -> None:
        """Make a video of the frames of each."""
        if self.suffix == "none":
            return
        for name, files in self._drawn.items():
            frames = (np.asarray(Image.open(file)) for file in files)
            write_video(self.out / f"{name}.{self.suffix}", frames, self.rate)


def writing(options: Any) -> dict[str, Any]:
    """What the options of ``predict`` say of the files that a :class:`PicturePrediction` writes."""
    suffix = animation_suffix(options.video)
    return {"suffix": suffix, "rate": options.rate, "arrays": options.npz, "frames": options.frames}


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
