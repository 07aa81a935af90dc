"""Class folds of few-shot benchmarks, in every published definition, by name.

Class numbers are 1-based: PASCAL VOC 1..20 in alphabetical order, COCO 1..80 in the order of category ids (not
the category ids themselves, which run to 90 with gaps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

DEFINITIONS = ("panet", "msanet")
"""``panet``: contiguous blocks (PANet, ICCV 2019; also BAM/MSANet with ``use_split_coco: False``).
``msanet``: COCO test classes i+1, i+5, i+9, ... (FWB, PFENet, BAM, MSANet with ``use_split_coco: True``)."""


@dataclass(frozen=True)
class FoldClasses:
    """The classes of one fold.

    Attributes:
        name: benchmark, e.g. ``pascal5i``.
        fold: 0-based number of the fold.
        definition: which published definition the numbers follow.
        train: classes that training may label, ascending.
        test: classes that are tested, ascending: novel ones, never labelled in training; of ``all`` the same as train.
    """

    name: str
    fold: int
    definition: str
    train: list[int]
    test: list[int]

    @property
    def novel(self) -> list[int]:
        """Classes that training must not see: those that are tested, unless all classes are trained."""
        return [number for number in self.test if number not in self.train]

    def __str__(self) -> str:
        return f"{self.name} fold {self.fold} ({self.definition})"


def _check_fold(where: str, fold: int, folds: int = 4) -> None:
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds:
        raise ValueError(f"{where}: fold must be an integer from 0 to {folds - 1}, got {fold!r}")


def pascal5i(fold: int, definition: str = "panet") -> FoldClasses:
    """Pascal-5i: test classes 5i+1 .. 5i+5 of VOC's 20, in every definition; see :func:`by_name`."""
    return _benchmark("pascal5i", 20, fold, definition, "contiguous")


def coco20i(fold: int, definition: str = "panet") -> FoldClasses:
    """COCO-20i: ``panet`` takes 20i+1 .. 20i+20, ``msanet`` i+1, i+5, .., i+77; see :func:`by_name`.

    Scores under the two cannot be compared with each other.
    """
    return _benchmark("coco20i", 80, fold, definition, "interleaved" if definition == "msanet" else "contiguous")


def _benchmark(name: str, classes: int, fold: int, definition: str, rule: str) -> FoldClasses:
    _check_fold(name, fold)
    if definition not in DEFINITIONS:
        raise ValueError(f"{name}: definition must be one of {', '.join(DEFINITIONS)}, got {definition!r}")
    return replace(split_classes(range(1, classes + 1), fold, rule=rule, name=name), definition=definition)


def split_classes(
    classes: Sequence[int], fold: int, folds: int = 4, *, rule: str = "contiguous", name: str = "custom"
) -> FoldClasses:
    """Folds over any list of classes (generated data, a folder of one's own).

    Args:
        classes: class ids; they are sorted first.
        fold: 0 to ``folds`` - 1.
        folds: how many folds; at most as many as there are classes.
        rule: ``contiguous`` (neighbouring classes; the first folds take one more where it does not divide) or
            ``interleaved`` (index % folds == fold).
        name: what the result calls itself.

    Raises:
        ValueError: a value outside these rules.
    """
    ordered = sorted(set(classes))
    if not 1 < folds <= len(ordered):
        raise ValueError(f"split_classes: folds must be between 2 and the {len(ordered)} classes, got {folds}")
    _check_fold("split_classes", fold, folds)
    if rule == "interleaved":
        test = ordered[fold::folds]
    elif rule == "contiguous":
        size, rest = divmod(len(ordered), folds)
        start = fold * size + min(fold, rest)
        test = ordered[start : start + size + (fold < rest)]
    else:
        raise ValueError(f"split_classes: rule must be contiguous or interleaved, got {rule!r}")
    return FoldClasses(name, fold, rule, [c for c in ordered if c not in test], test)


def by_name(name: str, fold: int, definition: str = "panet", classes: Sequence[int] | None = None) -> FoldClasses:
    """The fold of a benchmark by its name; ``generated``, ``custom`` and ``all`` (no class held out) need ``classes``.

    Raises:
        ValueError: unknown name, fold or definition, or classes missing where they are needed.
    """
    if name in ("pascal5i", "coco20i"):
        return (pascal5i if name == "pascal5i" else coco20i)(fold, definition)
    if name not in ("generated", "custom", "all"):
        raise ValueError(f"folds.by_name: name must be pascal5i, coco20i, generated, custom or all, got {name!r}")
    if classes is None:
        raise ValueError(f"folds.by_name: classes must be given for {name!r}, got None")
    if name == "all":
        if fold:
            raise ValueError(f"folds.by_name: fold must be 0 of folds all, which hold no class out, got {fold}")
        return FoldClasses(name, 0, "no class held out", sorted(set(classes)), sorted(set(classes)))
    return split_classes(classes, fold, rule="interleaved" if name == "generated" else "contiguous", name=name)
