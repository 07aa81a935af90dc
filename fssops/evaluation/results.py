"""Results of few-shot evaluation: every number with what it was measured on, as lines, tables and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fssops.evaluation.fewshot import EvaluationCounts
from fssops.evaluation.pixel_counts import iou, mean_iou
from fssops.evaluation.protocols import FewShotProtocol
from fssops.evaluation.scores import without_nan


@dataclass(frozen=True)
class FewShotResult:
    """Scores of one fold. IoUs lie in [0, 1]; NaN where nothing could be measured.

    Attributes:
        model: what was evaluated, for the reader.
        dataset: name and split of the data.
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
        class_iou: [R][classes], in the order of ``classes``.
        miou, binary_iou: [R].
        episode_iou: [R][E], the ways of an episode added up.
        images, passes: images asked for and passes through the backbone.
        query_images, query_passes: queries asked for and passes through what depends on a query alone (MM-Former's
            proposals); 0 where a system has no such steps.
        seconds: wall time.
        parts: name -> mean over runs, of what a system's parts reach on their own.
    """

    model: str
    dataset: str
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
    class_iou: list[list[float]]
    miou: list[float]
    binary_iou: list[float]
    episode_iou: list[list[float]] = field(repr=False)
    images: int = 0
    passes: int = 0
    query_images: int = 0
    query_passes: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    min_area: int = 1
    own_min_area: bool = False
    novel_images: str = ""

    @property
    def mean_iou(self) -> float:
        """Mean over runs of the mean IoU over classes."""
        return statistics.fmean(self.miou)

    @property
    def fb_iou(self) -> float:
        """Mean over runs of the binary IoU."""
        return statistics.fmean(self.binary_iou)

    def setting(self, fold: str = "", seeds: str = "") -> str:
        """Say what was measured, without the scores and the list; ``fold`` and ``seeds`` instead of this result's."""
        return (
            f"{self.dataset}, {self.folds}, fold {fold or self.fold}, {self.ways}-way {self.shots}-shot, "
            f"{len(self.seeds)} x {self.episodes} episodes, seed {seeds or span(self.seeds)}, protocol {self.protocol}"
            + (f", {self.annotation} supports" if self.annotation != "mask" else "")
            + (f", objects of at least {self.min_area} px" if self.own_min_area else "")
            + (f", novel images {self.novel_images} in training" if self.novel_images else "")
        )

    def line(self) -> str:
        """One line that can be quoted: scores, spread over runs, and the whole setting."""
        parts = "".join(f"  {name} {100 * value:.2f}" for name, value in self.parts.items())
        return (
            f"mIoU {percent(self.miou)}  binary IoU {percent(self.binary_iou)}{parts}  "
            f"[{self.model}; {self.setting()}, list {short_hashes(self.list_hashes)}]"
        )

    def best_and_worst(self, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return (run, episode) of the episodes with the highest and the lowest IoU."""
        scored = [
            (value, run, episode)
            for run, values in enumerate(self.episode_iou)
            for episode, value in enumerate(values)
            if not math.isnan(value)
        ]
        ordered = sorted(scored, key=lambda entry: (-entry[0], entry[1], entry[2]))
        best = [(run, episode) for _, run, episode in ordered[:count]]
        worst = [(run, episode) for _, run, episode in ordered[count:][::-1][:count]]
        return best, worst

    def as_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes null."""
        plain = asdict(self)
        plain["mean_iou"], plain["fb_iou"] = self.mean_iou, self.fb_iou
        plain["line"] = self.line()
        return without_nan(plain)  # type: ignore[no-any-return]


def score(
    counts: EvaluationCounts, protocol: FewShotProtocol, classes: Mapping[int, str], **setting: Any
) -> FewShotResult:
    """Turn the counts of all processes into scores.

    Args:
        counts: summed over processes.
        protocol: decides how the scores are formed.
        classes: test classes of the fold; the mean IoU is over these.
        **setting: the remaining fields of :class:`FewShotResult`.
    """
    ids = list(classes)
    class_iou = iou(counts.classes[:, ids])
    if protocol.binary == "class_sums":
        both = counts.classes[:, :1], counts.classes[:, 1:].sum(1, keepdim=True)
        binary = iou(both[0]).add(iou(both[1]))[:, 0] / 2
    else:
        binary = iou(counts.foreground).mean(1)
    return FewShotResult(
        protocol=protocol.name,
        classes=dict(classes),
        class_iou=class_iou.tolist(),
        miou=mean_iou(class_iou, protocol.absent).tolist(),
        binary_iou=binary.tolist(),
        episode_iou=iou(counts.episodes).tolist(),
        images=int(counts.work[0]),
        passes=int(counts.work[1]),
        query_images=int(counts.work[2]),
        query_passes=int(counts.work[3]),
        **setting,
    )


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
    return f"mIoU {100 * miou:.2f}  binary IoU {100 * binary:.2f}  [{first.model}; {setting}, lists {hashes}]"


def fold_table(results: Sequence[FewShotResult]) -> list[list[str]]:
    """Rows of a table: one a fold, then the mean; the first row names the columns."""
    first = results[0].seeds
    same = all(result.seeds == first for result in results)
    rows = [["fold", "mIoU", "binary IoU", *(f"run {seed}" for seed in (first if same else range(1, len(first) + 1)))]]
    for result in results:
        runs = [f"{100 * value:.2f}" for value in result.miou]
        rows.append([str(result.fold), percent(result.miou), percent(result.binary_iou), *runs])
    if len(results) > 1:
        miou = statistics.fmean(result.mean_iou for result in results)
        binary = statistics.fmean(result.fb_iou for result in results)
        rows.append(["mean", f"{100 * miou:.2f}", f"{100 * binary:.2f}", *([""] * len(first))])
    return rows


def class_table(result: FewShotResult) -> list[list[str]]:
    """Rows of a table: one a class, IoU in percent of the mean over runs and of each run."""
    rows = [["class", "name", "IoU", *(f"run {seed}" for seed in result.seeds)]]
    for column, (class_id, name) in enumerate(result.classes.items()):
        values = [run[column] for run in result.class_iou]
        seen = [value for value in values if not math.isnan(value)]
        rows.append([str(class_id), name, percent(seen) if seen else "-", *(f"{100 * v:.2f}" for v in values)])
    return rows


def percent(values: Sequence[float]) -> str:
    """Mean and, of several runs, the standard deviation over them (population, as published), in percent."""
    if any(math.isnan(value) for value in values):
        return "nan"
    text = f"{100 * statistics.fmean(values):.2f}"
    return f"{text} ± {100 * statistics.pstdev(values):.2f}" if len(values) > 1 else text


def span(seeds: Sequence[int]) -> str:
    """Seeds as ``first..last`` where they are consecutive, else one after another."""
    consecutive = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 1
    return f"{seeds[0]}..{seeds[-1]}" if consecutive else " ".join(map(str, seeds))


def short_hashes(hashes: Sequence[str]) -> str:
    """First eight digits of each hash."""
    return "+".join(dict.fromkeys(value[:8] for value in hashes))


def to_json(results: Sequence[FewShotResult]) -> str:
    """Write results as JSON: every fold, and the line of their mean."""
    body = {"folds": [result.as_json() for result in results], "mean": fold_mean_line(results)}
    return json.dumps(body, indent=2, allow_nan=False) + "\n"
