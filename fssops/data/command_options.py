"""What the commands of ``python -m fssops.data`` share: naming a data set and a fold, tables and bars."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fssops.data import folds, layouts
from fssops.data.few_shot_source import FewShotSource
from fssops.data.folds import FoldClasses
from fssops.data.layouts import open_data
from fssops.data.source import ImageSource, VideoSource


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def positive(text: str) -> int:
    """An integer of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def add_source(parser: argparse.ArgumentParser, formats: Sequence[str]) -> argparse._ArgumentGroup:
    """Add the options that name a data set; the split is left to the command."""
    group = parser.add_argument_group("data set")
    group.add_argument("path", nargs="?", metavar="PATH", help="folder of the data set; none: the generated one")
    choices = ["auto", *formats]
    group.add_argument("--format", "--layout", dest="format", default="auto", choices=choices, help="default: auto")
    group.add_argument("--annotations", help="coco: annotation file, instead of the one of --split")
    group.add_argument("--images", help="coco: folder of images, instead of the one of --split")
    group.add_argument("--list-file", help="voc: list of images, instead of the one of --split")
    return group


def add_classes(parser: argparse.ArgumentParser, *, by_protocol: bool = False) -> argparse._ArgumentGroup:
    """Add the options that say which classes a fold has and which images count for them."""
    group = parser.add_argument_group("classes")
    group.add_argument(
        "--definition",
        default=None if by_protocol else "panet",
        choices=folds.DEFINITIONS,
        help="COCO-20i classes: panet (20 neighbours) or msanet (every fourth); default: "
        + ("as the protocol has them" if by_protocol else "panet"),
    )
    group.add_argument(
        "--min-area",
        type=positive,
        default=None if by_protocol else 1,
        help="pixels of a class that an image must have to count for it; default: "
        + ("as the protocol has it" if by_protocol else "1 as PANet (BAM and MSANet: 2048)"),
    )
    return group


def add_fold(group: argparse._ArgumentGroup) -> None:
    """Add the option that chooses a fold."""
    help = "0 to 3: Pascal-5i for voc, COCO-20i for coco, quarters elsewhere"
    group.add_argument("--fold", type=int, choices=range(4), help=help)


def source_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a layout that were given."""
    names = ("annotations", "images", "list_file", "maps", "classes")
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def format_of(options: argparse.Namespace) -> str:
    """The layout that was named; without one and without a folder, that which needs none."""
    if options.format == "auto" and options.path is None:
        return "coco" if options.annotations else "generated"
    return str(options.format)


def open_any(options: argparse.Namespace) -> FewShotSource | ImageSource | VideoSource:
    """The data set that the options name, for ``--truth`` or what its layout is usually read for; one split of it."""
    name, extra = format_of(options), source_options(options)
    if name == "auto":
        name = layouts.recognise(options.path, options.truth)
    layout, split = layouts.layout_of(name), options.split
    if split is None and layout.has_files and not extra:
        listed = layout.splits(Path(options.path))
        split = min(listed, key=lambda part: (part != "train", not part.startswith("train")), default=None)
    truth = options.truth or layout.offers[0]
    if truth == "video" and "images" in extra:
        extra["frames"] = extra.pop("images")
    return layout.open(options.path, split, truth, **extra)


def fold_of(format: str, fold: int, definition: str, classes: Sequence[int]) -> FoldClasses:
    """A fold of the benchmark that a layout's classes are those of; of quarters where they are others."""
    benchmark = {"voc": ("pascal5i", 20), "coco": ("coco20i", 80)}.get(format)
    if benchmark is not None and len(classes) == benchmark[1]:
        return folds.by_name(benchmark[0], fold, definition)
    return folds.by_name("generated" if format == "generated" else "custom", fold, classes=classes)


def open_source(options: argparse.Namespace, **further: Any) -> FewShotSource:
    """The data set that the options name, one split of it."""
    extra = {**further, **source_options(options)}
    return open_data(format_of(options), options.path, split=options.split, truth="few-shot", **extra)
