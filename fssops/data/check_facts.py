"""What ``data check`` and the start of a training count: what a model can make nothing of, in the words of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fssops.data.few_shot_source import FewShotSource
from fssops.data.preparation import FewShotPreparation
from fssops.facts import Facts


@dataclass(frozen=True)
class Limits:
    """What a model can make of a data set; what is not given is not looked for.

    Attributes:
        queries: objects of an image or a video beyond them are never matched.
        preparation: of a few-shot model: brings images to its size, at which objects may be gone.
        novel_images: what its training does with images that hold a novel class: "dropped", "kept" or "ignored", see
            :data:`fssops.facts.FACTS`.
    """

    queries: int = 0
    preparation: FewShotPreparation | None = None
    novel_images: str = ""


def empty_supports(
    source: FewShotSource, name: str, classes: Sequence[int], preparation: FewShotPreparation
) -> tuple[int, int]:
    """Of how many classes an image shows nothing as a support, and how many classes were tried."""
    empty = 0
    for number in classes:
        label = source.label_map(name, [number])
        scene = preparation(np.zeros((*label.shape, 3), dtype=np.uint8), {"label": label})
        empty += not (scene.maps["label"] == number).any()
    return empty, len(classes)


def facts_of(crowds: Iterable[Sequence[bool]], limits: Limits, supports: Iterable[tuple[int, int]] = ()) -> Facts:
    """The facts of a split.

    Args:
        crowds: of each image or video, whether each object is a crowd region.
        limits: of the model.
        supports: of each image, what :func:`empty_supports` says.
    """
    facts = Facts()
    for of_item in crowds:
        facts.add("crowd_regions", sum(of_item), len(of_item))
        facts.add_objects(len(of_item) - sum(of_item), limits.queries)
    for empty, tried in supports if limits.preparation else ():
        facts.add("empty_supports", empty, tried)
    return facts
