"""What is known of single items and changes no score, but without which a score is misread: counted by name.

Whoever meets such an item counts it where it is known: a training at its start, an evaluation item by item, ``data
check`` picture by picture. Messages, results, tables and JSON tell them in the words of :data:`FACTS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

FACTS: dict[str, str] = {
    "empty_supports": "supports without a pixel of their class at the network's size",
    "skipped_episodes": "episodes left out of the scores for such a support",
    "copied_supports": "episodes with one picture as support and query",
    "unmatched_objects": "objects beyond the number of queries of their image or video",
    "crowd_regions": "objects that are crowd regions (iscrowd), which train nothing",
    # Of training:
    "novel_images_dropped": "images with a novel class, left out",
    "novel_images_kept": "images with a novel class, which is background there",
    "novel_images_ignored": "images with a novel class, whose pixels are ignored",
}
"""Name -> what was counted, in the words of results."""


class Facts:
    """How many of how many, by the names of :data:`FACTS`. What was looked for and not found has a count of 0.

    Args:
        counts: name -> (count, of how many).
    """

    def __init__(self, counts: Mapping[str, Iterable[int]] | None = None) -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        for name, (count, of) in (counts or {}).items():
            self.add(name, count, of)

    def add(self, name: str, count: int, of: int = 1) -> None:
        """Count ``count`` of ``of`` further ones.

        Raises:
            ValueError: no such fact.
        """
        if name not in FACTS:
            raise ValueError(f"Facts.add: name must be one of {', '.join(FACTS)}, got {name!r}")
        earlier = self.counts.get(name, (0, 0))
        self.counts[name] = (earlier[0] + int(count), earlier[1] + int(of))

    def add_objects(self, objects: int, queries: int) -> None:
        """Count the objects of an image or a video; ``queries`` is 0 where a model has none to match with them."""
        if queries:
            self.add("unmatched_objects", max(0, objects - queries), objects)

    def state(self) -> dict[str, list[int]]:
        """Plain values of everything counted: for checkpoints and JSON."""
        return {name: list(counts) for name, counts in self.counts.items()}

    def merge(self, states: Iterable[Mapping[str, Iterable[int]]]) -> None:
        """Replace the counts by what ``states`` (of processes, of earlier starts) hold together."""
        self.counts = {}
        for state in states:
            for name, (count, of) in state.items():
                self.add(name, count, of)

    def told(self) -> list[str]:
        """E.g. "25 of 40 supports without ..."; nothing of what was not found."""
        return [f"{count} of {of} {FACTS[name]}" for name, (count, of) in self.counts.items() if count]

    def as_json(self) -> dict[str, dict[str, int]]:
        """Plain values."""
        return {name: {"count": count, "of": of} for name, (count, of) in self.counts.items()}
