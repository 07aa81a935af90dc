"""Which images the episodes of a list take: one function for each published way of drawing them, and our own."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource

_ATTEMPTS = 100


@dataclass(frozen=True)
class EpisodeSpec:
    """One task by names.

    Attributes:
        classes: class id of each way.
        support: for each way the names of its K images.
        query: names of the Q query images.
        query_ways: for each query the (0-based) way it was drawn for; other ways may show in it too.
    """

    classes: tuple[int, ...]
    support: tuple[tuple[str, ...], ...]
    query: tuple[str, ...]
    query_ways: tuple[int, ...]


def draw_balanced(
    source: FewShotSource, pools: dict[int, list[str]], ways: int, shots: int, queries: int, seed: int, index: int
) -> EpisodeSpec:
    """Our own draw of episode ``index``, which depends on no other."""
    rng = random.Random(f"fssops {seed} {index}")
    classes = list(pools)
    for _ in range(_ATTEMPTS):
        drawn_classes = rng.sample(classes, ways)
        query_ways = sorted(rng.randrange(ways) for _ in range(queries))
        used: set[str] = set()
        support: list[tuple[str, ...]] = []
        query: list[str] = []
        for way, class_id in enumerate(drawn_classes):
            count = shots + query_ways.count(way)
            left = [name for name in pools[class_id] if name not in used] if used else pools[class_id]
            if len(left) < count:
                break
            images = rng.sample(left, count)
            used.update(images)
            support.append(tuple(images[:shots]))
            query.extend(images[shots:])
        else:
            return EpisodeSpec(tuple(drawn_classes), tuple(support), tuple(query), tuple(query_ways))
    raise TooFewImagesError(
        f"{source.label}: a {ways}-way {shots}-shot episode must have {ways * shots + queries} different images, "
        f"got none such in {_ATTEMPTS} draws: the classes share too many of their images"
    )


def draw_panet(
    pools: dict[int, list[str]], ways: int, shots: int, queries: int, episodes: int, seed: int
) -> list[EpisodeSpec]:
    """The order of draws of PANet's ``voc_fewshot`` / ``coco_fewshot`` and ``PairedDataset``."""
    rng = random.Random(seed)
    classes = list(pools)
    chosen_ways = rng.choices(range(ways), k=queries)
    counts = [chosen_ways.count(way) for way in range(ways)]
    query_ways = tuple(way for way in range(ways) for _ in range(counts[way]))
    result = []
    for _ in range(episodes):
        positions = rng.sample(range(len(classes)), k=ways)
        support: list[tuple[str, ...]] = []
        query: list[str] = []
        for way, position in enumerate(positions):
            pool = pools[classes[position]]
            images = [pool[i] for i in rng.sample(range(len(pool)), k=shots + counts[way])]
            support.append(tuple(images[:shots]))
            query.extend(reversed(images[shots:]))
        result.append(EpisodeSpec(tuple(classes[p] for p in positions), tuple(support), tuple(query), query_ways))
    return result


def draw_list(
    source: FewShotSource, pools: dict[int, list[str]], shots: int, episodes: int, seed: int
) -> list[EpisodeSpec]:
    """The order of draws of BAM's ``SemData.__getitem__``, called for 0, 1, 2, ... over and over."""
    rng = random.Random(seed)
    listed = {name for pool in pools.values() for name in pool}
    order = [name for name in source.names if name in listed]
    result = []
    for index in range(episodes):
        query = order[index % len(order)]
        present = [c for c in source.classes_of(query) if c in pools]
        class_id = present[rng.randint(1, len(present)) - 1]
        pool = pools[class_id]
        taken: list[int] = []
        for _ in range(shots):
            # The published code draws one number that it does not use, then draws until the image is a new one.
            rng.randint(1, len(pool))
            number = rng.randint(1, len(pool)) - 1
            while pool[number] == query or number in taken:
                number = rng.randint(1, len(pool)) - 1
            taken.append(number)
        support = tuple(pool[number] for number in reversed(taken))
        result.append(EpisodeSpec((class_id,), (support,), (query,), (0,)))
    return result


SHUFFLED_SUPPORTS = 5
"""Supports that MM-Former draws for every episode, whatever the shots."""


def draw_shuffled(
    source: FewShotSource, pools: dict[int, list[str]], shots: int, episodes: int, seed: int
) -> list[EpisodeSpec]:
    """The order of draws of MM-Former's ``load_fewshot_val1000``."""
    rng = random.Random(seed)
    listed = {name for pool in pools.values() for name in pool}
    order = [name for name in source.names if name in listed]
    queries = order * -(-episodes // len(order))
    rng.shuffle(queries)
    drawn = max(shots, SHUFFLED_SUPPORTS)
    result = []
    for query in queries[:episodes]:
        present = [c for c in source.classes_of(query) if c in pools]
        class_id = present[rng.randint(1, len(present)) - 1]
        pool = pools[class_id]
        taken: list[int] = []
        for _ in range(drawn):
            rng.randint(1, len(pool))  # drawn and not used, as in draw_list
            number = rng.randint(1, len(pool)) - 1
            while pool[number] == query or (len(pool) > drawn and number in taken):
                number = rng.randint(1, len(pool)) - 1
            taken.append(number)
        support = tuple(pool[number] for number in taken[:shots])
        result.append(EpisodeSpec((class_id,), (support,), (query,), (0,)))
    return result


def draw_independent(pools: dict[int, list[str]], shots: int, episodes: int, seed: int) -> list[EpisodeSpec]:
    """The order of draws of INSID3's ``DatasetCOCO``, which has it from Matcher: numpy's global generator, one way."""
    rng = np.random.RandomState(seed)
    classes = list(pools)

    def one_of(count: int) -> int:
        return int(rng.choice(count, 1, replace=False)[0])

    result = []
    for _ in range(episodes):
        class_id = classes[one_of(len(classes))]
        pool = pools[class_id]
        query = one_of(len(pool))
        taken: list[int] = []
        while len(taken) < shots:
            number = one_of(len(pool))
            if number != query:
                taken.append(number)
        result.append(EpisodeSpec((class_id,), (tuple(pool[number] for number in taken),), (pool[query],), (0,)))
    return result
