"""What ``predict`` leaves of a few-shot system: for each query NAME

OUT/NAME_labels.png         palette picture: 0 background, n = class n
OUT/NAME_overlay.jpg        the classes on the picture
OUT/NAME_probability.png    probability of the class, 0..255; of several classes NAME_probabilities.npz
OUT/NAME.npz                with --npz the arrays of the result
OUT/VIDEO.webp              the overlays of a video's frames (mp4 with the extra fssops[video])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fssops.pictures import label_image
from fssops.predictor import FewShotPredictor
from fssops.tasks.prediction import PicturePrediction
from fssops.tasks.prediction_inputs import Picture
from fssops.tasks.support_options import Support, set_support


class FewShotPrediction(PicturePrediction):
    """Segments pictures with the classes that labelled images show.

    Args:
        predictor: prepares images as the model's evaluation does.
        supports: labelled images.
        out: folder.
        label: what to call the model.
        probability: write probabilities too.
        mask_values: what values of masks mean: ``object``, ``threshold`` and ``ignore`` of ``set_support``.
        **writing: arguments of :class:`PicturePrediction`.
    """

    def __init__(
        self,
        predictor: FewShotPredictor,
        supports: Sequence[Support],
        out: Path,
        label: str,
        *,
        probability: bool,
        mask_values: Mapping[str, Any],
        **writing: Any,
    ) -> None:
        super().__init__(out, label, **writing)
        self.predictor, self.supports, self.probability = predictor, supports, probability
        self.mask_values = {name: value for name, value in mask_values.items() if value is not None}
        set_support(predictor, supports, **self.mask_values)

    def segment(self, one: Picture) -> None:
        """Segment a picture and write its label map, overlay and probabilities."""
        result = self.predictor.segment(one.pixels())
        files = [
            self.save(label_image(result.label_map), f"{one.name}_labels.png"),
            self.save_overlay(one, result.overlay(), f"{one.name}_overlay.jpg"),
            *self.save_arrays(result, f"{one.name}.npz"),
        ]
        if self.probability and len(result.classes) == 2:
            values = (result.probabilities[1] * 255.0).round().astype(np.uint8)
            files.append(self.save(values, f"{one.name}_probability.png"))
        elif self.probability:
            name = f"{one.name}_probabilities.npz"
            np.savez_compressed(self.out / name, probabilities=result.probabilities.astype(np.float16))
            files.append(name)
        share = {name: float((result.label_map == way).mean()) for way, name in enumerate(result.classes)}
        self.count(one.origin, result.counts())
        height, width = result.label_map.shape
        self.rows.append({"image": one.origin, "height": height, "width": width, "share": share, "files": files})

    def summary(self) -> dict[str, Any]:
        """Size and form in which pictures enter, classes, and supports."""
        return {
            "size": list(self.predictor.size),
            "fit": self.predictor.fit,
            "classes": list(self.predictor.classes),
            "supports": [asdict(support) for support in self.supports],
            "mask_values": self.mask_values,
        }

    def files(self) -> str:
        """Which files are left, in words."""
        return "labels, overlays, summary.json, summary.csv"
