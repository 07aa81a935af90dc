"""What predictors of images share: the forms in which they take pictures, one, several, or a stream of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fssops.data.images import read_image, to_rgb, upright
from fssops.segmentations import Segmentation
from fssops.tasks.prediction_inputs import find_pictures, is_video, output_names, pictures, require_decoder

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor"

Found = TypeVar("Found", bound=Segmentation)


class ImagePredictor(ABC, Generic[Found]):
    """Segments pictures, in whatever form Python holds them.

    Attributes:
        classes: names by class index.
    """

    classes: tuple[str, ...]

    @overload
    def __call__(self, source: Image.Image | np.ndarray[Any, Any] | Tensor) -> Found: ...

    @overload
    def __call__(self, source: list[ImageLike] | tuple[ImageLike, ...]) -> list[Found]: ...

    @overload
    def __call__(self, source: Iterator[ImageLike]) -> Iterator[Found]: ...

    @overload
    def __call__(self, source: str | os.PathLike[str]) -> Any: ...

    def __call__(self, source: Any) -> Any:
        """Segment whatever holds pictures.

        Args:
            source: a picture as :meth:`segment` takes it, or a list of such; or a stream: a folder of pictures, a
                video, ``"camera:0"`` (extra fssops[camera]), or an iterator of pictures.

        Returns:
            the result of a picture, a list for a list; of a stream an iterator, which segments the next picture when it
            is asked for it.

        Raises:
            FileNotFoundError: there is no such file, or no picture in a folder.
            SettingsError: a video or a camera, and what reads it is not installed; names the extra.
            ValueError, TypeError, OSError: of :meth:`segment`; of a stream when the iterator comes to that picture.
        """
        if isinstance(source, (str, os.PathLike)):
            path, where = Path(source), type(self).__name__
            if not path.is_dir() and not is_video(path):
                return self.segment(path)
            paths = find_pictures([str(path)], where)
            require_decoder(paths, where)
            frames = pictures(paths, output_names(paths))
            return (self._segment_one(one.pixels(), one.origin, one.frame) for one in frames)
        if isinstance(source, Iterable) and not isinstance(source, (Image.Image, np.ndarray, Tensor, list, tuple)):
            return (self._segment_one(one, called(one, n), n) for n, one in enumerate(source))
        return self.segment(source)

    @overload
    def segment(self, image: list[ImageLike] | tuple[ImageLike, ...]) -> list[Found]: ...

    @overload
    def segment(self, image: ImageLike) -> Found: ...

    def segment(self, image: Any) -> Found | list[Found]:
        """Segment an image, or each of a list, at its own size.

        Args:
            image: a path, a Pillow image, an array [H, W, 3] or [H, W] of uint8, or a tensor [3, H, W] of uint8 or of
                float in [0, 1].

        Raises:
            ValueError, TypeError: the image is of another form.
            OSError: it cannot be read.
        """
        if isinstance(image, (list, tuple)):
            return [self._segment_one(one, called(one, number)) for number, one in enumerate(image)]
        return self._segment_one(image, called(image, 0))

    @torch.inference_mode()
    def _segment_one(self, image: ImageLike, origin: str, frame: int = 0) -> Found:
        found = self._found_in(image, f"segment: image {origin}", origin)
        found.frame = frame
        return found

    @abstractmethod
    def _found_in(self, image: ImageLike, where: str, origin: str) -> Found:
        """Segment one picture; ``where`` is for messages."""


def called(image: Any, number: int) -> str:
    """What messages call a picture: its file, or its place among those given."""
    return str(image) if isinstance(image, (str, os.PathLike)) else f"number {number + 1}"


def rgb_array(image: ImageLike, where: str) -> np.ndarray[Any, Any]:
    """[H, W, 3] uint8 RGB of what :meth:`ImagePredictor.segment` takes; ``where`` is for messages."""
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(read_image(image))
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(upright(image, where), where))
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"{where} must be a tensor [3, H, W], got {list(image.shape)}")
        values = image.detach().cpu()
        if values.is_floating_point():
            if values.numel() and not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
                raise ValueError(
                    f"{where} must have floats in [0, 1] (not normalised), got {values.min():.3g} to {values.max():.3g}"
                )
            values = (values * 255).round()
        elif values.dtype != torch.uint8:
            raise ValueError(f"{where} must be a tensor of uint8 or of floats in [0, 1], got {values.dtype}")
        return values.to(torch.uint8).permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(
                f"{where} must be a uint8 array [H, W, 3] or [H, W], got {list(image.shape)} {image.dtype}"
            )
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    raise TypeError(f"{where} must be a path, Pillow image, array or tensor, got {type(image).__name__}")
