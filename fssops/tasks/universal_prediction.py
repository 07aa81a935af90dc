"""What ``predict`` leaves of a universal system: label maps, COCO results and overlays.

OUT/semantic/NAME.png      palette picture, values are class indices
OUT/panoptic/NAME.png      RGB picture of segment ids, with OUT/panoptic.json in COCO's panoptic format
OUT/instances.json         COCO's results format: category id, score, run lengths; also box and, of those of --score,
                           polygons, in pixels
OUT/overlays/NAME.jpg      regions with class names; of several tasks OUT/overlays/TASK/NAME.jpg
OUT/overlays/VIDEO.webp    the overlays of a video's frames (mp4 with the extra fssops[video])
OUT/npz/NAME.npz           with --npz the arrays of the result
OUT/classes.json           classes with their ids, names and colours

The box of an instance, x, y, width, height, is not called ``bbox``: tools that score masks would take its area for the
object's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.data.panoptic_json import encode_ids
from fssops.evaluation.regions import SHOWN_SCORE
from fssops.fixed_class_predictors import UniversalPredictor
from fssops.pictures import label_image
from fssops.polygons import polygons
from fssops.segmentations import PanopticSegmentation, Segmentation
from fssops.tasks.prediction import PicturePrediction
from fssops.tasks.prediction_inputs import Picture

FILES = {"semantic": "semantic/", "panoptic": "panoptic/ and panoptic.json", "instance": "instances.json"}


class UniversalPrediction(PicturePrediction):
    """Segments pictures and frames of videos.

    Args:
        predictor: of the model, and of the tasks that are asked for.
        out: folder.
        least_score: instances below it are left out of overlays and of ``summary.csv``, and have no polygons in the
            JSON, which has all.
        **writing: arguments of :class:`PicturePrediction`.
    """

    def __init__(
        self, predictor: UniversalPredictor, out: Path, *, least_score: float = SHOWN_SCORE, **writing: Any
    ) -> None:
        super().__init__(out, predictor.label, **writing)
        self.predictor, self.least_score, self.tasks = predictor, least_score, predictor.tasks
        self.categories = predictor.categories
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._folder = "."  # what the pictures' folders have in common
        self._numbers: dict[str, int] = {}  # of pictures called by a number that no other one has

    def name_outputs(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        """Number the pictures that are called by a number, and find the folder that all lie in."""
        numbers = Counter(int(name) for name in names if name.isdecimal())
        self._numbers = {name: int(name) for name in names if name.isdecimal() and numbers[int(name)] == 1}
        self._folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])

    def segment(self, one: Picture) -> None:
        """Segment one picture and write its files."""
        found = self.predictor.segment(one.pixels())
        identifier = self._numbers.get(one.name, one.name)
        height, width = found.image.shape[:2]
        # Pictures of several folders may share a name: only with its folder it says which one it is.
        file_name = Path(os.path.relpath(one.origin, self._folder)).as_posix()
        self.rows.append({"id": identifier, "file_name": file_name, "height": height, "width": width})
        if found.semantic is not None:
            self.save(label_image(found.semantic.label_map, self.categories.colours), "semantic", f"{one.name}.png")
        if found.panoptic is not None:
            self._save_panoptic(one.name, identifier, found.panoptic)
        if found.instance is not None:
            self._instances += instance_rows(identifier, found.instance, self.least_score)
        for task in self.tasks:
            part: Segmentation = getattr(found, task)
            folder = ("overlays",) if len(self.tasks) == 1 else ("overlays", task)
            self.save_overlay(one, part.overlay(self.least_score), *folder, f"{one.name}.jpg")
        self.save_arrays(found, "npz", f"{one.name}.npz")
        self.count(one.origin, found.counts(self.least_score if found.main is found.instance else 0.0))

    def _save_panoptic(self, name: str, identifier: int | str, found: PanopticSegmentation) -> None:
        ids = found.segment_ids
        self.save(encode_ids(ids), "panoptic", f"{name}.png")
        rows = [
            {
                "id": segment.id,
                "category_id": self.categories.categories[segment.label].id,
                "isthing": int(segment.is_thing),
                "area": int((ids == segment.id).sum()),
                "score": round(segment.score, 6),
            }
            for segment in found.segments
        ]
        self._panoptic.append({"image_id": identifier, "file_name": f"{name}.png", "segments_info": rows})

    def finish(self) -> None:
        """Write classes, the tables of all pictures, and the videos."""
        super().finish()
        content = self.categories.as_json()
        self.write_json("classes.json", content)
        if "panoptic" in self.tasks:
            body = {"images": self.rows, "annotations": self._panoptic, "categories": content["classes"]}
            self.write_json("panoptic.json", body)
        if "instance" in self.tasks:
            self.write_json("instances.json", self._instances)

    def summary(self) -> dict[str, Any]:
        """Tasks, size and classes."""
        test_size = self.predictor.task.test_size()
        return {"tasks": list(self.tasks), "test_size": test_size, "classes": self.categories.names}

    def files(self) -> str:
        """Which files are left, in words."""
        return f"{', '.join(FILES[task] for task in self.tasks)}, overlays/, classes.json, summary.json, summary.csv"


def instance_rows(identifier: int | str, found: Segmentation, least_score: float) -> list[dict[str, Any]]:
    """Rows of ``instances.json`` for one picture; outlines are traced of instances of at least a score."""
    rows = []
    for row, mask in zip(found.to_coco(identifier), found.masks, strict=True):
        kept = {key: row[key] for key in ("image_id", "category_id", "segmentation", "score")}
        rows.append({**kept, "box": row["bbox"]})
        if row["score"] >= least_score:
            rows[-1]["polygons"] = [polygon.ravel().tolist() for polygon in polygons(mask)]
    return rows
