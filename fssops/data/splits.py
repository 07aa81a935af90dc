"""Dividing a data set that has no splits of its own, each class in proportion."""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Mapping


def stratified_split(
    classes: Mapping[str, Collection[Hashable]], fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Divide items so that every split has its share of each class (iterative stratification, Sechidis et al. 2011).

    Args:
        classes: of each item, by name.
        fractions: share of each split, together 1; every split gets an item where there are so many.
        seed: of the order in which items of equal claim are given out.

    Returns:
        names of each split, in the order of ``classes``.

    Raises:
        ValueError: fractions that are no shares of a whole, or fewer items than splits.
    """
    if min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"stratified_split: fractions must be above 0 and together 1, got {dict(fractions)}")
    if len(classes) < len(fractions):
        raise ValueError(f"stratified_split: there must be an item for each of {list(fractions)}, got {len(classes)}")
    left = list(classes)
    random.Random(seed).shuffle(left)
    holders: dict[Hashable, list[str]] = {}
    for name in left:
        for number in classes[name]:
            holders.setdefault(number, []).append(name)
    wanted = {
        split: {n: share * len(of_class) for n, of_class in holders.items()} for split, share in fractions.items()
    }
    room = {split: share * len(left) for split, share in fractions.items()}
    place: dict[str, str] = {}

    def give(name: str, split: str) -> None:
        place[name] = split
        room[split] -= 1
        for number in classes[name]:
            wanted[split][number] -= 1

    for number in sorted(holders, key=lambda number: (len(holders[number]), str(number))):  # rare classes choose first
        for name in holders[number]:
            if name not in place:
                give(name, max(fractions, key=lambda split: (wanted[split][number], room[split])))
    for name in left:
        if name not in place:
            give(name, max(fractions, key=lambda split: room[split]))
    for split in fractions:
        if split not in place.values():
            largest = max(fractions, key=lambda other: list(place.values()).count(other))
            place[next(name for name in reversed(left) if place[name] == largest)] = split
    return {split: [name for name in classes if place[name] == split] for split in fractions}
