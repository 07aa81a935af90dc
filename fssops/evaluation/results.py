"""Results of evaluation: every number with what it was measured on, as lines, tables and JSON; one interface for all.

The classes differ in what their setting is; whoever prints and writes results needs none of them:
:meth:`Result.report_tables`, :meth:`Result.report_lines` and :meth:`Result.report_json` take several results of a kind.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from fssops.evaluation.metrics.few_shot import FewShotScores
from fssops.evaluation.metrics.metric import Coverage, Rows, Scores, coverage_of
from fssops.evaluation.metrics.passes import PassScores
from fssops.evaluation.metrics.semantic import SemanticScores, most_confused
from fssops.evaluation.metrics.video_instance import VideoScores
from fssops.evaluation.scores import mean, percent, without_nan
from fssops.facts import Facts
from fssops.protocols import span

Kind = TypeVar("Kind", bound=Scores)


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """What was measured of one model on one split.

    Attributes:
        model: what was evaluated, for the reader.
        dataset: name and split of the data.
        measured: the scores of every metric by its name; empty where there is no truth.
        quality: (number of the item, how well it went in [0, 1]), best first.
        seconds: wall time.
        facts: what is known of the items and changes no score.
        training_facts: the same of what the model was trained on; empty where nothing is known of it.
    """

    unmeasured: ClassVar[str] = "-"
    """What stands in a line for a score that could not be formed."""

    model: str
    dataset: str
    measured: Mapping[str, Scores] = field(repr=False)
    quality: list[tuple[int, float]] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    facts: Facts = field(default_factory=Facts)
    training_facts: Facts = field(default_factory=Facts)

    @abstractmethod
    def setting(self) -> str:
        """Say what was measured, without the scores."""

    @abstractmethod
    def work(self) -> str:
        """What was looked at, e.g. "412 images"."""

    @abstractmethod
    def tables(self, classes: bool) -> list[tuple[str, Rows]]:
        """Titles and rows of this result's own tables; that of the classes only with ``classes``."""

    def scores(self) -> dict[str, float]:
        """All summary scores in [0, 1] by name."""
        return {name: value for scores in self.measured.values() for name, value in scores.summary().items()}

    def coverage(self) -> dict[str, Coverage]:
        """Over how many of how many classes the means among the scores were formed."""
        covered = {name: value for scores in self.measured.values() for name, value in scores.coverage().items()}
        return {name: value for name, value in covered.items() if name in self.scores()}

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the score that a run is judged by.

        Raises:
            ValueError: nothing was scored.
        """
        if not self.measured:
            raise ValueError(f"{type(self).__name__}: {self.dataset} must have truth to score against, got none")
        return next(iter(self._main_scores().summary().items()))

    def line(self) -> str:
        """One line that can be quoted: the scores in percent, over which classes they are means, and the setting."""
        by_run = {name: values for scores in self.measured.values() for name, values in scores.runs().items()}
        coverage, texts, told = self.coverage(), [], False
        for name, value in self.scores().items():
            text = over_runs(by_run[name]) if name in by_run else percent(value, self.unmeasured)
            covered = coverage[name].text(" classes" if not told else "") if name in coverage else ""
            told = told or bool(covered)
            texts.append(f"{name} {text}{covered}")
        setting = "; ".join([self.model, self._whole_setting(), *self.known()])
        return f"{'  '.join(texts) or 'no truth, no scores'}  [{setting}]"

    def known(self) -> list[str]:
        """What is known of the items, and of those of the training."""
        return [*self.facts.told(), *(f"in training {text}" for text in self.training_facts.told())]

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("measured", *self._hidden)}
        plain |= {"facts": self.facts.as_json(), "training_facts": self.training_facts.as_json()}
        coverage = {name: {"classes": value.classes, "of": value.of} for name, value in self.coverage().items()}
        return without_nan({**plain, **self._scores_json(), "coverage": coverage, "line": self.line()})  # type: ignore[no-any-return]

    _hidden: ClassVar[tuple[str, ...]] = ()

    def _main_scores(self) -> Scores:
        return next(iter(self.measured.values()))

    def _scores_json(self) -> dict[str, Any]:
        return {name: scores.as_json() for name, scores in self.measured.items()} | {"scores": self.scores()}

    def _whole_setting(self) -> str:
        return self.setting()

    def _of(self, name: str, kind: type[Kind]) -> Kind | None:
        scores = self.measured.get(name)
        return scores if isinstance(scores, kind) else None

    # -- several results of a kind --------------------------------------------------------------------------------

    @classmethod
    def report_tables(cls, results: Sequence[Any], classes: bool) -> list[tuple[str, Rows]]:
        """Titles and rows of all tables of some results, and of one that says what is known of their items."""
        known = [[result.model, text] for result in results for text in result.known()]
        tables = [table for result in results for table in result.tables(classes)]
        return [*tables, ("known of the items", [["model", "what"], *known])] if known else tables

    @classmethod
    def report_lines(cls, results: Sequence[Any]) -> list[str]:
        """What is printed below the tables."""
        return [text for r in results for text in (r.line(), f"{r.seconds:.1f} s for {r.work()}")]

    @classmethod
    def report_json(cls, results: Sequence[Any]) -> Any:
        """What ``results.json`` says."""
        return {"results": [result.as_json() for result in results]}


def class_rows(
    names: Mapping[Any, str] | Sequence[str], measured: Mapping[str, Scores], kinds: Sequence[str] | None = None
) -> Rows:
    """Rows of a table, one a class and the mean, in percent; the first row names the columns.

    Args:
        names: of the classes, by what they are called in the first column; a sequence is called by its indices.
        measured: scores with columns, in the order of ``names``.
        kinds: of the classes, in a column of their own.
    """
    columns = {name: values for scores in measured.values() for name, values in scores.columns().items()}
    called = list(names.items()) if isinstance(names, Mapping) else list(enumerate(names))
    rows = [["class", "name", *(["kind"] if kinds else []), *columns]]
    for place, (index, name) in enumerate(called):
        rows.append([str(index), name, *([kinds[place]] if kinds else [])])
        rows[-1] += [percent(values[place]) for values in columns.values()]
    means = [f"{percent(mean(values))}{coverage_of(values).text('')}" for values in columns.values()]
    return [*rows, ["", "mean", *([""] if kinds else []), *means]]


def main_task(tasks: Sequence[str]) -> str:
    """The task that a system of fixed classes is judged and shown by, of those asked for."""
    return next(task for task in ("panoptic", "instance", "semantic") if task in tasks)


@dataclass(frozen=True, kw_only=True)
class UniversalResult(Result):
    """Scores of semantic, instance and panoptic segmentation.

    Attributes:
        images: number of images scored.
        of: number of images in the split.
        test_size: at which size, in words.
        classes: class names by index.
        things: indices of the countable classes.
    """

    images: int
    of: int
    test_size: str
    classes: list[str]
    things: list[int]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were scored."""
        return [task for task in ("semantic", "panoptic", "instance") if task in self.measured]

    @property
    def confusion(self) -> list[list[int]] | None:
        """[C][C + 1] pixels, rows truth; None without semantic scores."""
        semantic = self._of("semantic", SemanticScores)
        return None if semantic is None else semantic.confusion

    def setting(self) -> str:
        images = f"{self.images} images" if self.images == self.of else f"{self.images} of {self.of} images"
        protocols = (scores.protocol for scores in self.measured.values() if scores.protocol)
        return f"{self.dataset}, {images}, {self.test_size}; " + ", ".join(protocols)

    def work(self) -> str:
        return f"{self.images} images"

    def tables(self, classes: bool) -> list[tuple[str, Rows]]:
        further = [table for scores in self.measured.values() for table in scores.tables()]
        tables = [("each class", self.class_table()), *further] if classes else further
        return [(f"{self.model}: {title}, in percent", rows) for title, rows in tables]

    def class_table(self) -> Rows:
        """See :func:`class_rows`."""
        kinds = ["thing" if index in set(self.things) else "stuff" for index in range(len(self.classes))]
        return class_rows(self.classes, self.measured, kinds)

    def _main_scores(self) -> Scores:
        return self.measured[main_task(self.tasks)]

    def _scores_json(self) -> dict[str, Any]:
        plain = dict.fromkeys(("semantic", "panoptic", "instance", "layers", "confusion")) | super()._scores_json()
        plain["protocols"] = {task: self.measured[task].protocol for task in self.tasks}
        if self.confusion is not None:
            plain["confusion"] = self.confusion
            plain["most_confused"] = most_confused(np.array(self.confusion), self.classes, 10)
        return plain


@dataclass(frozen=True, kw_only=True)
class VideoEvaluation(Result):
    """Scores of video instance segmentation.

    Attributes:
        videos: number of videos looked at.
        of: number of videos in the split.
        frames: in them.
        test_size: at which size, and in clips of how many frames, in words.
        classes: class names by index.
    """

    videos: int
    of: int
    frames: int
    test_size: str
    classes: list[str]

    def setting(self) -> str:
        videos = f"{self.videos} videos" if self.videos == self.of else f"{self.videos} of {self.of} videos"
        return f"{self.dataset}, {videos} ({self.frames} frames), {self.test_size}; {VideoScores.protocol}"

    def work(self) -> str:
        return f"{self.frames} frames of {self.videos} videos"

    def tables(self, classes: bool) -> list[tuple[str, Rows]]:
        rows = class_rows(self.classes, self.measured)
        return [(f"{self.model}: each class, in percent", rows)] if classes else []

    def _scores_json(self) -> dict[str, Any]:
        instances = self._of("video instances", VideoScores)
        plain = {"instances": None if instances is None else instances.as_json(), "scores": self.scores()}
        return {**plain, "protocol": VideoScores.protocol}


@dataclass(frozen=True, kw_only=True)
class BaseClassResult(Result):
    """Scores of one fold's base classes.

    Attributes:
        folds: definition of the folds.
        fold: whose base classes.
        images: number of images.
        novel_images: what the recipe's training does with images that show a novel class: "dropped", or "kept". Novel
            classes are background here either way.
        size: [H, W] at which labels are compared.
        classes: base class id -> name.
    """

    unmeasured: ClassVar[str] = "nan"
    _hidden: ClassVar[tuple[str, ...]] = ("quality", "seconds")

    folds: str
    fold: int
    images: int
    novel_images: str
    size: list[int]
    classes: dict[int, str]

    def setting(self) -> str:
        [base] = self.measured.values()
        absent = sum(math.isnan(value) for value in base.columns()["IoU"])
        missing = f", {absent} of which appear in no image" if absent else ""
        return (
            f"{self.dataset}, {self.folds} fold {self.fold}, {len(self.classes)} base classes{missing}, "
            f"{self.images} images, novel classes background, {self.size[0]} x {self.size[1]}, novel images "
            f"{self.novel_images} in training"
        )

    def work(self) -> str:
        return f"{self.images} images"

    def tables(self, classes: bool) -> list[tuple[str, Rows]]:
        rows = class_rows(self.classes, self.measured)
        return [(f"{self.model}: each base class, IoU in percent", rows)] if classes else []

    def _scores_json(self) -> dict[str, Any]:
        [base] = self.measured.values()
        return {**base.as_json(), "miou": self.main[1]}

    @classmethod
    def report_lines(cls, results: Sequence[Any]) -> list[str]:
        return [result.line() for result in results]

    @classmethod
    def report_json(cls, results: Sequence[Any]) -> Any:
        return [result.as_json() for result in results]


@dataclass(frozen=True, kw_only=True)
class FewShotResult(Result):
    """Scores of one fold's test classes.

    Attributes:
        fold: number of the fold.
        folds: definition of the folds, e.g. ``pascal5i (panet)``.
        ways, shots, queries, episodes: of each run.
        seeds: of the runs.
        list_hashes: SHA-256 of the runs' episode lists.
        protocol: name of the protocol.
        annotation: of the supports: mask, box, scribble.
        min_area: pixels that an image must show of a class to be drawn for it.
        own_min_area: ``min_area`` is not the protocol's, which the result lines then say.
        novel_images: what the recipe's training does with images that also show a novel class: "dropped" or "kept"; ""
            where it is not known.
        size: [H, W] of the network's input.
        classes: class id -> name, of the fold's test classes.
    """

    unmeasured: ClassVar[str] = "nan"
    _hidden: ClassVar[tuple[str, ...]] = ("quality",)

    fold: int
    folds: str
    ways: int
    shots: int
    queries: int
    episodes: int
    seeds: list[int]
    list_hashes: list[str]
    protocol: str
    annotation: str
    size: list[int]
    classes: dict[int, str]
    min_area: int = 1
    own_min_area: bool = False
    novel_images: str = ""

    @property
    def few_shot(self) -> FewShotScores:
        """The scores of the system itself, run by run."""
        scores = self._of("few-shot", FewShotScores)
        assert scores is not None
        return scores

    @property
    def computed(self) -> PassScores:
        """What was asked for and what was computed; zeros where nobody counted."""
        return self._of("passes", PassScores) or PassScores()

    @property
    def parts(self) -> dict[str, float]:
        """Means over runs of what a system's parts reach on their own, by name."""
        system = self.few_shot.summary()
        return {name: value for name, value in self.scores().items() if name not in system}

    @property
    def mean_iou(self) -> float:
        """Mean over runs of the mean IoU over classes."""
        return self.scores()["mIoU"]

    @property
    def fb_iou(self) -> float:
        """Mean over runs of the binary IoU."""
        return self.scores()["binary IoU"]

    def setting(self, fold: str = "", seeds: str = "") -> str:
        """Say what was measured, without the scores and the list; ``fold`` and ``seeds`` instead of this result's."""
        return (
            f"{self.dataset}, {self.folds}, fold {fold or self.fold}, {self.ways}-way {self.shots}-shot, "
            f"{len(self.seeds)} x {self.episodes} episodes, seed {seeds or span(self.seeds)}, protocol {self.protocol}"
            + (f", {self.annotation} supports" if self.annotation != "mask" else "")
            + (f", objects of at least {self.min_area} px" if self.own_min_area else "")
            + (f", novel images {self.novel_images} in training" if self.novel_images else "")
        )

    def work(self) -> str:
        return f"{len(self.seeds) * self.episodes} episodes"

    def tables(self, classes: bool) -> list[tuple[str, Rows]]:
        title = f"fold {self.fold}, IoU of each class in percent"
        return [(title, self.class_table())] if classes else []

    def class_table(self) -> Rows:
        """One row a class and the mean, IoU in percent of the mean over runs and of each run."""
        scores = self.few_shot
        rows = [["class", "name", "IoU", *(f"run {seed}" for seed in self.seeds)]]
        for column, (class_id, name) in enumerate(self.classes.items()):
            values = [run[column] for run in scores.class_iou]
            seen = [value for value in values if not math.isnan(value)]
            runs = [percent(value, "nan") for value in values]
            rows.append([str(class_id), name, over_runs(seen) if seen else "-", *runs])
        covered = scores.coverage()["mIoU"]
        runs = [
            f"{percent(value, 'nan')}{coverage_of(run).text('')}"
            for value, run in zip(scores.miou, scores.class_iou, strict=True)
        ]
        return [*rows, ["", "mean", f"{over_runs(scores.miou)}{covered.text('')}", *runs]]

    def _whole_setting(self) -> str:
        return f"{self.setting()}, list {short_hashes(self.list_hashes)}"

    def _scores_json(self) -> dict[str, Any]:
        plain = {**self.few_shot.as_json(), **self.computed.as_json(), "parts": self.parts}
        return {**plain, "mean_iou": self.mean_iou, "fb_iou": self.fb_iou}

    @classmethod
    def report_tables(cls, results: Sequence[Any], classes: bool) -> list[tuple[str, Rows]]:
        tables = super().report_tables(results, classes)
        return [*tables, ("percent, mean ± standard deviation over runs", fold_table(results))]

    @classmethod
    def report_lines(cls, results: Sequence[Any]) -> list[str]:
        lines = [result.line() for result in results]
        if len({result.fold for result in results}) == len(results) > 1:
            lines.append(fold_mean_line(results))
        images, passes, queries, alone = (
            sum(getattr(result.computed, name) for result in results)
            for name in ("images", "passes", "query_images", "query_passes")
        )
        lines.append(
            f"{sum(result.seconds for result in results):.1f} s; {passes} passes through the backbone for {images} "
            f"images ({images / max(passes, 1):.1f} x fewer)"
        )
        if queries:
            fewer = queries / max(alone, 1)
            lines.append(
                f"steps that depend on the query alone: {alone} passes for {queries} queries ({fewer:.1f} x fewer)"
            )
        return lines

    @classmethod
    def report_json(cls, results: Sequence[Any]) -> Any:
        return {"folds": [result.as_json() for result in results], "mean": fold_mean_line(results)}


def fold_mean_line(results: Sequence[FewShotResult]) -> str:
    """One line with the means over the folds of ``results``."""
    first = results[0]
    folds = ",".join(str(result.fold) for result in results)
    miou = statistics.fmean(result.mean_iou for result in results)
    binary = statistics.fmean(result.fb_iou for result in results)
    # MM-Former's protocol draws every fold with a seed of its own.
    seeds = " | ".join(dict.fromkeys(span(result.seeds) for result in results))
    setting = first.setting(f"mean of {folds}", seeds)
    hashes = short_hashes([value for result in results for value in result.list_hashes])
    return (
        f"mIoU {100 * miou:.2f}{_all_classes(results).text()}  binary IoU {100 * binary:.2f}  [{first.model}; "
        f"{setting}, lists {hashes}]"
    )


def fold_table(results: Sequence[FewShotResult]) -> Rows:
    """Rows of a table: one a fold, then the mean; the first row names the columns."""
    first = results[0].seeds
    same = all(result.seeds == first for result in results)
    rows = [["fold", "mIoU", "binary IoU", *(f"run {seed}" for seed in (first if same else range(1, len(first) + 1)))]]
    for result in results:
        scores = result.few_shot
        runs = [f"{100 * value:.2f}" for value in scores.miou]
        miou = f"{over_runs(scores.miou)}{result.coverage()['mIoU'].text()}"
        rows.append([str(result.fold), miou, over_runs(scores.binary_iou), *runs])
    if len(results) > 1:
        miou = f"{100 * statistics.fmean(result.mean_iou for result in results):.2f}{_all_classes(results).text()}"
        binary = statistics.fmean(result.fb_iou for result in results)
        rows.append(["mean", miou, f"{100 * binary:.2f}", *([""] * len(first))])
    return rows


def _all_classes(results: Sequence[FewShotResult]) -> Coverage:
    """The coverage of a mean over folds: their classes together."""
    coverages = [result.coverage()["mIoU"] for result in results]
    counts = [value.classes if isinstance(value.classes, tuple) else (value.classes,) for value in coverages]
    totals = (sum(min(values) for values in counts), sum(max(values) for values in counts))
    return Coverage(totals, sum(value.of for value in coverages))


def over_runs(values: Sequence[float]) -> str:
    """Mean and, of several runs, the standard deviation over them (population, as published), in percent."""
    if any(math.isnan(value) for value in values):
        return "nan"
    text = f"{100 * statistics.fmean(values):.2f}"
    return f"{text} ± {100 * statistics.pstdev(values):.2f}" if len(values) > 1 else text


def short_hashes(hashes: Sequence[str]) -> str:
    """First eight digits of each hash."""
    return "+".join(dict.fromkeys(value[:8] for value in hashes))


def best_and_worst(quality: Sequence[tuple[int, float]], count: int) -> tuple[list[int], list[int]]:
    """Numbers of the ``count`` best and worst items, the worst first; no item is both.

    Args:
        quality: of a result, best first.
        count: of each.
    """
    numbers = [number for number, _ in quality]
    return numbers[:count], numbers[count:][::-1][:count]
