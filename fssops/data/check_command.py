"""The command ``check`` of ``python -m fssops.data``: its options, and the report as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fssops.command_line import console
from fssops.data import check, command_options, layouts
from fssops.data.episodes import EpisodeList
from fssops.data.errors import DataError
from fssops.data.folds import FoldClasses
from fssops.data.layout import TRUTHS

_EXAMPLES = """examples:
  python -m fssops.data check VOCdevkit/VOC2012
  python -m fssops.data check coco --split train2017 --split val2017 --fold 0 --definition msanet --min-area 2048
  python -m fssops.data check my_folder --json report.json --allow empty_class
  python -m fssops.data check coco --annotations my.json --images pictures
  python -m fssops.data check coco --split train2017 --recipe mask2former_coco_instance_r50
      also how many objects are beyond the model's queries

kinds of findings:
""" + "\n".join(f"  {kind:18} {text}" for kind, text in check.KINDS.items())


def add(command: argparse.ArgumentParser, demands: Callable[[str, list[str]], dict[str, Any]]) -> None:
    """Give a parser the options of the command.

    Args:
        command: its parser.
        demands: what a recipe asks of data: layout, root and options, and further arguments of ``check_data``.
    """
    command.epilog = _EXAMPLES
    group = command_options.add_source(command, list(layouts.LAYOUTS))
    group.add_argument("--split", action="append", help="split to look at; may be repeated (default: all there are)")
    command_options.add_fold(command_options.add_classes(command))
    command.add_argument("--shots", type=int, default=0, help="with --fold: report classes with fewer images than this")
    command.add_argument("--queries", type=int, default=1, help="with --shots: plus this (default 1)")
    command.add_argument(
        "--recipe", help="also count what its model can make nothing of; without PATH: in its data set"
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="with --recipe: a setting"
    )
    command.add_argument("--train-episodes", metavar="FILE", help="episode list to look through for leakage")
    command.add_argument("--test-episodes", metavar="FILE", help="episode list to look through for leakage")
    command.add_argument(
        "--allow", action="append", default=[], choices=list(check.KINDS), help="kind that is no problem"
    )
    command.add_argument("--truth", choices=TRUTHS, help="what the data are for (default: the layout's usual reading)")
    command.add_argument("--maps", help="coco_panoptic: folder of the PNGs, instead of the one of --annotations")
    command.add_argument("--classes", help="label_folder: class file, instead of PATH/classes.json")
    command.add_argument("--show", type=int, default=5, help="findings shown of each kind (default 5)")
    command.add_argument("--all", action="store_true", help="show all findings")
    command.add_argument(
        "--json", metavar="FILE", help="also write the report as JSON; - prints it instead of the table"
    )
    command.set_defaults(run=run, demands=demands)


def run(options: argparse.Namespace) -> int:
    """Check what the options name; returns the exit code."""
    layout, extra = command_options.format_of(options), command_options.source_options(options)
    demands = options.demands(options.recipe, options.overrides) if options.recipe else {}
    of_recipe, root = {name: demands.pop(name, None) for name in ("layout", "root", "options")}, options.path
    if demands and root is None and not extra:
        layout, root, extra = of_recipe["layout"], of_recipe["root"], dict(of_recipe["options"])
    wanted = demands.pop("truth", None)
    wanted = options.truth or wanted
    if layout == "auto":
        layout = layouts.recognise(root or ".", wanted)
    truth = wanted or layouts.LAYOUTS[layout].offers[0]
    if options.fold is not None and truth != "few-shot":
        raise DataError(f"--fold: {layout} has fixed classes and no folds, got {options.fold}")
    if truth == "video" and "images" in extra:
        extra["frames"] = extra.pop("images")
    lists = [EpisodeList.load(f) if f else None for f in (options.train_episodes, options.test_episodes)]
    with command_options.progress_bar("reading images and annotations") as progress:
        report = check.check_data(
            layout,
            root,
            truth=truth,
            splits=options.split or (["train"] if extra and truth == "few-shot" else None),
            train_episodes=lists[0],
            test_episodes=lists[1],
            progress=progress,
            **{**_asked(options, layout), **demands, **extra},
        )
    return _tell(report, options)


def _asked(options: argparse.Namespace, layout: str) -> dict[str, Any]:
    """What the options ask of the classes, where no recipe does."""

    def fold(classes: Sequence[int]) -> FoldClasses:
        return command_options.fold_of(layout, options.fold, options.definition, classes)

    need = options.shots + options.queries if options.shots else 0
    return {"fold": None if options.fold is None else fold, "min_area": options.min_area, "need": need}


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


def _print_report(report: check.Report, problems: list[check.Finding], options: argparse.Namespace) -> None:
    from rich.table import Table

    output = console()
    name = report.root or options.annotations or "generated data"
    table = Table(title=f"{name} ({report.format})", title_justify="left")
    further = [name for name in ("videos", "objects") if any(name in row for row in report.splits.values())]
    columns = ["images", "classes", "empty classes", *further]
    for column in ("split", *columns):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, numbers in report.splits.items():
        table.add_row(split, *(str(numbers[c]) for c in columns))
    output.print(table)
    for split, facts in report.facts.items():
        for text in facts.told():
            output.print(f"{split}: {text}", soft_wrap=True)
    if report.findings:
        findings = Table(title="findings", title_justify="left", show_lines=False)
        for column in ("kind", "where", "what"):
            findings.add_column(column, overflow="fold")
        for kind, count in report.counts().items():
            of_kind = [f for f in report.findings if f.kind == kind]
            shown = of_kind if options.all else of_kind[: options.show]
            for finding in shown:
                allowed = finding.severity == "note" or kind in options.allow
                findings.add_row(f"{kind}{' (note)' if allowed else ''}", finding.where, finding.message)
            if count > len(shown):
                findings.add_row(kind, "", f"... and {count - len(shown)} more (--all shows them)")
        output.print(findings)
    notes = len(report.findings) - len(problems)
    end = [_counted(len(problems), "problem") if problems else "no problems"]
    output.print(", ".join(end + [_counted(notes, "note")] * bool(notes)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
