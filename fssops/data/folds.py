"""Class folds of few-shot benchmarks, in every published definition, by name.

Class numbers are 1-based: PASCAL VOC 1..20 in alphabetical order, COCO 1..80 in the order of category ids (not
the category ids themselves, which run to 90 with gaps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        test: novel classes, never labelled in training, ascending.
    """

    name: str
    fold: int
    definition: str
    train: list[int]
    test: list[int]

    def __str__(self) -> str:
        return f"{self.name} fold {self.fold} ({self.definition})"


def _check_fold(where: str, fold: int, folds: int = 4) -> None:
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < folds:
        raise ValueError(f"{where}: fold must be an integer from 0 to {folds - 1}, got {fold!r}")


def _check_definition(where: str, definition: str) -> None:
    if definition not in DEFINITIONS:
        raise ValueError(f"{where}: definition must be one of {', '.join(DEFINITIONS)}, got {definition!r}")


def pascal5i(fold: int, definition: str = "panet") -> FoldClasses:
    """Pascal-5i: test classes 5i+1 .. 5i+5 of VOC's 20; PANet, PFENet, BAM and MSANet agree.

    Args:
        fold: 0 to 3.
        definition: ``panet`` or ``msanet``; kept in the result, the classes are the same.

    Raises:
        ValueError: the fold or the definition does not exist.
    """
    _check_fold("pascal5i", fold)
    _check_definition("pascal5i", definition)
    test = list(range(5 * fold + 1, 5 * fold + 6))
    return FoldClasses("pascal5i", fold, definition, [c for c in range(1, 21) if c not in test], test)


def coco20i(fold: int, definition: str = "panet") -> FoldClasses:
    """COCO-20i: ``panet`` takes 20 neighbouring classes, ``msanet`` every fourth class.

    Args:
        fold: 0 to 3.
        definition: ``panet`` (20i+1 .. 20i+20) or ``msanet`` (i+1, i+5, .., i+77). Scores under the two cannot
            be compared with each other.

    Raises:
        ValueError: the fold or the definition does not exist.
    """
    _check_fold("coco20i", fold)
    _check_definition("coco20i", definition)
    if definition == "panet":
        test = list(range(20 * fold + 1, 20 * fold + 21))
    else:
        test = list(range(fold + 1, 81, 4))
    return FoldClasses("coco20i", fold, definition, [c for c in range(1, 81) if c not in test], test)


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
    """The fold of a benchmark by its name; ``generated`` and ``custom`` need ``classes``.

    Raises:
        ValueError: unknown name, or classes missing where they are needed.
    """
    if name == "pascal5i":
        return pascal5i(fold, definition)
    if name == "coco20i":
        return coco20i(fold, definition)
    if name in ("generated", "custom"):
        if classes is None:
            raise ValueError(f"folds.by_name: classes must be given for {name!r}, got None")
        return split_classes(classes, fold, rule="interleaved" if name == "generated" else "contiguous", name=name)
    raise ValueError(f"folds.by_name: name must be pascal5i, coco20i, generated or custom, got {name!r}")
