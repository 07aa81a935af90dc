"""Segmenting new classes from a few labelled images, in a few lines.

predictor = fssops.FewShotPredictor(model)
predictor.set_support({"cup": ["a.jpg", "b.jpg"]}, {"cup": ["a.png", "b.png"]})
result = predictor.segment("table.jpg")      # result.label_map, result.probabilities, at the picture's own size
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fssops.data.images import palette_of, read_mask, upright
from fssops.data.object_masks import object_area
from fssops.data.preparation import FewShotPreparation
from fssops.evaluation.feature_cache import FeatureCache
from fssops.image_predictor import ImageLike, ImagePredictor, called, rgb_array
from fssops.labels import IGNORE
from fssops.models.interface import FewShotModel
from fssops.pictures import way_colour
from fssops.segmentations import FewShotSegmentation
from fssops.structures import require_numbers
from fssops.truth import Classes

FITS = {"stretch": "square", "stretch_by_corners": "square_by_corners", "pad": "letterbox"}
"""How images get the model's size -> the geometry of evaluation that is the same."""

PANET_SIDE = 417
MOST_REPEATED = 64
"""Images of a class, repeated, where classes have different numbers of them."""

MaskLike: TypeAlias = ImageLike
BoxLike: TypeAlias = "Sequence[float] | Sequence[Sequence[float]] | np.ndarray[Any, Any] | Tensor"


class FewShotPredictor(ImagePredictor[FewShotSegmentation]):
    """Keeps a support set's summary and segments images with it.

    Args:
        model: a few-shot model; it is put in eval mode and stays on its device.
        size: side in pixels, or (height, width), at which images enter the model; None: the ``image_side`` of a model
            that has one, as INSID3's 64 patches, else 417, PANet's published side.
        fit: "stretch" to that size, as PANet does; "stretch_by_corners": the same with masks resized by another rule,
            as MM-Former does; or "pad" (square sizes only): the longer side fills it, the aspect is kept, the rest is
            black and neither foreground nor background, as MSANet does. Evaluation prepares images by the same code.
        precision: "float32" or "bfloat16" (autocast).
        keep_mb: memory for what the model computes of an image alone, so that a further class in the same image, with
            another support set, costs the matching only: MM-Former's proposals, any system's backbone. 0 keeps nothing.

    Raises:
        TypeError: the model does not offer the steps of ``FewShotModel``.
        ValueError: the size is below the model's stride or does not suit ``fit``, or an option is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: int | tuple[int, int] | None = None,
        fit: Literal["stretch", "stretch_by_corners", "pad"] = "stretch",
        precision: Literal["float32", "bfloat16"] = "float32",
        keep_mb: int = 256,
    ) -> None:
        if not isinstance(model, FewShotModel):
            raise TypeError(f"FewShotPredictor: model must be a few-shot model, got {type(model).__name__}")
        if fit not in FITS:
            raise ValueError(f"FewShotPredictor: fit must be one of {', '.join(FITS)}, got {fit!r}")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"FewShotPredictor: precision must be float32 or bfloat16, got {precision!r}")
        if keep_mb < 0:
            raise ValueError(f"FewShotPredictor: keep_mb must not be negative, got {keep_mb}")
        if size is None:
            size = int(getattr(model, "image_side", PANET_SIDE))
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if min(self.size) < model.stride:
            raise ValueError(f"FewShotPredictor: size must be at least the stride {model.stride}, got {self.size}")
        if fit == "pad" and self.size[0] != self.size[1]:
            raise ValueError(f"FewShotPredictor: size must be square with fit pad, got {self.size}")
        self._prepare = FewShotPreparation(self.size, FITS[fit])
        self.model: Any = model.eval()
        self.fit, self.precision = fit, precision
        self.device = next(model.parameters()).device
        self.classes: tuple[str, ...] = ()
        self._support: Any = None
        self._kept = FeatureCache(self.model.encode, memory=keep_mb << 20)
        self._weights = self._versions()

    @torch.inference_mode()
    def set_support(
        self,
        images: Sequence[ImageLike] | ImageLike | Mapping[str, Sequence[ImageLike]],
        masks: Sequence[MaskLike] | MaskLike | Mapping[str, Sequence[MaskLike]] | None = None,
        *,
        boxes: Sequence[BoxLike] | Mapping[str, Sequence[BoxLike]] | None = None,
        scribbles: Sequence[MaskLike] | MaskLike | Mapping[str, Sequence[MaskLike]] | None = None,
        object: int | Collection[int] | None = None,
        threshold: float | None = None,
        ignore: int | None = None,
    ) -> None:
        """Set the labelled images; exactly one of masks, boxes and scribbles says where the class is.

        Args:
            images: images of one class, or a name of each class with its images.
            masks: for each image a mask of its size: booleans, 0 and one other value, or 0, 1 and 255 (neither); see
                :mod:`fssops.data.object_masks` for all others.
            boxes: for each image one box (x0, y0, x1, y1) in its pixels, or several; x1 and y1 are exclusive. Inside
                counts as the class, outside as background.
            scribbles: for each image a map of its size in PANet's convention: 0 background stroke, 255 not labelled,
                any other value a stroke on the class.
            object: of masks, the value or values of the object; everything else is background, and 255 neither.
            threshold: of masks, the least value of the object: 128 for grey outlines, 0.5 for probabilities.
            ignore: of masks, the value that is neither object nor background.

        Raises:
            ValueError: numbers do not match, sizes do not match, there is no foreground, an image is too small, or
                what the values of a mask mean cannot be decided.
        """
        given = [
            name for name, value in (("masks", masks), ("boxes", boxes), ("scribbles", scribbles)) if value is not None
        ]
        if len(given) != 1:
            raise ValueError(f"set_support: give exactly one of masks, boxes, scribbles, got {given or 'none'}")
        kind = given[0]
        settings = {"object": object, "threshold": threshold, "ignore": ignore}
        if kind != "masks" and any(value is not None for value in settings.values()):
            raise ValueError(f"set_support: object, threshold and ignore are of masks, got them with {kind}")
        annotation: Any = masks if kind == "masks" else boxes if kind == "boxes" else scribbles
        image_sets = _by_class(images, "images")
        annotation_sets = _by_class(annotation, kind, box=kind == "boxes")
        if list(image_sets) != list(annotation_sets):
            raise ValueError(
                f"set_support: images and {kind} must name the same classes in the same order, got "
                f"{list(image_sets)} and {list(annotation_sets)}"
            )
        shots = {name: len(found) for name, found in image_sets.items()}
        if not shots or min(shots.values()) == 0:
            raise ValueError(f"set_support: every class must have at least 1 image, got {shots}")
        common = math.lcm(*shots.values())
        if common > MOST_REPEATED and len(set(shots.values())) > 1:
            raise ValueError(
                "set_support: numbers of images of classes must have a common multiple of at most "
                f"{MOST_REPEATED}, got {shots}; leave some out"
            )
        if "background" in shots or len(shots) > 254:
            raise ValueError(f"set_support: classes must be at most 254, none called background, got {list(shots)}")
        pictures: list[Tensor] = []
        maps: list[Tensor] = []
        for name, found in image_sets.items():
            labels = annotation_sets[name]
            if len(labels) != len(found):
                raise ValueError(
                    f"set_support: class {name!r} must have one of {kind} an image, got {len(labels)} for {len(found)}"
                )
            for number, (image, label) in enumerate(zip(found, labels, strict=True)):
                where = f"set_support: image {called(image, number)} of class {name!r}"
                picture = self._picture(image, where)
                area = _area(label, kind, picture.shape[1], picture.shape[0], where, settings)
                image_tensor, area_map = self._prepared_support(picture, area, where)
                pictures.append(image_tensor)
                maps.append(area_map)
        # Models take equally many images of each class; repeated equally often, they change no mean over a class.
        order, first = [], 0
        for count in shots.values():
            order += [*range(first, first + count)] * (common // count)
            first += count
        area_maps = torch.stack([maps[place] for place in order]).view(1, len(shots), common, *self.size)
        area_maps = area_maps.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.model.encode(torch.stack(pictures).to(self.device))
            if len(order) > len(pictures):
                features = {name: values[order] for name, values in features.items()}
            self._support = self.model.summarise(features, (area_maps == 1).float(), (area_maps == 0).float())
        self.classes = ("background", *shots)
        colours = [(0, 0, 0), *map(way_colour, range(len(shots)))]
        self._categories = Classes.from_names(self.classes, range(1, len(shots) + 1), colours)

    def _found_in(self, image: ImageLike, where: str, origin: str) -> FewShotSegmentation:
        if self._support is None:
            raise RuntimeError("FewShotPredictor.segment: call set_support first")
        started = time.perf_counter()
        picture = self._picture(image, where)
        height, width = picture.shape[:2]
        prepared = self._prepare.tensor(self._prepare(picture))
        read = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self._features(prepared.to(self.device))
            encoded = time.perf_counter()
            size = (height, width) if self._prepare.compared_size == "original" else self.size
            logits = self.model.match(self._support, features, size)[0, 0].float()
        require_numbers(logits, where)
        probabilities = self._prepare.restore(logits, (height, width)).softmax(0)
        label_map = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
        values = probabilities.cpu().numpy()
        seconds = {"read": read - started, "encode": encoded - read, "match": time.perf_counter() - encoded}
        labels = np.array([label for label in np.unique(label_map) if label], dtype=np.int64)
        masks = label_map == labels[:, None, None]
        scores = [values[label][mask].mean() for label, mask in zip(labels, masks, strict=True)]
        return FewShotSegmentation(
            image=picture,
            categories=self._categories,
            labels=labels,
            masks=masks,
            scores=np.array(scores, dtype=np.float32),
            origin=origin,
            label_map=label_map,
            probabilities=values,
            seconds=seconds,
        )

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        """Of one image [3, H, W]; kept, unless the model's weights have changed meanwhile."""
        weights = self._versions()
        if weights is None or weights != self._weights:
            self._kept.close()
            self._weights = weights
        return self._kept.features(image[None], self.model.query_features)

    def _versions(self) -> tuple[int, ...] | None:
        """How often each tensor was changed; None of a model built in inference mode, where it is not counted."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return None if any(tensor.is_inference() for tensor in tensors) else tuple(t._version for t in tensors)

    def _picture(self, image: ImageLike, where: str) -> np.ndarray[Any, Any]:
        """[H, W, 3] uint8 RGB."""
        picture = rgb_array(image, where)
        if min(picture.shape[:2]) < self.model.stride:
            raise ValueError(
                f"{where} must be at least {self.model.stride} pixels a side (the model's stride), got "
                f"{picture.shape[1]} x {picture.shape[0]}"
            )
        return picture

    def _prepared_support(
        self, picture: np.ndarray[Any, Any], area: np.ndarray[Any, Any], where: str
    ) -> tuple[Tensor, Tensor]:
        """Both at the model's size: float32 [3, H, W], and uint8 [H, W] of 1 object, 0 background, 255 neither."""
        if not (area == 1).any():
            raise ValueError(f"{where} must have foreground, got none")
        scene = self._prepare(picture, {"label": area})
        area_map = scene.maps["label"]
        if not (area_map == 1).any():
            raise ValueError(
                f"{where} must have foreground that survives resizing to {self.size[1]} x {self.size[0]}, got "
                f"{int((area == 1).sum())} pixels of {area.shape[1]} x {area.shape[0]}"
            )
        return self._prepare.tensor(scene), torch.from_numpy(np.ascontiguousarray(area_map))


def _by_class(given: Any, what: str, *, box: bool = False) -> dict[str, list[Any]]:
    """The argument as class name to list; a bare list, or a single thing, is of the class "object"."""
    if isinstance(given, Mapping):
        by_class = {}
        for name, value in given.items():
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"set_support: {what} of class {name!r} must be a list, got {type(value).__name__}")
            by_class[str(name)] = list(value)
        return by_class
    if isinstance(given, (list, tuple)):
        if box and given and isinstance(given[0], Real):
            return {"object": [given]}
        return {"object": list(given)}
    return {"object": [given]}


def _area(
    label: Any, kind: str, width: int, height: int, where: str, settings: Mapping[str, Any]
) -> np.ndarray[Any, Any]:
    """[H, W] uint8 of 1 foreground, 0 background, 255 neither."""
    if kind == "boxes":
        return _area_of_boxes(label, width, height, where)
    colours = None
    if isinstance(label, (str, os.PathLike)):
        values, colours = read_mask(label), palette_of(label)
    elif isinstance(label, Image.Image):
        values, colours = np.asarray(upright(label, where)), palette_of(label)
    elif isinstance(label, (Tensor, np.ndarray)):
        values = label.detach().cpu().numpy() if isinstance(label, Tensor) else label
    else:
        raise TypeError(
            f"{where} must have a mask that is a path, Pillow image, array or tensor, got {type(label).__name__}"
        )
    if values.ndim != 2:
        raise ValueError(f"{where} must have a mask [H, W], got {list(values.shape)}")
    if values.shape != (height, width):
        called = f" {label}" if isinstance(label, (str, os.PathLike)) else ""
        raise ValueError(
            f"{where} is {width} x {height}, and its mask{called} must have that size, "
            f"got {values.shape[1]} x {values.shape[0]}"
        )
    if kind == "scribbles":
        if values.dtype == bool:
            raise ValueError(f"{where} must have a scribble map of numbers (0, 255, strokes), got booleans")
        strokes: np.ndarray[Any, Any] = np.where(values == IGNORE, IGNORE, values != 0).astype(np.uint8)
        if not (strokes == 1).any():
            raise ValueError(
                f"{where} must have a stroke on the class, a value from 1 to 254, got only background strokes (0) and "
                "255, which means not labelled; in a white-on-black map say 1 for the strokes and 255 for the rest"
            )
        return strokes
    return object_area(values, where, colours=colours, **settings)


def _area_of_boxes(label: Any, width: int, height: int, where: str) -> np.ndarray[Any, Any]:
    boxes = np.asarray(label.cpu() if isinstance(label, Tensor) else label, dtype=np.float64)
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"{where} must have boxes (x0, y0, x1, y1), got {label!r}")
    area = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1 in boxes:
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"{where} must have boxes with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, got "
                f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
            )
        area[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = 1
    return area
