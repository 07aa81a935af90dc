"""What ``predict`` leaves of a few-shot system: for each query NAME

OUT/NAME_labels.png         palette picture: 0 background, n = class n
OUT/NAME_overlay.jpg        the classes on the picture
OUT/NAME_probability.png    probability of the class, 0..255; of several classes NAME_probabilities.npz
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fssops.pictures import label_image, overlay_ways
from fssops.predictor import FewShotPredictor
from fssops.tasks.prediction import Predictor
from fssops.tasks.prediction_inputs import Picture, find_pictures, output_names, pictures
from fssops.tasks.support_options import Support, set_support


class FewShotPrediction(Predictor):
    """Segments pictures with the classes that labelled images show.

    Args:
        predictor: prepares images as the model's evaluation does.
        supports: labelled images.
        out: folder.
        label: what to call the model.
        probability: write probabilities too.
        mask_values: what values of masks mean: ``object``, ``threshold`` and ``ignore`` of ``set_support``.
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
    ) -> None:
        super().__init__(out, label)
        self.predictor, self.supports, self.probability = predictor, supports, probability
        self.mask_values = {name: value for name, value in mask_values.items() if value is not None}
        set_support(predictor, supports, **self.mask_values)

    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, Iterable[Picture]]:
        """Pictures of files and folders."""
        paths = find_pictures(queries)
        return paths, len(paths), pictures(paths, output_names(paths))

    def segment(self, one: Picture) -> None:
        """Segment a picture and write its label map, overlay and probabilities."""
        image = one.pixels()
        result = self.predictor.segment(image)
        files = [
            self.save(label_image(result.labels), f"{one.name}_labels.png"),
            self.save(overlay_ways(image, result.labels), f"{one.name}_overlay.jpg"),
        ]
        if self.probability and len(result.classes) == 2:
            values = (result.probabilities[1] * 255.0).round().astype(np.uint8)
            files.append(self.save(values, f"{one.name}_probability.png"))
        elif self.probability:
            name = f"{one.name}_probabilities.npz"
            np.savez_compressed(self.out / name, probabilities=result.probabilities.astype(np.float16))
            files.append(name)
        share = {name: float((result.labels == way).mean()) for way, name in enumerate(result.classes)}
        height, width = image.shape[:2]
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
        return "labels, overlays, summary.json"
