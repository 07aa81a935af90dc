"""How one layout of data on disk declares itself; the layouts are the files of :mod:`fssops.data.layouts`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fssops.data.few_shot_source import FewShotSource
from fssops.data.source import ImageSource, PathLike, VideoSource
from fssops.data.splits import find_list, keep_listed, read_list
from fssops.truth import Classes

DataTruth = Literal["few-shot", "semantic", "instance", "panoptic", "video"]
"""What a data set is read for: numbered classes, one of the three forms of universal segmentation, or videos."""

TRUTHS: tuple[DataTruth, ...] = get_args(DataTruth)

Reader = Callable[..., FewShotSource | ImageSource | VideoSource]
"""Takes the folder (unless the layout has none), ``split`` and options; its docstring explains them."""


def no_classes(truth: DataTruth) -> Classes | None:
    """Of a layout whose files say which classes there are."""
    return None


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: what users call it.
        files: its files in one line, for help.
        readers: what it can be read for, the usual first, and what opens it.
        recognise: tells a folder: "" where it has this layout, else why not.
        splits: names of the splits that a folder has.
        classes: classes as published, for a kind of truth; None where every data set has its own.
        other_classes: whether files may list other classes than ``classes``.
        has_files: False where everything is drawn; then there is no folder to name.
        instead_of_root: options that together replace the folder.
        family: what names of one form of files share, so that a folder may fit them all; "": the name.
    """

    name: str
    files: str
    readers: Mapping[DataTruth, Reader]
    recognise: Callable[[Path], str]
    splits: Callable[[Path], list[str]]
    classes: Callable[[DataTruth], Classes | None] = no_classes
    other_classes: bool = False
    has_files: bool = True
    instead_of_root: tuple[str, ...] = ()
    family: str = ""

    @property
    def offers(self) -> tuple[DataTruth, ...]:
        """What it can be read for, the usual first."""
        return tuple(self.readers)

    def options(self, truth: DataTruth) -> list[str]:
        """Names of the options of a reading, ``split`` among them."""
        reader = self.readers[truth]
        bound = reader.keywords if isinstance(reader, functools.partial) else {}
        return [name for name in inspect.signature(reader).parameters if name != "root" and name not in bound]

    def open(
        self, root: PathLike | None, split: str | None, truth: DataTruth, **options: Any
    ) -> FewShotSource | ImageSource | VideoSource:
        """Open a split; see :func:`fssops.data.layouts.open_data`."""
        if truth not in self.readers:
            raise ValueError(f"open_data: truth must be {_listed(self.offers)} for layout {self.name}, got {truth!r}")
        listed = None if split is None else find_list(root, split)
        names: list[str] = []
        if listed is not None:
            split, names = read_list(listed)
        if split is not None:
            options["split"] = split
        for option in options:
            if option not in self.options(truth):
                raise ValueError(
                    f"open_data: options of layout {self.name} must be {', '.join(self.options(truth))}, got {option!r}"
                )
        self.check_root(root, options)
        source = self.readers[truth](root, **options) if self.has_files else self.readers[truth](**options)
        source.format = self.name
        if isinstance(source, FewShotSource):
            source.images.format = self.name
        if listed is not None:
            keep_listed(source, listed, names)
        return source

    def check_root(self, root: PathLike | None, options: Mapping[str, Any]) -> None:
        """Refuse a folder that is missing, or of a layout without files.

        Raises:
            ValueError: it is given or left out against the layout's rule.
            FileNotFoundError: there is no such folder.
        """
        if not self.has_files:
            if root is not None:
                raise ValueError(
                    f"open_data: root must be left out for layout {self.name}, which has no files, got {root}"
                )
        elif root is None:
            if not self.instead_of_root or not set(self.instead_of_root) <= set(options):
                raise ValueError(f"open_data: root must be a folder for layout {self.name}, got None")
        elif not Path(root).is_dir():
            raise FileNotFoundError(f"{root}: root must be a folder, got no such folder")


def few_shot_view(
    reader: Callable[..., ImageSource],
    numbers: Callable[[ImageSource], Sequence[int]] | None = None,
    options: tuple[str, ...] = (),
) -> Callable[..., FewShotSource]:
    """A reader of the same images as numbered classes.

    Args:
        reader: opens the images; its options stay.
        numbers: of the classes, see :class:`fssops.data.few_shot_source.FewShotSource`.
        options: which of that class there are as well: ``crowd``, ``overlap``.
    """

    @functools.wraps(reader, updated=())
    def read(*arguments: Any, **given: Any) -> FewShotSource:
        of_view = {name: given.pop(name) for name in options if name in given}
        images = reader(*arguments, **given)
        return FewShotSource(images, None if numbers is None else numbers(images), **of_view)

    signature = inspect.signature(reader)
    further = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in options]
    read.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *further]
    )
    return read


def ids_as_numbers(images: ImageSource) -> list[int]:
    """Number classes by their ids in files, for layouts whose ids are positive; 0 is the background."""
    return list(images.classes.index_of)


def _listed(words: tuple[str, ...]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
