"""Geometry and photometry on an image and its maps together.

A transform is a callable ``(Sample, numpy Generator) -> Sample``; nothing here touches global random state. Images are
resampled linearly, maps always to the nearest pixel; where a picture is padded or turned, labels become 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from fssops.structures import IGNORE

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in [0, 1], used by every published few-shot system."""

FILL = {"label": IGNORE, "base": IGNORE, "everything": IGNORE, "scribble": IGNORE, "instance": 0, "objects": 0}
"""Value of pixels that come from outside a map."""

_LINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


@dataclass
class Sample:
    """An image and its maps, all of one size.

    Attributes:
        image: [H, W, 3] uint8, or float32 in 0..255 after a transform that keeps fractions.
        maps: name -> [H, W]: ``label`` (ids of the episode's classes, 255), ``base`` (places among the base classes,
            255), ``everything`` (ids of all classes, 255),
            ``instance`` and ``objects`` (numbers of one class's and of all objects, 0), ``scribble`` (stroke numbers,
            255).
    """

    image: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]


Transform = Callable[[Sample, np.random.Generator], Sample]


def normalise(image: np.ndarray) -> torch.Tensor:
    """Scale RGB 0..255 by ImageNet's mean and deviation: [H, W, 3] -> float32 [3, H, W]."""
    # One multiply-add over contiguous memory: twice as fast as dividing, subtracting and dividing.
    scale: np.ndarray = 1.0 / (255.0 * np.array(STD, dtype=np.float32))
    shift: np.ndarray = -np.array(MEAN, dtype=np.float32) / np.array(STD, dtype=np.float32)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    planes *= scale[:, None, None]
    planes += shift[:, None, None]
    return torch.from_numpy(planes)


def denormalise(image: torch.Tensor) -> np.ndarray:
    """Undo :func:`normalise`, rounded: [3, H, W] -> uint8 [H, W, 3]."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pixels = (image.detach().float().cpu() * std + mean) * 255.0
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest pixel by pixel centres (Pillow's rule: source index floor((i + 0.5) * scale)).

    Args:
        values: [H, W] of any integer type.
        size: height and width to give.
    """
    height, width = values.shape
    if (height, width) == tuple(size):
        return values
    rows = np.minimum(((np.arange(size[0]) + 0.5) * (height / size[0])).astype(np.intp), height - 1)
    columns = np.minimum(((np.arange(size[1]) + 0.5) * (width / size[1])).astype(np.intp), width - 1)
    return np.asarray(values[rows[:, None], columns[None, :]])


def resize_map_by_corners(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest by pixel corners (OpenCV's and torch's rule: source index floor(i * scale))."""
    height, width = values.shape
    rows = np.minimum((np.arange(size[0]) * (height / size[0])).astype(np.intp), height - 1)
    columns = np.minimum((np.arange(size[1]) * (width / size[1])).astype(np.intp), width - 1)
    return np.asarray(values[rows[:, None], columns[None, :]])


def _linear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear without antialiasing by pixel centres (OpenCV's INTER_LINEAR), float32."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))[None]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def check_size(where: str, size: Sequence[int]) -> tuple[int, int]:
    """Check a (height, width) and return it as a tuple.

    Raises:
        ValueError: not two positive integers.
    """
    values = tuple(size) if isinstance(size, Sequence) else ()
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{where}: size must be two positive integers (height, width), got {size!r}")
    return values[0], values[1]


@dataclass(frozen=True)
class Compose:
    """Transforms one after another."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


@dataclass(frozen=True)
class Resize:
    """Resize to ``size`` (height, width), whatever the aspect: bilinear with antialiasing (Pillow); maps nearest.

    PANet's only geometry (torchvision 0.2.1 Resize on Pillow images). With ``by_corners`` maps take the nearest pixel
    by corners: MM-Former's, which resizes labels by torch.
    """

    size: tuple[int, int]
    by_corners: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = self.size
        if sample.size == (height, width):
            return sample
        if sample.image.dtype == np.uint8:
            image = np.asarray(Image.fromarray(sample.image).resize((width, height), _LINEAR))
        else:
            planes = [Image.fromarray(sample.image[..., c]).resize((width, height), _LINEAR) for c in range(3)]
            image = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        nearest = resize_map_by_corners if self.by_corners else resize_map
        return Sample(image, {key: nearest(m, self.size) for key, m in sample.maps.items()})


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability ``p``."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        return Sample(sample.image[:, ::-1], {key: m[:, ::-1] for key, m in sample.maps.items()})


@dataclass(frozen=True)
class RandomScale:
    """Scale both sides by a factor uniform in [low, high], bilinear without antialiasing (BAM, MSANet)."""

    low: float
    high: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = rng.uniform(self.low, self.high)
        size = (max(1, round(sample.size[0] * factor)), max(1, round(sample.size[1] * factor)))
        maps = {key: resize_map_by_corners(m, size) for key, m in sample.maps.items()}
        return Sample(_linear(sample.image, size), maps)


@dataclass(frozen=True)
class RandomRotate:
    """With probability ``p`` turn about the centre by an angle uniform in [-degrees, degrees], size kept.

    Corners that come from outside take the mean colour in the image and :data:`FILL` in the maps.
    """

    degrees: float = 10.0
    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        angle = rng.uniform(-self.degrees, self.degrees)
        planes = []
        for channel, mean in zip(range(3), MEAN, strict=True):
            plane = Image.fromarray(sample.image[..., channel].astype(np.float32))
            planes.append(np.asarray(plane.rotate(angle, _LINEAR, fillcolor=255.0 * mean)))
        maps = {}
        for key, values in sample.maps.items():
            turned = Image.fromarray(values.astype(np.int32)).rotate(angle, _NEAREST, fillcolor=FILL.get(key, 0))
            maps[key] = np.asarray(turned).astype(values.dtype)
        return Sample(np.stack(planes, axis=-1), maps)


@dataclass(frozen=True)
class GaussianBlur:
    """With probability ``p`` blur with the 5 x 5 binomial kernel [1 4 6 4 1] / 16 an axis (OpenCV, sigma 0)."""

    p: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        image = sample.image.astype(np.float32)
        for axis in (0, 1):
            # OpenCV's default border mirrors without repeating the edge pixel; a side of 1 or 2 can only repeat.
            width = [(2, 2) if a == axis else (0, 0) for a in range(3)]
            padded = (
                np.pad(image, width, mode="reflect") if image.shape[axis] > 2 else np.pad(image, width, mode="edge")
            )
            parts = [np.take(padded, range(i, i + image.shape[axis]), axis=axis) for i in range(5)]
            image = (parts[0] + parts[4] + 4.0 * (parts[1] + parts[3]) + 6.0 * parts[2]) / np.float32(16.0)
        return Sample(image.astype(np.float32), sample.maps)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of ``size``; smaller images are first padded, centred, with the mean colour and label 255.

    The window is drawn again, up to ``tries`` times, while it keeps less than ``keep`` of the pixels of the classes in
    ``objects`` (BAM, MSANet: 0.85 and 31); with ``objects`` empty every label but 0 and 255 counts.
    """

    size: tuple[int, int]
    keep: float = 0.85
    tries: int = 31
    objects: tuple[int, ...] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = self._padded(sample)
        height, width = sample.size
        label = sample.maps.get("label")
        inside = None
        if label is not None:
            inside = np.isin(label, self.objects) if self.objects else (label != 0) & (label != IGNORE)
            total = int(inside.sum())
        for _ in range(1 + self.tries):
            top = int(rng.integers(0, height - self.size[0] + 1))
            left = int(rng.integers(0, width - self.size[1] + 1))
            window = (slice(top, top + self.size[0]), slice(left, left + self.size[1]))
            if inside is None or int(inside[window].sum()) >= self.keep * total:
                break
        return Sample(sample.image[window], {key: m[window] for key, m in sample.maps.items()})

    def _padded(self, sample: Sample) -> Sample:
        missing = [max(0, wanted - have) for wanted, have in zip(self.size, sample.size, strict=True)]
        if not any(missing):
            return sample
        before = [m // 2 for m in missing]
        height, width = (have + m for have, m in zip(sample.size, missing, strict=True))
        window = (slice(before[0], before[0] + sample.size[0]), slice(before[1], before[1] + sample.size[1]))
        image = np.empty((height, width, 3), dtype=np.float32)
        image[:] = 255.0 * np.array(MEAN, dtype=np.float32)
        image[window] = sample.image
        maps = {}
        for key, values in sample.maps.items():
            maps[key] = np.full((height, width), FILL.get(key, 0), dtype=values.dtype)
            maps[key][window] = values
        return Sample(image, maps)


@dataclass(frozen=True)
class Letterbox:
    """Scale the longer side to ``size``, floor both sides to a multiple of 8, paste top left on black.

    MSANet's evaluation geometry: aspect kept up to the flooring, the rest of the label canvas 255; bilinear without
    antialiasing. Only square canvases, as published.
    """

    size: tuple[int, int]
    multiple: int = 8

    def __post_init__(self) -> None:
        if self.size[0] != self.size[1]:
            raise ValueError(f"Letterbox: size must be square, got {self.size}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        side, (height, width) = self.size[0], sample.size
        ratio = side / max(height, width)
        size = (side, int(width * ratio)) if height >= width else (int(height * ratio), side)
        # A picture so narrow that flooring leaves nothing keeps a strip; the published code fails on it.
        size = (max(size[0] // self.multiple * self.multiple, 1), max(size[1] // self.multiple * self.multiple, 1))
        image = np.zeros((side, side, 3), dtype=np.float32)
        image[: size[0], : size[1]] = _linear(sample.image, size)
        maps = {}
        for key, values in sample.maps.items():
            maps[key] = np.full((side, side), FILL.get(key, 0), dtype=values.dtype)
            maps[key][: size[0], : size[1]] = resize_map_by_corners(values, size)
        return Sample(image, maps)


_SCALES = {"msanet_pascal": (0.9, 1.1), "msanet_coco": (0.8, 1.25), "msanet_base": (0.5, 2.0)}

AUGMENTATIONS = ("none", "flip", *_SCALES, "mm_former")
"""Named training augmentations: PANet's flip; BAM's and MSANet's scale, rotation, blur, flip and crop, for the episodes
of either data set and for the base learner; MM-Former's short side, crop, colours and flip."""

GEOMETRIES = ("square", "square_by_corners", "letterbox")
"""How images get their size where no augmentation crops; see :class:`Resize` and :class:`Letterbox`."""


def pipeline(size: Sequence[int], augment: str = "none", geometry: str = "square") -> Transform:
    """The transform of a named augmentation.

    Args:
        size: height and width of the result.
        augment: one of :data:`AUGMENTATIONS`; the ``msanet_*`` ones crop to ``size`` instead of resizing.
        geometry: one of :data:`GEOMETRIES`; not used by ``msanet_*`` and ``mm_former``.

    Raises:
        ValueError: an unknown name.
    """
    height_width = check_size("transforms.pipeline", size)
    if geometry not in GEOMETRIES:
        raise ValueError(f"transforms.pipeline: geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    if augment not in AUGMENTATIONS:
        raise ValueError(f"transforms.pipeline: augment must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
    if augment.startswith("msanet"):
        # The published base stage looks after the pixels labelled 1 alone, whatever that class is.
        crop = RandomCrop(height_width, objects=(1,) if augment == "msanet_base" else ())
        return Compose((RandomScale(*_SCALES[augment]), RandomRotate(), GaussianBlur(), HorizontalFlip(), crop))
    if augment == "mm_former":
        from fssops.data import crops  # it builds on this file

        sides, longest = crops.short_sides(height_width)
        steps = (crops.RandomShortSide(sides, longest), crops.Crop(height_width), crops.Colours(), HorizontalFlip())
        return Compose((*steps, crops.Pad(height_width)))  # last, so that padding is grey and to the right
    if geometry == "letterbox":
        resize: Transform = Letterbox(height_width)
    else:
        resize = Resize(height_width, by_corners=geometry == "square_by_corners")
    return Compose((resize, HorizontalFlip())) if augment == "flip" else resize


TRIES = 100


def with_enough(
    transform: Transform, sample: Sample, rng: np.random.Generator, classes: Sequence[int], least: int
) -> Sample:
    """Transform a sample anew, up to :data:`TRIES` times, until ``least`` pixels of some classes are left.

    Args:
        transform: random.
        sample: with a map ``label``.
        rng: of all tries.
        classes: ids in that map.
        least: pixels; 0 takes the first try.

    Returns:
        the first try that keeps enough, or the one that kept most.
    """
    best, most = transform(sample, rng), -1
    for number in range(TRIES if least else 0):
        tried = best if number == 0 else transform(sample, rng)
        count = int(np.isin(tried.maps["label"], classes).sum())
        if count > most:
            best, most = tried, count
        if count >= least:
            break
    return best
