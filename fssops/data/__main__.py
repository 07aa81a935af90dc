"""python -m fssops.data: look at a data set, check it, fix its episodes.

    check      read every image, mask and annotation once; exit code 1 when something is wrong
    list       classes, how many images each has, and which fold tests it
    episodes   draw an episode list and write it to a file with its hash
    preview    draw supports with their annotation and queries with their truth

PATH is a data set in the layout of PASCAL VOC, COCO instances, FSS-1000 or a folder of your own; without PATH the
built-in generated data set is meant. `python -m fssops.data COMMAND --help` explains each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fssops.command_line import Parser, run_verb
from fssops.data import check, fewshot, folds, pictures, universal, video
from fssops.data.episode_dataset import ANNOTATIONS
from fssops.data.errors import DataError
from fssops.data.folds import FoldClasses
from fssops.data.sources import FewShotSource

_CHECK_EXAMPLES = """examples:
  python -m fssops.data check VOCdevkit/VOC2012
  python -m fssops.data check coco --split train2017 --split val2017 --fold 0 --definition msanet --min-area 2048
  python -m fssops.data check my_folder --json report.json --allow empty_class
  python -m fssops.data check coco --annotations my.json --images pictures

kinds of findings:
""" + "\n".join(f"  {kind:18} {text}" for kind, text in check.KINDS.items())

_FIXED = tuple(name for name in (*universal.FORMATS, *video.FORMATS) if name not in fewshot.FORMATS)
"""Layouts of fixed-class data, which only ``check`` looks at."""

_LAYOUTS = """layouts that are recognised:
  voc       JPEGImages/ SegmentationClass[Aug]/ ImageSets/Segmentation/SPLIT.txt
  coco      annotations/instances_SPLIT.json, SPLIT/ or images/SPLIT/
  fss1000   CLASS/1.jpg CLASS/1.png ...
  folder    CLASS/images/ CLASS/masks/, or CLASS/NAME.jpg CLASS/NAME.png, or images/ labels/ classes.json
  generated drawn, no files
and by check also, for fixed classes:
  coco_panoptic    annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png
  coco_instances   as coco, with the rules of instance segmentation
  cityscapes       leftImg8bit/ gtFine/
  ade20k           images/training/ annotations/training/ (and ade20k_panoptic_*.json, ade20k_instance_*.json)
  label_folder     images/ labels/ classes.json; camvid: the same, or SegNet's train/ trainannot/
and for videos:
  ytvis            SPLIT.json or SPLIT/instances.json, SPLIT/JPEGImages/VIDEO/FRAME.jpg; ytvis2019, ytvis2021, ovis: the
                   same with their classes; generated_videos: drawn"""


def _console() -> Console:
    return Console(stderr=False, highlight=False, soft_wrap=False)


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _add_source(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    group = parser.add_argument_group("data set")
    group.add_argument("path", nargs="?", metavar="PATH", help="folder of the data set; none: the generated one")
    formats = ["auto", *fewshot.FORMATS, *(_FIXED if several else ())]
    group.add_argument("--format", default="auto", choices=formats, help="layout (default: auto)")
    if several:
        group.add_argument(
            "--split", action="append", help="split to look at; may be repeated (default: all there are)"
        )
    else:
        group.add_argument("--split", help="split (default: train, or all where there are none)")
    group.add_argument("--annotations", help="coco: annotation file, instead of the one of --split")
    group.add_argument("--images", help="coco: folder of images, instead of the one of --split")
    group.add_argument("--list-file", help="voc: list of images, instead of the one of --split")


def _add_fold(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fold")
    group.add_argument("--fold", type=int, help="0 to 3: Pascal-5i for voc, COCO-20i for coco, quarters elsewhere")
    group.add_argument(
        "--definition",
        default="panet",
        choices=folds.DEFINITIONS,
        help="COCO-20i classes: panet (20 neighbours, default) or msanet (every fourth)",
    )
    group.add_argument(
        "--min-area",
        type=int,
        default=1,
        help="pixels of a class that an image must have to count for it (default 1 as PANet; BAM and MSANet: 2048)",
    )


def _source_options(options: argparse.Namespace) -> dict[str, Any]:
    names = {"annotations": options.annotations, "images": options.images, "list_file": options.list_file}
    names |= {key: getattr(options, key, None) for key in ("maps", "classes")}
    return {name: value for name, value in names.items() if value is not None}


def _format(options: argparse.Namespace) -> str:
    if options.format == "auto" and options.path is None:
        return "coco" if options.annotations else "generated"
    return str(options.format)


def _open(options: argparse.Namespace) -> FewShotSource:
    return fewshot.open_source(_format(options), options.path, split=options.split, **_source_options(options))


def _fold(options: argparse.Namespace, format: str, classes: Sequence[int]) -> FoldClasses | None:
    if options.fold is None:
        return None
    benchmark = {"voc": "pascal5i", "coco": "coco20i", "generated": "generated"}.get(format, "custom")
    if (benchmark, len(classes)) in (("pascal5i", 20), ("coco20i", 80)):
        return folds.by_name(benchmark, options.fold, options.definition)
    return folds.by_name("generated" if benchmark == "generated" else "custom", options.fold, classes=classes)


# check


def _run_check(options: argparse.Namespace) -> int:
    format, extra = _format(options), _source_options(options)
    if format == "auto":
        format = _guess(options.path)
    splits = options.split
    if format in _FIXED:
        return _check_fixed(options, format, splits, extra)
    if extra and splits is None:
        splits = ["train"]
    fold = None
    if options.fold is not None:
        classes = {"voc": range(1, 21), "coco": range(1, 81)}.get(format)
        fold = _fold(options, format, classes or list(_open_first(format, options, splits).classes))
    with _progress("reading images and masks") as progress:
        report = check.check_data(
            format,
            options.path,
            splits=splits,
            fold=fold,
            min_area=options.min_area,
            need=options.shots + options.queries if options.shots else 0,
            progress=progress,
            **extra,
        )
    lists = [fewshot.EpisodeList.load(f) if f else None for f in (options.train_episodes, options.test_episodes)]
    if any(lists):
        report.findings.extend(check.check_episodes(lists[0], lists[1], None, fold))
    return _tell(report, options)


def _guess(path: str) -> str:
    """Layouts of fixed classes that look like no other come first; everything else is few-shot's."""
    try:
        fixed = "ytvis" if video.looks_like_videos(path) else universal.guess_format(path)
    except DataError:
        fixed = ""
    instances = any((Path(path) / "annotations").glob("instances_*.json"))
    if fixed in ("cityscapes", "ade20k", "ytvis") or (fixed == "coco_panoptic" and not instances):
        return fixed
    try:
        return fewshot.guess_format(path)
    except DataError:
        if fixed:
            return fixed
        raise


def _check_fixed(options: argparse.Namespace, format: str, splits: Sequence[str] | None, extra: dict[str, Any]) -> int:
    from fssops.data.universal.check import check_universal

    if options.fold is not None:
        raise DataError(f"--fold: {format} has fixed classes and no folds, got {options.fold}")
    if format in video.FORMATS:
        from fssops.data.video.check import check_videos

        with _progress("reading videos and annotations") as progress:
            extra = {"frames" if name == "images" else name: value for name, value in extra.items()}
            report = check_videos(format, options.path, splits=splits, progress=progress, **extra)
        return _tell(report, options)
    with _progress("reading images and annotations") as progress:
        report = check_universal(
            format,
            options.path,
            splits=splits or (["train"] if "annotations" in extra else None),
            kind=options.truth,
            progress=progress,
            **extra,
        )
    return _tell(report, options)


def _tell(report: check.Report, options: argparse.Namespace) -> int:
    """Print and write a report; returns the exit code."""
    problems = report.problems(options.allow)
    if options.json:
        text = json.dumps({**report.as_dict(), "ok": not problems}, indent=1)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.json != "-":
        _print_report(report, problems, options)
    return 1 if problems else 0


def _open_first(format: str, options: argparse.Namespace, splits: Sequence[str] | None) -> FewShotSource:
    split = (splits or check.splits_of(format, options.path or "."))[0]
    return fewshot.open_source(format, options.path, split=split)


def _print_report(report: check.Report, problems: list[check.Finding], options: argparse.Namespace) -> None:
    console = _console()
    table = Table(title=f"{report.root or 'generated data'} ({report.format})", title_justify="left")
    further = [name for name in ("videos", "objects") if any(name in row for row in report.splits.values())]
    columns = ["images", "classes", "empty classes", *further]
    for column in ("split", *columns):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, numbers in report.splits.items():
        table.add_row(split, *(str(numbers[c]) for c in columns))
    console.print(table)
    if report.findings:
        found = Table(title="findings", title_justify="left", show_lines=False)
        for column in ("kind", "where", "what"):
            found.add_column(column, overflow="fold")
        for kind, count in report.counts().items():
            of_kind = [f for f in report.findings if f.kind == kind]
            shown = of_kind if options.all else of_kind[: options.show]
            for finding in shown:
                allowed = finding.severity == "note" or kind in options.allow
                found.add_row(f"{kind}{' (note)' if allowed else ''}", finding.where, finding.message)
            if count > len(shown):
                found.add_row(kind, "", f"... and {count - len(shown)} more (--all shows them)")
        console.print(found)
    notes = len(report.findings) - len(problems)
    end = f"{len(problems)} problems" if problems else "no problems"
    console.print(f"{end}{f', {notes} notes' if notes else ''}")


# list


def _run_list(options: argparse.Namespace) -> int:
    source = _open(options)
    with _progress("counting pixels") as progress:
        source.areas(progress)
    places: dict[int, int] = {}
    if len(source.classes) >= 4:
        for number in range(4):
            options.fold = number
            fold = _fold(options, source.format, list(source.classes))
            places.update(dict.fromkeys(fold.test if fold else (), number))
    rows = []
    for class_id, name in source.classes.items():
        images = source.images_of(class_id, options.min_area)
        area = [source.areas()[n][class_id] for n in images]
        rows.append(
            {
                "id": class_id,
                "class": name,
                "tested in fold": places.get(class_id),
                "images": len(images),
                "median pixels": sorted(area)[len(area) // 2] if area else None,
            }
        )
    if options.json:
        print(json.dumps({"source": source.describe(), "min_area": options.min_area, "classes": rows}, indent=1))
        return 0
    table = Table(title=f"{source.label}: {len(source.names)} images, {len(rows)} classes", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    _console().print(table)
    return 0


# episodes


def _draw(options: argparse.Namespace, source: FewShotSource) -> fewshot.EpisodeList:
    protocol = fewshot.PROTOCOLS[options.protocol]
    fold = _fold(options, source.format, list(source.classes))
    if fold is None:
        classes, avoid = list(source.classes), []
    elif options.side == "train":
        classes, avoid = fold.train, (fold.test if protocol.drop_novel else [])
    else:
        classes, avoid = fold.test, []
    with _progress("counting pixels") as progress:
        source.areas(progress)
    return fewshot.EpisodeList.draw(
        source,
        classes,
        ways=options.ways,
        shots=options.shots,
        queries=options.queries,
        episodes=options.episodes,
        seed=options.seed,
        draw=protocol.draw,
        min_area=options.min_area if options.min_area != 1 else protocol.min_area,
        avoid=avoid,
        too_few=options.too_few,
        fold=fold or "",
    )


def _run_episodes(options: argparse.Namespace) -> int:
    source = _open(options)
    episodes = _draw(options, source)
    episodes.save(options.output)
    for class_id, count in episodes.dropped.items():
        print(f"left out: {source.classes[class_id]} ({class_id}) has {count} images", file=sys.stderr)
    print(
        f"{options.output}: {len(episodes)} episodes, {episodes.ways}-way {episodes.shots}-shot, {episodes.queries} "
        f"query, seed {episodes.seed}, protocol {options.protocol}, {source.label}"
        f"{', ' + episodes.fold if episodes.fold else ''}, hash {episodes.hash}"
    )
    return 0


# preview


def _run_preview(options: argparse.Namespace) -> int:
    source = _open(options)
    if options.episode_list:
        episodes = fewshot.EpisodeList.load(options.episode_list)
    else:
        episodes = _draw(options, source)
    rules = fewshot.PROTOCOLS[options.protocol].dataset_options()
    dataset = fewshot.EpisodeDataset(
        source, episodes, (options.size, options.size), annotation=options.annotation, augment=options.augment, **rules
    )
    rows = [pictures.episode_row(dataset[i], source.classes) for i in range(min(options.episodes, len(dataset)))]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pictures.stack(rows).save(options.output)
    print(f"{options.output}: {len(rows)} episodes of {source.label}, list hash {episodes.hash[:12]}")
    return 0


def _add_draw(parser: argparse.ArgumentParser, *, episodes: int) -> None:
    group = parser.add_argument_group("episodes")
    group.add_argument("--side", default="test", choices=["test", "train"], help="classes of the fold (default: test)")
    group.add_argument("--ways", type=int, default=1)
    group.add_argument("--shots", type=int, default=1)
    group.add_argument("--queries", type=int, default=1)
    group.add_argument("--episodes", type=int, default=episodes, help=f"how many (default {episodes})")
    group.add_argument("--seed", type=int, default=1234)
    group.add_argument(
        "--protocol",
        default="fssops",
        choices=list(fewshot.PROTOCOLS),
        help="how images are drawn and masks are read (default: fssops)",
    )
    group.add_argument("--too-few", default="error", choices=["error", "skip"], help="classes with too few images")


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return its exit code: 0 done, 1 problems found, 2 wrong usage or input."""
    parser = Parser("data", __doc__ or "", _LAYOUTS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)

    command = commands.add_parser("check", help="read everything once; exit code 1 when something is wrong")
    command.epilog = _CHECK_EXAMPLES
    _add_source(command, several=True)
    _add_fold(command)
    command.add_argument("--shots", type=int, default=0, help="with --fold: report classes with fewer images than this")
    command.add_argument("--queries", type=int, default=1, help="with --shots: plus this (default 1)")
    command.add_argument("--train-episodes", metavar="FILE", help="episode list to look through for leakage")
    command.add_argument("--test-episodes", metavar="FILE", help="episode list to look through for leakage")
    command.add_argument(
        "--allow", action="append", default=[], choices=list(check.KINDS), help="kind that is no problem"
    )
    command.add_argument(
        "--truth", choices=("semantic", "instance", "panoptic"), help="ade20k, cityscapes: which annotations to read"
    )
    command.add_argument("--maps", help="coco_panoptic: folder of the PNGs, instead of the one of --annotations")
    command.add_argument("--classes", help="label_folder: class file, instead of PATH/classes.json")
    command.add_argument("--show", type=int, default=5, help="findings shown of each kind (default 5)")
    command.add_argument("--all", action="store_true", help="show all findings")
    command.add_argument(
        "--json", metavar="FILE", help="also write the report as JSON; - prints it instead of the table"
    )
    command.set_defaults(run=_run_check)

    command = commands.add_parser("list", help="classes, images of each, and which fold tests it")
    _add_source(command)
    _add_fold(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run_list)

    command = commands.add_parser("episodes", help="draw an episode list and write it with its hash")
    _add_source(command)
    _add_fold(command)
    _add_draw(command, episodes=1000)
    command.add_argument("-o", "--output", type=Path, default=Path("episodes.json"), help="default: episodes.json")
    command.set_defaults(run=_run_episodes)

    command = commands.add_parser("preview", help="a picture of episodes: supports, annotation, queries, truth")
    _add_source(command)
    _add_fold(command)
    _add_draw(command, episodes=6)
    command.add_argument("--episode-list", metavar="FILE", help="show these instead of drawing")
    command.add_argument("--annotation", default="mask", choices=ANNOTATIONS, help="of the supports (default: mask)")
    command.add_argument("--augment", default="none", help="none, flip, msanet_pascal or msanet_coco")
    command.add_argument("--size", type=int, default=192, help="side in pixels (default 192)")
    command.add_argument("-o", "--output", type=Path, default=Path("preview.png"), help="default: preview.png")
    command.set_defaults(run=_run_preview)

    options = parser.parse_args(arguments)
    return int(options.run(options))


class _Command(argparse.ArgumentParser):
    """Parser of one command: help keeps its layout, usage errors are one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{**keywords, "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False})

    def error(self, message: str) -> Any:
        print(f"{self.prog}: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    run_verb("data", main)
