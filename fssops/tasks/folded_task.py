"""The data set and the fold that settings name, for every task whose classes come in folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from fssops.data import folds
from fssops.data.check_facts import Limits
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.engine.settings import SettingsError
from fssops.facts import Facts
from fssops.tasks.class_names import CLASS_FILE, compare_names
from fssops.tasks.task import Task


class FoldedTask(Task):
    """Opens what ``[data]`` and ``[eval]`` say, each split once.

    Args:
        settings: with ``data`` (source, root, split, options, folds, definition) and ``eval`` (root, split).

    Attributes:
        kept_novel_images: what becomes of novel classes in training images that are not dropped for them.
    """

    kept_novel_images: ClassVar[Literal["kept", "ignored"]] = "kept"

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._sources: dict[tuple[str, str], FewShotSource] = {}

    @property
    def novel_images(self) -> str:
        """What training does with images that show a novel class, for results: "dropped" or "kept"."""
        return "dropped" if self.settings.data.drop_novel else "kept"

    def source(self, *, evaluation: bool = False, split: str | None = None) -> FewShotSource:
        """Open the data set; the split of training, or that of evaluation, or another one beside it.

        Raises:
            SettingsError: its numbers do not stand for the classes that training had.
        """
        data, rules = self.settings.data, self.settings.eval
        root = rules.root if evaluation and rules.root is not None else data.root
        split = split or (rules.split if evaluation and rules.split is not None else data.split)
        if (root, split) not in self._sources:
            source = open_data(data.source, root or None, split=split or None, truth="few-shot", **data.options)
            self.compare_with_model(source)
            for opened in self._sources.values():
                compare_names(opened.classes, source.classes, source.label)
            self._sources[root, split] = source
        return self._sources[root, split]

    @property
    def _novel_images_fact(self) -> str:
        return "dropped" if self.settings.data.drop_novel else self.kept_novel_images

    def count_novel_images(self, source: FewShotSource, fold: folds.FoldClasses) -> None:
        """Count the training images that hold a novel class of a fold."""
        novel = set(fold.novel)
        if not novel:
            return
        found = sum(not novel.isdisjoint(areas) for areas in source.areas().values())
        self.training_facts = Facts({f"novel_images_{self._novel_images_fact}": (found, len(source.names))})

    def data_demands(self) -> dict[str, Any]:
        """Training images with novel classes are counted."""
        data, limits = self.settings.data, Limits(novel_images=self._novel_images_fact)

        def fold(classes: Sequence[int]) -> folds.FoldClasses:
            return folds.by_name(data.folds, data.fold, data.definition, sorted(classes))

        demands = {**super().data_demands(), "truth": "few-shot", "limits": limits}
        return demands if data.folds == "all" else {**demands, "fold": fold}

    def compare_with_model(self, source: FewShotSource) -> None:
        """See that numbers stand for the classes that the model's run had.

        Raises:
            SettingsError: one does not.
        """
        compare_names(self.trained_names or {}, source.classes, source.label)

    def run_files(self) -> dict[str, Any]:
        """The data set's classes by number, which folds are formed of."""
        return {CLASS_FILE: {"numbers": {str(number): name for number, name in self.source().classes.items()}}}

    def fold_classes(self, fold: int, source: FewShotSource) -> folds.FoldClasses:
        """Return the classes of a fold.

        Raises:
            SettingsError: the data set does not have the classes of the benchmark.
        """
        data = self.settings.data
        classes = folds.by_name(data.folds, fold, data.definition, sorted(source.classes))
        missing = [number for number in (*classes.train, *classes.test) if number not in source.classes]
        if missing:
            raise SettingsError(
                f"data.folds: {data.folds} must be folds of {source.label}, got classes that it has not: {missing[:5]}"
            )
        return classes

    def check_base_classes(self, fold: folds.FoldClasses) -> None:
        """Compare the fold's base classes with the model's.

        Raises:
            SettingsError: their numbers differ.
        """
        if len(fold.train) != self.config.base_classes:
            raise SettingsError(
                f"model.base_classes must be the number of base classes of {fold}, {len(fold.train)}, got "
                f"{self.config.base_classes}"
            )
