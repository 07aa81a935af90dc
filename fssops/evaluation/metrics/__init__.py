"""The metrics, one a file: what they read of predictions, and how they are found.

=================  ====================================================================================================
``prediction``     what :meth:`~fssops.evaluation.metrics.metric.Metric.add` is given
=================  ====================================================================================================
semantic           a ``SegmentationResult`` with that part, and a ``Truth`` that offers it
instance           the same
panoptic           the same
layers             a ``SegmentationResult`` with ``layers``; the truth is in its matches
video instances    the instances of a video whose masks are run lengths, and a ``VideoTruth``
base classes       a label map [H, W] with 0 background, and one of the truth
episode            outputs by name, each one tensor a query, the system's own first; and an ``EpisodeTruth``
learners           the same with outputs "meta" and "base", and a truth with base labels
proposals          the same with an output "proposals", bool [P, H, W] a query at the size of its label
features           nothing: what the feature cache was asked for
=================  ====================================================================================================
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from fssops.evaluation.metrics.metric import Metric, MetricSet


def _found() -> dict[str, type[Metric]]:
    classes: dict[str, type[Metric]] = {}
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Metric) and value.__dict__.get("name"):
                classes[value.name] = value
    return classes


METRICS: dict[str, type[Metric]] = _found()
"""Every metric of this folder by its name."""


def metrics_for(predictions: Sequence[str], setting: Any, main: str | None = None) -> MetricSet:
    """Build every metric of some predictions, with nothing counted.

    Args:
        predictions: what the items have, in the order of reports.
        setting: a ``ClassSetting`` or an ``EpisodeSetting``.
        main: name of the metric that says how well an item went; None is the first.
    """
    rows = [row for prediction in predictions for row in METRICS.values() if row.prediction == prediction]
    return MetricSet((row.build(setting) for row in rows), main)
