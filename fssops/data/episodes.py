"""Episode lists: which images each N-way K-shot task takes, drawn from a seed, kept in a file, named by a hash.

Everything random about *which* images is decided here, before any loader starts, so it cannot depend on the number of
workers. The random generator is Python's Mersenne Twister with its own state; its integer draws have not changed since
Python 3.2, and PANet's and BAM's published lists come from it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fssops.data import episode_draws
from fssops.data.episode_draws import EpisodeSpec
from fssops.data.errors import AnnotationError, TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.json_values import shown
from fssops.data.text_files import read_json

FILE_FORMAT = "fssops-episodes-1"


@dataclass(frozen=True)
class EpisodeList:
    """Episodes of one setting.

    Attributes:
        episodes: the tasks, in order.
        ways: N.
        shots: K.
        queries: Q.
        seed: what they were drawn from; None for a list of one's own.
        class_names: class id -> name, of every class that could be drawn.
        fold: text that names the fold, or "".
        source: ``FewShotSource.describe()`` of the data set.
        options: the options of :meth:`draw` that decided what could be drawn.
        dropped: classes left out for want of images: id -> images it had.
    """

    episodes: tuple[EpisodeSpec, ...]
    ways: int
    shots: int
    queries: int
    seed: int | None
    class_names: dict[int, str]
    fold: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> EpisodeSpec:
        return self.episodes[index]

    def __iter__(self) -> Iterator[EpisodeSpec]:
        return iter(self.episodes)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) over everything in the list."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def draw(
        cls,
        source: FewShotSource,
        classes: Sequence[int],
        *,
        ways: int = 1,
        shots: int = 1,
        queries: int = 1,
        episodes: int = 1000,
        seed: int = 1234,
        draw: Literal["balanced", "panet", "list", "shuffled", "independent"] = "balanced",
        min_area: int = 1,
        avoid: Collection[int] = (),
        too_few: Literal["error", "skip"] = "error",
        fold: object = "",
    ) -> EpisodeList:
        """Draw episodes from a seed.

        - ``balanced``: for every episode its own generator, seeded by (seed, index), so a longer list begins with the
          shorter one. N classes without replacement, all equally likely; each query is given to a way at random; no
          image occurs twice in an episode, neither as support and query nor for two ways.
        - ``panet``: PANet's published draw, number for number. Which ways supply the queries is drawn once for the
          whole list; images are drawn without replacement within a class only, so with several ways one image can serve
          two classes, even as support and query.
        - ``list``: BAM's and MSANet's (1 way, 1 query), number for number for a loader without worker processes.
          Queries run through the images that hold any of the classes; the class is drawn from those in the query,
          whatever their size; supports from the class's images without the query. Classes are not balanced.
        - ``shuffled``: MM-Former's, number for number. As ``list``, but the queries run through a shuffled list, and at
          least five supports are drawn, of which fewer shots take the first: 1-shot and 5-shot have the same queries.
        - ``independent``: INSID3's (1 way, 1 query), number for number where the lists of images are the same: class,
          query and every support uniform, no support the query, but the same image may be a support twice.

        Args:
            source: the data set.
            classes: class ids to draw from.
            ways: N >= 1.
            shots: K >= 1.
            queries: Q >= 1.
            episodes: how many.
            seed: any integer.
            draw: see above.
            min_area: pixels of the class at original size that an image needs to be drawn for it (2048 in BAM and
                MSANet).
            avoid: leave out images with any pixel of these classes; the fold's novel classes, to drop training images
                that hold them.
            too_few: a class with too few images is an ``error`` or left out (``skip``, recorded in ``dropped``).
            fold: what to call the fold, e.g. a ``FoldClasses``.

        Raises:
            ValueError: a number out of range, an unknown class or option.
            TooFewImagesError: a class has fewer images than an episode needs, or too few classes are left.
        """
        _check_counts(ways=ways, shots=shots, queries=queries, episodes=episodes)
        if draw not in ("balanced", "panet", "list", "shuffled", "independent"):
            raise ValueError(
                f"EpisodeList.draw: draw must be balanced, panet, list, shuffled or independent, got {draw!r}"
            )
        if too_few not in ("error", "skip"):
            raise ValueError(f"EpisodeList.draw: too_few must be error or skip, got {too_few!r}")
        if draw in ("list", "shuffled", "independent") and (ways, queries) != (1, 1):
            raise ValueError(f"EpisodeList.draw: draw {draw!r} must have 1 way and 1 query, got {ways} and {queries}")
        unknown = [c for c in classes if c not in source.classes]
        if unknown or len(set(classes)) != len(classes):
            got = f"unknown {unknown}" if unknown else f"repeated {sorted(classes)}"
            raise ValueError(f"EpisodeList.draw: classes must be different classes of {source.label}, got {got}")

        pools = {c: _images_of(source, c, min_area, avoid, draw) for c in sorted(classes)}
        need = shots + queries
        small = {c: len(pool) for c, pool in pools.items() if len(pool) < need}
        if small and too_few == "error":
            raise TooFewImagesError(_too_few(source, small, need, min_area, avoid, fold))
        pools = {c: pool for c, pool in pools.items() if c not in small}
        if len(pools) < ways:
            detail = f" ({_too_few(source, small, need, min_area, avoid, fold)})" if small else ""
            raise TooFewImagesError(
                f"{source.label}: {ways}-way episodes must have at least {ways} usable classes, "
                f"got {len(pools)}{detail}"
            )
        if draw == "balanced":
            drawn = [episode_draws.draw_balanced(source, pools, ways, shots, queries, seed, i) for i in range(episodes)]
        elif draw == "panet":
            drawn = episode_draws.draw_panet(pools, ways, shots, queries, episodes, seed)
        elif draw == "list":
            drawn = episode_draws.draw_list(source, pools, shots, episodes, seed)
        elif draw == "shuffled":
            drawn = episode_draws.draw_shuffled(source, pools, shots, episodes, seed)
        else:
            drawn = episode_draws.draw_independent(pools, shots, episodes, seed)
        return cls(
            tuple(drawn),
            ways,
            shots,
            queries,
            seed,
            {c: source.classes[c] for c in sorted(classes)},
            str(fold),
            source.describe(),
            {"draw": draw, "min_area": min_area, "avoid": sorted(avoid)},
            small,
        )

    # Files.

    def _content(self) -> dict[str, Any]:
        return {
            "format": FILE_FORMAT,
            "source": self.source,
            "fold": self.fold,
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries,
            "seed": self.seed,
            "options": self.options,
            "classes": {str(c): name for c, name in self.class_names.items()},
            "dropped": {str(c): count for c, count in self.dropped.items()},
            "episodes": [asdict(episode) for episode in self.episodes],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file with the hash; in one step, so that no half of it is ever read.

        Raises:
            OSError: the folder cannot be written.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = self._content()
        lines = ",\n".join("  " + json.dumps(e) for e in content.pop("episodes"))
        head = json.dumps({**content, "hash": self.hash}, indent=1)[:-2]
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(f'{head},\n "episodes": [\n{lines}\n ]\n}}\n')
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EpisodeList:
        """Read a file that :meth:`save` wrote, and check its hash.

        Raises:
            FileNotFoundError: no such file.
            AnnotationError: not such a file, or changed since it was written.
        """
        file = Path(path)
        content = read_json(file, "episode list")
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            got = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise AnnotationError(f"{file}: episode list must have format {FILE_FORMAT!r}, got {shown(got)}")
        try:
            fields = {name: content[name] for name in ("ways", "shots", "queries", "seed", "fold", "source", "options")}
            loaded = cls(
                episodes=tuple(
                    EpisodeSpec(
                        tuple(e["classes"]), tuple(map(tuple, e["support"])), tuple(e["query"]), tuple(e["query_ways"])
                    )
                    for e in content["episodes"]
                ),
                class_names={int(c): name for c, name in content["classes"].items()},
                dropped={int(c): count for c, count in content["dropped"].items()},
                **fields,
            )
            stated = content["hash"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnnotationError(f"{file}: episode list must have every field, got a fault at {error}") from error
        if loaded.hash != stated:
            raise AnnotationError(
                f"{file}: episode list must be as it was written (hash {str(stated)[:12]}..), got {loaded.hash[:12]}.."
            )
        return loaded

    def names(self) -> set[str]:
        """Every image that some episode takes."""
        return {n for e in self.episodes for names in (*e.support, e.query) for n in names}

    def check(self, source: FewShotSource) -> None:
        """Check that a data set has every image and class of the list.

        Raises:
            AnnotationError: it has not; the message names the first that is missing.
        """
        missing = sorted(self.names() - set(source.names))
        if missing:
            raise AnnotationError(
                f"{source.label}: data set must have every image of the episode list, "
                f"got none named {missing[0]!r} ({len(missing)} missing)"
            )
        for number, name in self.class_names.items():
            if source.classes.get(number) != name:
                raise AnnotationError(
                    f"{source.label}: class {number} must be {name!r} as in the episode list, "
                    f"got {source.classes.get(number)!r}"
                )


def _check_counts(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"EpisodeList.draw: {name} must be an integer of at least 1, got {value!r}")


def _too_few(
    source: FewShotSource, small: dict[int, int], need: int, min_area: int, avoid: Collection[int], fold: object
) -> str:
    rules = [f"at least {min_area} px of it"] * (min_area > 1) + ["no avoided class in them"] * bool(avoid)
    where = f" of {fold}" if str(fold) else ""
    shown = [f"{source.classes[c]!r} ({c}): {count}" for c, count in list(small.items())[:5]]
    more = f" and {len(small) - 5} more classes" if len(small) > 5 else ""
    return (
        f"{source.label}: every class{where} must have at least {need} images"
        f"{' with ' + ' and '.join(rules) if rules else ''}, got {', '.join(shown)}{more}"
    )


def _images_of(source: FewShotSource, class_id: int, min_area: int, avoid: Collection[int], draw: str) -> list[str]:
    published = source.images_of_annotations(class_id) if draw == "panet" and min_area <= 1 and not avoid else None
    return source.images_of(class_id, min_area, avoid) if published is None else published
