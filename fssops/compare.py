"""``python -m fssops.compare``: what two or more runs were told, what they scored, and how they went, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fssops.command_line import Parser, console, print_table, run_verb

_EXAMPLES = """\
examples:
  python -m fssops.compare runs/small runs/large
      settings that differ, scores and their differences to the first run; curves as compare.png
  python -m fssops.compare scores/fold0 scores/fold1 --out table.json --classes
      folders of fssops.evaluate; the same as JSON, and the classes one by one

scores are subtracted only where both were measured on the same data by the same protocol and episodes; where they were
not, the table says what differs."""


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a run.

    Attributes:
        what: whose it is: "trained", "untrained", "fold 2", ...
        setting: data, protocol and episodes, as results state them.
        scores: by name, in [0, 1]; None where one could not be measured.
        classes: scores of single classes, by name.
    """

    what: str
    setting: str
    scores: dict[str, float | None]
    classes: dict[str, float | None]


@dataclass(frozen=True)
class Compared:
    """A folder that is compared.

    Attributes:
        name: unlike the others'.
        settings: by dotted key; empty for a folder of evaluations.
        measured: by what they are of.
        metrics: file of the course of training, or None.
    """

    name: str
    settings: dict[str, Any]
    measured: dict[str, Measurement]
    metrics: Path | None


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser("compare", "Compare runs: settings, scores, curves.", _EXAMPLES)
    arguments.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of train or evaluate")
    arguments.add_argument("--classes", action="store_true", help="compare single classes as well")
    arguments.add_argument(
        "--out", type=Path, metavar="FILE", help=".json: the tables; .png: the curves (default: compare.png of runs)"
    )
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    options = parser().parse_args(arguments)
    if len(options.runs) < 2:
        raise ValueError(f"RUN must be given at least twice, got {len(options.runs)}")
    if options.out is not None and options.out.suffix not in (".json", ".png"):
        raise ValueError(f"--out: FILE must end in .json or .png, got {options.out}")
    names = _short_names(options.runs)
    runs = [read_run(path, name) for path, name in zip(options.runs, names, strict=True)]
    settings, scores = different_settings(runs), score_rows(runs, options.classes)
    if settings:
        print_table(settings, ["setting", *names], title="settings that differ")
    print_table(scores, ["measured", "score", *names], title=f"scores in percent (difference to {names[0]})")
    for what, texts in different_measurements(runs).items():
        console().print(f"{what}: not measured alike, so not subtracted:")
        for name, text in texts.items():
            console().print(f"  {name}: {text}")
    if options.out is not None and options.out.suffix == ".json":
        body = {name: {"settings": run.settings, "scores": _plain(run)} for name, run in zip(names, runs, strict=True)}
        options.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        console().print(f"written: {options.out}")
    elif any(run.metrics for run in runs):
        path = options.out or Path("compare.png")
        draw(runs, path)
        console().print(f"written: {path}")
    return 0


def read_run(folder: Path, name: str) -> Compared:
    """Read what a run's folder, or a folder of evaluations, says of itself.

    Raises:
        ValueError: it holds neither ``result.json`` nor ``results.json``, or one that cannot be read.
    """
    run, evaluation = folder / "result.json", folder / "results.json"
    path = run if run.is_file() else evaluation
    if not path.is_file():
        raise ValueError(f"RUN must hold result.json (a finished training) or results.json, got {folder}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = _entries(content)
        measured = {what: _measurement(what, entry) for what, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: must be what fssops wrote, got {type(error).__name__} while reading it") from None
    settings: dict[str, Any] = {}
    if (folder / "settings.json").is_file():
        settings = _flat(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    metrics = folder / "metrics.jsonl"
    return Compared(name, settings, measured, metrics if metrics.is_file() else None)


def different_settings(runs: Sequence[Compared]) -> list[list[str]]:
    """Rows (key, value of each run) of the settings in which runs differ; folders without settings are left out."""
    keys = sorted({key for run in runs for key in run.settings})
    rows = [[key, *(_shown(run.settings.get(key, "")) for run in runs)] for key in keys]
    known = [index for index, run in enumerate(runs, 1) if run.settings]
    return [row for row in rows if len({row[index] for index in known}) > 1 and row[0] not in ("name", "description")]


def score_rows(runs: Sequence[Compared], classes: bool) -> list[list[str]]:
    """Rows (what, score, its value of each run), differences to the first run beside values measured alike."""
    rows = []
    for what in dict.fromkeys(what for run in runs for what in run.measured):
        found = [run.measured.get(what) for run in runs]
        tables: list[list[dict[str, float | None]]] = [[one.scores if one else {} for one in found]]
        if classes:
            tables.append([one.classes if one else {} for one in found])
        for table in tables:
            for name in dict.fromkeys(name for scores in table for name in scores):
                values = [scores.get(name) for scores in table]
                alike = [one is not None and found[0] is not None and one.setting == found[0].setting for one in found]
                rows.append([what, name, *(_cell(values, alike, index) for index in range(len(runs)))])
    return rows


def different_measurements(runs: Sequence[Compared]) -> dict[str, dict[str, str]]:
    """What was measured on other data, by another protocol or on other episodes than by the first run."""
    found = {}
    for what in dict.fromkeys(what for run in runs for what in run.measured):
        settings = {run.name: run.measured[what].setting for run in runs if what in run.measured}
        if len(set(settings.values())) > 1:
            found[what] = settings
    return found


def draw(runs: Sequence[Compared], path: Path) -> None:
    """Draw the training loss and every validation score of all runs over the steps, one panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fssops.engine.metrics_log import read_metrics

    courses = {run.name: read_metrics(run.metrics) for run in runs if run.metrics}
    scores = {key for records in courses.values() for record in records if "loss" not in record for key in record}
    panels = ["loss", *sorted(scores - {"step"})]
    figure = Figure(figsize=(4.6 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, records in courses.items():
            points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
            axis.plot([step for step, _ in points], [value for _, value in points], marker=".", label=name)
        axis.set_title("training loss" if key == "loss" else key, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _entries(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The evaluations in a result file, by what they are of."""
    listed = content.get("folds") or content.get("results") or []
    if listed:
        return {f"fold {entry['fold']}" if "fold" in entry else entry["dataset"]: entry for entry in listed}
    return {name: entry for name, entry in content.items() if isinstance(entry, Mapping) and "line" in entry}


def _measurement(what: str, entry: Mapping[str, Any]) -> Measurement:
    # Few-shot results state their two scores apart; the line is "scores  [model; data and protocol; what is known]".
    scores = entry.get("scores") or {"mIoU": entry["mean_iou"], "binary IoU": entry["fb_iou"]}
    setting = entry["line"].partition("[")[2].rstrip("]").split("; ")[1]
    return Measurement(what, setting, dict(scores), _class_scores(entry))


def _class_scores(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """IoU of few-shot results, their mean over runs; of others what the main score of each kind is the mean of."""
    if "class_iou" in entry:
        runs = zip(*entry["class_iou"], strict=True)
        return {name: _mean(values) for name, values in zip(entry["classes"].values(), runs, strict=True)}
    found: dict[str, float | None] = {}
    for table in entry.values():
        if isinstance(table, Mapping):
            for key in ("class_iou", "class_pq", "class_ap"):
                values = zip(entry["classes"], table.get(key, ()), strict=False)
                found |= {f"{name}, {key.removeprefix('class_')}": value for name, value in values}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"RUN must be different folders, got {', '.join(map(str, paths))}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(values: Sequence[float | None], alike: Sequence[bool], index: int) -> str:
    value, first = values[index], values[0]
    if value is None:
        return "-"
    text = f"{100 * value:.2f}"
    return f"{text} ({100 * (value - first):+.2f})" if index and alike[index] and first is not None else text


def _plain(run: Compared) -> dict[str, Any]:
    return {what: asdict(one) for what, one in run.measured.items()}


if __name__ == "__main__":
    run_verb("compare", main)
