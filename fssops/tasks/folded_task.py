"""The data set and the fold that settings name, for every task whose classes come in folds."""

from __future__ import annotations

from typing import Any

from fssops.data import folds
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.engine.settings import SettingsError
from fssops.tasks.resumable_evaluation import ResumableEvaluation


class FoldedTask(ResumableEvaluation):
    """Opens what ``[data]`` and ``[eval]`` say, each split once.

    Args:
        settings: with ``data`` (source, root, split, options, folds, definition) and ``eval`` (root, split).
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self._sources: dict[tuple[str, str], FewShotSource] = {}

    @property
    def novel_images(self) -> str:
        """What training does with images that show a novel class, for results: "dropped" or "kept"."""
        return "dropped" if self.settings.data.drop_novel else "kept"

    def source(self, *, evaluation: bool = False) -> FewShotSource:
        """Open the data set; the split of training, or that of evaluation."""
        data, rules = self.settings.data, self.settings.eval
        root, split = data.root, data.split
        if evaluation:
            root = data.root if rules.root is None else rules.root
            split = data.split if rules.split is None else rules.split
        if (root, split) not in self._sources:
            self._sources[root, split] = open_data(
                data.source, root or None, split=split or None, **data.options, truth="few-shot"
            )
        return self._sources[root, split]

    def fold_classes(self, fold: int, source: FewShotSource) -> folds.FoldClasses:
        """Return the classes of a fold.

        Raises:
            SettingsError: the data set does not have the classes of the benchmark.
        """
        data = self.settings.data
        classes = folds.by_name(data.folds, fold, data.definition, sorted(source.classes))
        unknown = [number for number in (*classes.train, *classes.test) if number not in source.classes]
        if unknown:
            raise SettingsError(
                f"data.folds: {data.folds} must be folds of {source.label}, got classes that it has not: {unknown[:5]}"
            )
        return classes
