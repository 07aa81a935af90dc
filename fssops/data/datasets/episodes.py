"""Turns an episode list into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from fssops import normalisation
from fssops.data import boxes, scribbles
from fssops.data.augmentation.chains import few_shot_chain, with_enough
from fssops.data.augmentation.scene import Scene, Transform, checked_size
from fssops.data.datasets.base_classes import base_labels
from fssops.data.episode_draws import EpisodeSpec
from fssops.data.episodes import EpisodeList
from fssops.data.errors import MaskError
from fssops.data.few_shot_source import FewShotSource
from fssops.labels import ANNOTATIONS, IGNORE
from fssops.structures import Episode

_STORED_SCRIBBLES = 256
"""Drawing the scribbles of a picture takes some tenths of a second; those of so many pictures are drawn only once."""


class EpisodeDataset(Dataset[Episode]):
    """Few-shot episodes as tensors; item i depends on the list, ``seed``, the epoch and i, on nothing else.

    Args:
        source: the data set.
        episodes: which images each episode takes.
        size: (height, width) of every image and mask.
        augment: one of :data:`fssops.data.augmentation.chains.FEW_SHOT_CHAINS`, or a transform of one's own that gives
            ``size``. Every image of an episode is augmented on its own.
        annotation: one of :data:`ANNOTATIONS`, for the supports; query labels are always dense.
        geometry: one of :data:`fssops.data.augmentation.chains.GEOMETRIES`.
        ignore_in_support: pixels labelled 255, padding too, are ``background`` of supports (PANet's published
            protocol), or ``neither`` (they do not count at all, but where a box of ``annotation="box"`` covers them).
            Scribbles never mark them.
        other_ways: an image shows the episode's other ways by their ``label``, or only the way it was drawn for, the
            others being ``background`` (PANet's published COCO protocol).
        empty_support: a support whose object has vanished by resizing: ``keep`` gives an empty foreground (a zero
            prototype, as published for masks and scribbles), ``error`` raises.
        normalise: scale by ImageNet's mean and deviation; else images stay 0..255.
        base_classes: ids of the fold's base classes in their order; queries then come with their base labels.
        least_query: augment a query again, up to 100 times, while it keeps fewer pixels of the class it was drawn for;
            if none keeps enough, the try that kept most is taken.
        least_support: the same for supports.
        seed: of augmentation and of the choice among scribble strokes.

    Raises:
        ValueError: an unknown option.
        AnnotationError: the list names images or classes that the source has not.
    """

    def __init__(
        self,
        source: FewShotSource,
        episodes: EpisodeList,
        size: Sequence[int] = (417, 417),
        *,
        augment: str | Transform = "none",
        annotation: str = "mask",
        geometry: str = "square",
        ignore_in_support: Literal["background", "neither"] = "background",
        other_ways: Literal["label", "background"] = "label",
        empty_support: Literal["keep", "error"] = "keep",
        normalise: bool = True,
        base_classes: Sequence[int] = (),
        least_query: int = 0,
        least_support: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value, choices in (
            ("annotation", annotation, ANNOTATIONS),
            ("ignore_in_support", ignore_in_support, ("background", "neither")),
            ("other_ways", other_ways, ("label", "background")),
            ("empty_support", empty_support, ("keep", "error")),
        ):
            if value not in choices:
                raise ValueError(f"EpisodeDataset: {name} must be one of {', '.join(choices)}, got {value!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"EpisodeDataset: seed must be an integer of at least 0, got {seed!r}")
        episodes.check(source)
        self.source, self.episodes = source, episodes
        self.size = checked_size("EpisodeDataset", size)
        self.transform = few_shot_chain(self.size, augment, geometry) if isinstance(augment, str) else augment
        self.annotation, self.empty_support = annotation, empty_support
        self.ignore_in_support, self.other_ways = ignore_in_support, other_ways
        self.normalise, self.base_classes, self.seed = normalise, tuple(base_classes), seed
        self.least_query, self.least_support = least_query, least_support
        self._fixed_geometry = augment == "none"
        self._scribbles: dict[str, np.ndarray] = {}
        # In shared memory, so that loader processes that live on see a new epoch as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose other augmentations for the same episodes."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"EpisodeDataset: index must be below {len(self)}, got {index}")
        return self.item(index % len(self), int(self._epoch))

    def item(self, index: int, epoch: int) -> Episode:
        """Episode ``index`` with the augmentations of an epoch."""
        spec = self.episodes[index]
        ways, shots = len(spec.classes), len(spec.support[0])
        images = torch.empty(ways, shots, 3, *self.size)
        foreground = torch.empty(ways, shots, *self.size)
        background = torch.empty(ways, shots, *self.size)
        for way in range(ways):
            for shot, name in enumerate(spec.support[way]):
                rng = np.random.default_rng([self.seed, epoch, index, way * shots + shot])
                scene = self._scene(spec, way, name, rng)
                images[way, shot] = self._tensor(scene.image)
                marked = self._marked(scene, spec, way, name, rng)
                foreground[way, shot], background[way, shot] = map(torch.from_numpy, marked)
        query_images = torch.empty(len(spec.query), 3, *self.size)
        query_labels = torch.empty(len(spec.query), *self.size, dtype=torch.int64)
        base = torch.empty(query_labels.shape, dtype=torch.int64) if self.base_classes else None
        for number, name in enumerate(spec.query):
            rng = np.random.default_rng([self.seed, epoch, index, ways * shots + number])
            scene = self._scene(spec, spec.query_ways[number], name, rng, query=True)
            query_images[number] = self._tensor(scene.image)
            query_labels[number] = torch.from_numpy(_way_labels(scene.maps["label"], spec.classes))
            if base is not None:
                base[number] = torch.from_numpy(scene.maps["base"].astype(np.int64))
        channels = {class_id: place for place, class_id in enumerate(self.base_classes, start=1)}
        return Episode(
            support_images=images,
            support_foreground=foreground,
            support_background=background,
            query_images=query_images,
            query_labels=query_labels,
            classes=torch.tensor(spec.classes, dtype=torch.int64),
            support_names=[list(names) for names in spec.support],
            query_names=list(spec.query),
            index=index,
            query_base_labels=base,
            base_channels=torch.tensor([channels.get(c, 0) for c in spec.classes]) if channels else None,
        )

    def query_base_truth(self, index: int) -> list[np.ndarray]:
        """Base labels of an episode's queries at their original sizes: one int64 [H, W] a query."""
        return [
            base_labels(self.source.label_map(name), self.base_classes).astype(np.int64)
            for name in self.episodes[index].query
        ]

    def query_truth(self, index: int) -> list[np.ndarray]:
        """Labels of an episode's queries at their original sizes, for protocols that score there.

        Returns:
            One int64 [H, W] a query: 0 background, n = way n, 255.
        """
        spec = self.episodes[index]
        return [
            _way_labels(self.source.label_map(name, self._shown(spec, way)), spec.classes)
            for name, way in zip(spec.query, spec.query_ways, strict=True)
        ]

    def _shown(self, spec: EpisodeSpec, way: int) -> list[int]:
        """Classes that the label of an image drawn for ``way`` shows."""
        return list(spec.classes) if self.other_ways == "label" else [spec.classes[way]]

    def _scene(self, spec: EpisodeSpec, way: int, name: str, rng: np.random.Generator, *, query: bool = False) -> Scene:
        """An image that was drawn for a way, augmented, with the maps that its masks are made of."""
        class_id = spec.classes[way]
        maps = {"label": self.source.label_map(name, self._shown(spec, way))}
        if query and self.base_classes:
            maps["base"] = base_labels(self.source.label_map(name), self.base_classes)
        if not query and self.annotation == "box":
            maps["instance"] = self.source.instance_map(name, class_id)
        if not query and self.annotation == "scribble":
            maps.update(self._scribble_inputs(name))
        original = Scene(np.asarray(self.source.image(name)), maps)
        least = self.least_query if query else self.least_support
        scene = with_enough(self.transform, original, rng, [class_id], least)
        if scene.size != self.size or scene.maps["label"].shape != self.size:
            raise MaskError(
                f"EpisodeDataset: augment must give images and labels of {self.size}, "
                f"got {scene.size} and {scene.maps['label'].shape} for {name}"
            )
        return scene

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        if self.normalise:
            return normalisation.normalise(image)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))

    def _marked(
        self, scene: Scene, spec: EpisodeSpec, way: int, name: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Foreground and background of a support as the annotation marks them: float32 [H, W] each."""
        label, class_id = scene.maps["label"], spec.classes[way]
        dense = label == class_id
        if not dense.any() and self.empty_support == "error":
            raise MaskError(
                f"{name}: support must show class {self.source.classes[class_id]!r} ({class_id}) at {self.size}, "
                "got no pixel of it"
            )
        if self.annotation == "box":
            foreground, background = boxes.largest_instance_box(dense, scene.maps["instance"])
            if self.ignore_in_support == "neither":
                background[label == IGNORE] = 0.0
            return foreground, background
        if self.annotation == "scribble":
            strokes = self._strokes(scene.maps, name)
            return scribbles.choose_stroke(dense, strokes, rng).astype(np.float32), (strokes == 0).astype(np.float32)
        if self.annotation == "component_boxes":
            label = boxes.component_boxes(label, class_id)
            dense = label == class_id
        outside = ~np.isin(label, spec.classes)
        if self.ignore_in_support == "neither":
            outside &= label != IGNORE
        return dense.astype(np.float32), outside.astype(np.float32)

    def _scribble_inputs(self, name: str) -> dict[str, np.ndarray]:
        """Stored scribbles, or what is needed to draw some after resizing: every object of the image, numbered."""
        stored = self.source.scribble_map(name)
        if stored is not None:
            return {"scribble": stored}
        everything = self.source.label_map(name)
        objects = np.zeros(everything.shape, dtype=np.int32)
        for class_id in np.unique(everything[(everything != 0) & (everything != IGNORE)]):
            numbers = self.source.instance_map(name, int(class_id))
            objects = np.where(numbers > 0, numbers + int(objects.max()), objects)
        return {"everything": everything, "objects": objects}

    def _strokes(self, maps: dict[str, np.ndarray], name: str) -> np.ndarray:
        """Scribble map at the network's size: strokes drawn there stay whole, stored ones are resized as published."""
        if "scribble" in maps:
            return maps["scribble"]
        if name in self._scribbles:
            return self._scribbles[name]
        numbers, areas = np.unique(maps["objects"][maps["objects"] > 0], return_counts=True)
        largest = numbers[np.argsort(-areas, kind="stable")][: IGNORE - 1]
        strokes = scribbles.scribble_map(maps["everything"] == 0, [maps["objects"] == number for number in largest])
        if self._fixed_geometry and len(self._scribbles) < _STORED_SCRIBBLES:
            self._scribbles[name] = strokes
        return strokes


class RepeatedEpisodes(Dataset[Episode]):
    """A list that training goes through more than once: the same episodes, every time augmented anew.

    Args:
        dataset: the list.
    """

    def __init__(self, dataset: EpisodeDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Episode:
        return self.dataset[index]

    def draw(self, index: int, generator: torch.Generator) -> Episode:
        """An episode whose augmentation comes from ``generator``."""
        return self.dataset.item(index, int(torch.randint(2**62, (), generator=generator)))


def _way_labels(label: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Replace class ids by ways 1..N, int64; other classes become 0, 255 stays."""
    ways = np.zeros(label.shape, dtype=np.int64)
    ways[label == IGNORE] = IGNORE
    for way, class_id in enumerate(classes, start=1):
        ways[label == class_id] = way
    return ways
