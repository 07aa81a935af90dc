"""python -m fssops.data: look at a data set, check it, fix its episodes.

    check      read every image, mask and annotation once; exit code 1 when something is wrong
    list       classes, how many images each has, and which fold tests it
    episodes   draw an episode list and write it to a file with its hash
    preview    draw images with their truth and a legend; or episodes: supports with their annotation, queries
    split      take a split apart into train, val and test by lists of names, with every class in its share
    convert    write the data set in the layout of COCO, YOLO, label folders or COCO panoptic

PATH is a data set in one of the layouts below; without PATH the built-in generated data set is meant.
`python -m fssops.data COMMAND --help` explains each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.command_line import Parser, console, print_table, run_verb
from fssops.data import check_command, command_options, layouts
from fssops.data.command_options import positive
from fssops.data.episodes import EpisodeList
from fssops.data.errors import DataError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layout import TRUTHS
from fssops.labels import ANNOTATIONS
from fssops.protocols import PROTOCOLS, FewShotProtocol, protocol_of


def _layouts_text() -> str:
    """Every layout with its files, under what it is read for."""
    lines = ["layouts that are recognised; list and episodes take those for few-shot:"]
    for layout in layouts.LAYOUTS.values():
        lines.append(f"  {layout.name:16} {layout.files}")
        lines.append(f"  {'':16} for {', '.join(layout.offers)}")
    return "\n".join(lines)


# check


def _demands(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """What a recipe asks of its data."""
    from fssops.tasks import load_task

    return load_task(recipe, overrides).data_demands()


# list


def _run_list(options: argparse.Namespace) -> int:
    source = command_options.open_source(options)
    with command_options.progress_bar("counting pixels") as progress:
        source.areas(progress)
    places: dict[int, int] = {}
    if len(source.classes) >= 4:
        for number in range(4):
            fold = command_options.fold_of(source.format, number, options.definition, list(source.classes))
            places.update(dict.fromkeys(fold.test, number))
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
    from rich.table import Table

    table = Table(title=f"{source.label}: {len(source.names)} images, {len(rows)} classes", title_justify="left")
    for column in ("id", "class", "tested in fold", "images", "median pixels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    console().print(table)
    return 0


# episodes


def _open(options: argparse.Namespace) -> tuple[FewShotSource, FewShotProtocol]:
    """The data set as the protocol reads it, and the protocol."""
    if options.fold is None and options.side is not None:
        raise DataError(f"--side: must be given with --fold, got {options.side} without it")
    format = command_options.format_of(options)
    if format == "auto":
        format = layouts.recognise(options.path, "few-shot")
    protocol = protocol_of(options.protocol, format)
    return command_options.open_source(options, **protocol.source_options(format)), protocol


def _draw(options: argparse.Namespace, source: FewShotSource, protocol: FewShotProtocol) -> EpisodeList:
    classes, avoid, fold = list(source.classes), [], ""
    if options.fold is not None:
        definition = options.definition or protocol.definition
        fold_classes = command_options.fold_of(source.format, options.fold, definition, classes)
        training = options.side == "train"
        classes, fold = fold_classes.train if training else fold_classes.test, str(fold_classes)
        avoid = fold_classes.test if training and protocol.drop_novel else []
    with command_options.progress_bar("counting pixels") as progress:
        source.areas(progress)
    return EpisodeList.draw(
        source,
        classes,
        ways=options.ways,
        shots=options.shots,
        queries=options.queries,
        episodes=options.episodes,
        seed=options.seed,
        draw=protocol.draw,
        min_area=options.min_area or protocol.min_area,
        avoid=avoid,
        too_few=options.too_few,
        fold=fold,
    )


def _run_episodes(options: argparse.Namespace) -> int:
    source, protocol = _open(options)
    episodes = _draw(options, source, protocol)
    episodes.save(options.output)
    for class_id, count in episodes.dropped.items():
        print(f"left out: {source.classes[class_id]} ({class_id}) has {count} images", file=sys.stderr)
    print(
        f"{options.output}: {len(episodes)} episodes, {episodes.ways}-way {episodes.shots}-shot, {episodes.queries} "
        f"query, seed {episodes.seed}, protocol {protocol.name}, {source.label}"
        f"{', ' + episodes.fold if episodes.fold else ''}, hash {episodes.hash}"
    )
    return 0


# preview


_SHEET = ("path", "format", "split", "truth", "count", "output", "annotations", "images", "list_file")
"""Options that a sheet of images has; any other is one of episodes."""


def _run_preview(options: argparse.Namespace) -> int:
    from PIL import Image

    from fssops.data import pictures

    suffix = options.output.suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise DataError(f"--output: must end in the suffix of a picture, e.g. .png, got {options.output}")
    given = [name for name, usual in options.usual.items() if name not in _SHEET and getattr(options, name) != usual]
    asked = options.truth is not None or options.count is not None
    if given and asked:
        what = "truth" if options.truth else "count"
        raise DataError(f"--{what}: must be left out for episodes (--{given[0].replace('_', '-')}), got it beside them")
    if not given and (asked or options.path is not None):
        source = command_options.open_any(options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        pictures.truth_sheet(source, options.count or 12).save(options.output)
        print(f"{options.output}: {source.label}, {len(source.names)} {source.items}")
        return 0
    return _preview_episodes(options)


def _preview_episodes(options: argparse.Namespace) -> int:
    from fssops.data import pictures
    from fssops.data.datasets.episodes import EpisodeDataset

    options.episodes = options.episodes or 6
    source, protocol = _open(options)
    if options.episode_list:
        episodes = EpisodeList.load(options.episode_list)
        if not episodes:
            raise DataError(f"{options.episode_list}: episode list must hold at least one episode, got none")
    else:
        episodes = _draw(options, source, protocol)
    dataset = EpisodeDataset(
        source,
        episodes,
        (options.size, options.size),
        annotation=options.annotation,
        augment=options.augment,
        **protocol.dataset_options(),
    )
    strokes = options.annotation == "scribble"
    shown = range(min(options.episodes, len(dataset)))
    rows = [pictures.episode_row(dataset[i], source.classes, strokes=strokes) for i in shown]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pictures.stack(rows).save(options.output)
    print(f"{options.output}: {len(rows)} episodes of {source.label}, list hash {episodes.hash[:12]}")
    return 0


# split


def _run_split(options: argparse.Namespace) -> int:
    from fssops.data.splits import stratified_split, write_lists

    source = command_options.open_any(options)
    shares = {part: share for part, share in (("val", options.val), ("test", options.test)) if share}
    with command_options.progress_bar("looking at images") as progress:
        split = stratified_split(source, shares, seed=options.seed, by_sequence=options.by_sequence, progress=progress)
    files = write_lists(split, options.output or Path(options.path) / "splits", overwrite=options.overwrite)
    total = {part: len(names) for part, names in split.parts.items()}
    rows = [
        [name, *map(str, counts.values())] for name, counts in [*split.classes.items(), (f"all {source.items}", total)]
    ]
    print_table(rows, ["class", *split.parts])
    there = {name: counts for name, counts in split.classes.items() if any(counts.values())}
    missing = [f"{name} in {part}" for name, counts in there.items() for part, count in counts.items() if not count]
    if missing:
        print(f"no {source.items} of {', '.join(missing[:6])}{', ...' if len(missing) > 6 else ''}", file=sys.stderr)
    if split.copies:
        print(
            f"{split.copies} {source.items} show the same picture as another, which is in the same part",
            file=sys.stderr,
        )
    for part, file in files.items():
        print(f"{part}: {file}")
    print(f"seed {options.seed}; such a file may stand wherever a split is named: --split {files['train']}")
    return 0


# convert


def _run_convert(options: argparse.Namespace) -> int:
    from fssops.data.conversion import NOT_SAID, convert

    with command_options.progress_bar("converting") as progress:
        left = convert(
            options.path, options.out, options.to, layout=options.format, splits=options.split, progress=progress
        )
    for what, count in left.items():
        if count:
            print(f"{count} {NOT_SAID[what]}", file=sys.stderr)
    print(f"{options.out}: {options.to}; look at it with python -m fssops.data check {options.out}")
    return 0


def _add_source(parser: argparse.ArgumentParser, formats: Sequence[str] | None = None) -> None:
    group = command_options.add_source(parser, formats or layouts.names_for("few-shot"))
    group.add_argument("--split", help="split (default: train, or all where there are none)")


def _add_draw(parser: argparse.ArgumentParser, *, episodes: int | None) -> None:
    command_options.add_fold(command_options.add_classes(parser, by_protocol=True))
    group = parser.add_argument_group("episodes")
    group.add_argument("--side", choices=["test", "train"], help="with --fold: classes of the fold (default: test)")
    group.add_argument("--ways", type=positive, default=1)
    group.add_argument("--shots", type=positive, default=1)
    group.add_argument("--queries", type=positive, default=1)
    group.add_argument("--episodes", type=positive, default=episodes, help=f"how many (default {episodes or 6})")
    group.add_argument("--seed", type=int, default=1234)
    group.add_argument(
        "--protocol",
        default="fssops",
        choices=list(PROTOCOLS),
        help="how images are drawn and masks are read (default: fssops)",
    )
    group.add_argument("--too-few", default="error", choices=["error", "skip"], help="classes with too few images")


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return its exit code: 0 done, 1 problems found, 2 wrong usage or input."""
    parser = Parser("data", __doc__ or "", _layouts_text())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    check = commands.add_parser("check", help="read everything once; exit code 1 when something is wrong")
    check_command.add(check, _demands)

    command = commands.add_parser("list", help="classes, images of each, and which fold tests it")
    _add_source(command)
    command_options.add_classes(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run_list)

    command = commands.add_parser("episodes", help="draw an episode list and write it with its hash")
    _add_source(command)
    _add_draw(command, episodes=1000)
    command.add_argument("-o", "--output", type=Path, default=Path("episodes.json"), help="default: episodes.json")
    command.set_defaults(run=_run_episodes)

    command = commands.add_parser("preview", help="a picture of images with their truth, or of episodes")
    _add_source(command, list(layouts.LAYOUTS))
    command.add_argument("--truth", choices=TRUTHS, help="what is drawn (default: the layout's usual reading)")
    command.add_argument("--count", type=positive, help="images on the sheet (default 12)")
    _add_draw(command, episodes=None)
    command.add_argument("--episode-list", metavar="FILE", help="show these instead of drawing")
    command.add_argument("--annotation", default="mask", choices=ANNOTATIONS, help="of the supports (default: mask)")
    command.add_argument(
        "--augment", default="none", help="chain of augmentation, as data.augment of a recipe (default: none)"
    )
    command.add_argument("--size", type=positive, default=192, help="side in pixels (default 192)")
    command.add_argument("-o", "--output", "--out", type=Path, default=Path("preview.png"), help="default: preview.png")
    command.set_defaults(run=_run_preview, usual=vars(command.parse_args([])))

    command = commands.add_parser("split", help="lists of names for train, val and test, with every class in its share")
    command.add_argument("path", metavar="PATH", help="folder of the data set")
    command.add_argument(
        "--format", "--layout", default="auto", choices=["auto", *layouts.LAYOUTS], help="default: auto"
    )
    command.add_argument("--truth", choices=TRUTHS, help="what classes are taken from (default: the usual reading)")
    command.add_argument("--split", help="split to take apart (default: train, or the first there is)")
    command.add_argument("--val", type=float, default=0.2, help="share of val (default 0.2; 0 for none)")
    command.add_argument("--test", type=float, default=0.0, help="share of test (default 0: none)")
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same lists (default 0)")
    command.add_argument(
        "--by-sequence", action="store_true", help="keep images together whose names differ in a number at their end"
    )
    command.add_argument("-o", "--output", "--out", type=Path, help="folder of the lists (default: PATH/splits)")
    command.add_argument("--overwrite", action="store_true", help="replace lists that say something else")
    command.set_defaults(run=_run_split)

    command = commands.add_parser("convert", help="write a data set in another layout")
    command.add_argument("path", metavar="PATH", help="folder of the data set")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    command.add_argument(
        "--to", required=True, choices=["coco", "yolo", "label_folder", "coco_panoptic"], help="layout of OUT"
    )
    command.add_argument("--format", default="auto", choices=["auto", *layouts.LAYOUTS], help="layout of PATH")
    command.add_argument(
        "--split", action="append", default=[], help="one to convert, as often as needed (default: all)"
    )
    command.set_defaults(run=_run_convert)

    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    run_verb("data", main)
