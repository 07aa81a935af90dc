"""What every metric is: counts that add up exactly over processes and earlier starts, and scores formed from them.

A metric is one file of this folder and its test: a subclass of :class:`Metric` that says its ``name`` and which
``prediction`` it reads. Whoever evaluates such predictions then finds it in ``fssops.evaluation.metrics.METRICS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fssops.evaluation.feature_cache import FeatureCache
from fssops.facts import Facts
from fssops.protocols import FewShotProtocol

Rows = list[list[str]]
"""A table; the first row names the columns."""


@dataclass(frozen=True)
class Coverage:
    """Over how many of how many classes a mean was formed.

    Attributes:
        classes: number of classes that took part; a tuple with one number a run where the score is a mean over runs.
        of: number of classes there are.
    """

    classes: int | tuple[int, ...]
    of: int

    def text(self, unit: str = " classes") -> str:
        """E.g. " (7 of 11 classes)"; "" where every class took part."""
        counted = self.classes if isinstance(self.classes, tuple) else (self.classes,)
        least, most = min(counted), max(counted)
        if least == self.of:
            return ""
        return f" ({least if least == most else f'{least} to {most}'} of {self.of}{unit})"


def coverage_of(values: Sequence[float]) -> Coverage:
    """The coverage of the mean of one value a class, NaN where a class takes no part."""
    return Coverage(int(np.count_nonzero(~np.isnan(np.asarray(values, dtype=np.float64)))), len(values))


def coverage_of_runs(class_iou: Tensor) -> Coverage:
    """The coverage of the means over classes of IoUs [R, C], NaN where a class takes no part."""
    return Coverage(tuple((~class_iou.isnan()).sum(1).tolist()), class_iou.shape[1])


class Scores(ABC):
    """What a metric has measured. Subclasses are frozen dataclasses of plain values; NaN where nothing was measured.

    Attributes:
        protocol: how it is scored, for lines that say what was measured; "" where its names say enough.
    """

    protocol: ClassVar[str] = ""

    @abstractmethod
    def summary(self) -> dict[str, float]:
        """The scores that a line shows, in [0, 1], by name; the first is the one that a run is judged by."""

    def runs(self) -> dict[str, Sequence[float]]:
        """Of the scores in :meth:`summary` that are means over runs, the value of each run."""
        return {}

    def coverage(self) -> dict[str, Coverage]:
        """Over how many of how many classes the means in :meth:`summary` were formed."""
        return {}

    def columns(self) -> dict[str, Sequence[float]]:
        """Columns of the table of classes: one value a class."""
        return {}

    def tables(self) -> list[tuple[str, Rows]]:
        """Further tables, each with a title."""
        return []

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


class Metric(ABC):
    """Counts predictions against their truth, one item (image, video, episode) at a time.

    Attributes:
        name: key of ``METRICS``, unique.
        prediction: what it reads of a prediction and its truth; the words are those of the tasks, see ``METRICS``.
    """

    name: ClassVar[str]
    prediction: ClassVar[str]

    @classmethod
    @abstractmethod
    def build(cls, setting: Any) -> Metric:
        """Build it, with nothing counted, for a :class:`ClassSetting` or an :class:`EpisodeSetting`."""

    @abstractmethod
    def add(self, number: int, prediction: Any, truth: Any) -> float | None:
        """Count one item.

        Args:
            number: of the item, unique over all processes and starts.
            prediction: of the item.
            truth: of the item.

        Returns:
            how well it went, in [0, 1], for pictures of best and worst; None where that is not defined.
        """

    @abstractmethod
    def state(self) -> Any:
        """Everything counted so far as values that a checkpoint holds; cheap, and later items do not change it."""

    @abstractmethod
    def merge(self, states: Sequence[Any]) -> None:
        """Replace the counts by what ``states`` (of processes, of earlier starts) hold together, in whatever order."""

    @abstractmethod
    def scores(self) -> Scores:
        """Form the scores of everything counted."""


class SummedMetric(Metric):
    """A metric whose counts are integers that add up.

    Args:
        **counts: int64 tensors of zeros by name, on the CPU; they become attributes, which :meth:`add` adds to in
            place.
    """

    def __init__(self, **counts: Tensor) -> None:
        self._names = tuple(counts)
        for name, value in counts.items():
            setattr(self, name, value)

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self._names}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        for name in self._names:
            setattr(self, name, torch.stack([state[name] for state in states]).sum(0))


class RecordedMetric(Metric):
    """A metric that needs what it keeps of every item.

    Attributes:
        records: number of the item -> plain values.
    """

    def __init__(self) -> None:
        self.records: dict[int, Any] = {}

    def state(self) -> dict[int, Any]:
        return dict(self.records)

    def merge(self, states: Sequence[Mapping[int, Any]]) -> None:
        self.records = {number: record for state in states for number, record in state.items()}


@dataclass(frozen=True)
class ClassSetting:
    """What metrics of images and videos of fixed classes are built for.

    Attributes:
        classes: number of classes C; of base classes, without the background.
        things: indices of the countable classes.
        detections: instances of a class in an image that count, best first.
        boundary: also score boundaries, which takes longer.
        layers: number of the decoder's layers, where they are measured.
    """

    classes: int
    things: Sequence[int] = ()
    detections: int = 100
    boundary: bool = False
    layers: int = 0


@dataclass(frozen=True)
class EpisodeSetting:
    """What metrics of few-shot episodes are built for.

    Attributes:
        protocol: decides how scores are formed.
        runs: number of runs R.
        episodes: of each run, E; episode e of run r has the number r * E + e.
        classes: ids of the test classes.
        base_classes: number of base classes, where the system learns them.
        cache: of the model's features, which counts the passes.
    """

    protocol: FewShotProtocol
    runs: int
    episodes: int
    classes: Sequence[int]
    base_classes: int = 0
    cache: FeatureCache | None = None


class MetricSet:
    """Several metrics of the same items, how well each item went, and what else is known of the items.

    Args:
        metrics: with different names.
        main: name of the metric that says how well an item went; None is the first.

    Attributes:
        metrics: by name.
        quality: number of an item -> how well it went.
        facts: whoever adds items counts in them what changes no score.
    """

    def __init__(self, metrics: Iterable[Metric], main: str | None = None) -> None:
        self.metrics: dict[str, Metric] = {metric.name: metric for metric in metrics}
        self.main = next(iter(self.metrics), "") if main is None else main
        self.quality: dict[int, float] = {}
        self.facts = Facts()

    def add(self, number: int, prediction: Any, truth: Any) -> None:
        """Count one item."""
        values = {name: metric.add(number, prediction, truth) for name, metric in self.metrics.items()}
        value = values.get(self.main)
        if value is not None:
            self.quality[number] = value

    def state(self) -> dict[str, Any]:
        """See :meth:`Metric.state`."""
        states = {name: metric.state() for name, metric in self.metrics.items()}
        return {"metrics": states, "quality": dict(self.quality), "facts": self.facts.state()}

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """See :meth:`Metric.merge`."""
        for name, metric in self.metrics.items():
            metric.merge([state["metrics"][name] for state in states])
        self.quality = {number: value for state in states for number, value in state["quality"].items()}
        self.facts.merge(state["facts"] for state in states)

    def scores(self) -> dict[str, Scores]:
        """The scores of every metric, by its name."""
        return {name: metric.scores() for name, metric in self.metrics.items()}

    def best_first(self) -> list[tuple[int, float]]:
        """(number, how well it went) of all items, best first."""
        return sorted(self.quality.items(), key=lambda entry: (-entry[1], entry[0]))
