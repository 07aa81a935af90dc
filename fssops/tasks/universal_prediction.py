"""What ``predict`` leaves of a universal system: label maps, COCO results and overlays.

OUT/semantic/NAME.png      palette picture, values are class indices
OUT/panoptic/NAME.png      RGB picture of segment ids, with OUT/panoptic.json in COCO's panoptic format
OUT/instances.json         COCO's results format: category id, score, run lengths
OUT/overlays/NAME.jpg      regions with class names; of several tasks OUT/overlays/TASK/NAME.jpg
OUT/classes.json           classes with their ids, names and colours
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fssops.data.panoptic_json import encode_ids
from fssops.engine.settings import SettingsError
from fssops.evaluation.regions import SHOWN_SCORE, result_regions
from fssops.evaluation.submissions import coco_results
from fssops.pictures import label_image, overlay
from fssops.structures import SegmentationResult
from fssops.tasks.prediction import Predictor
from fssops.tasks.prediction_inputs import Picture, find_pictures, output_names, pictures, require_decoder
from fssops.truth import Classes

if TYPE_CHECKING:
    from fssops.tasks.universal import UniversalTask

FILES = {"semantic": "semantic/", "panoptic": "panoptic/ and panoptic.json", "instance": "instances.json"}


class UniversalPrediction(Predictor):
    """Segments pictures and frames of videos.

    Args:
        task: test size and tasks.
        model: on its device, in evaluation mode.
        classes: of the model.
        out: folder.
        label: what to call the model.
        tasks: which results; empty: what the model does.
        least_score: instances below it are left out of overlays (not of the JSON).
        short_side: at which pictures enter, instead of the settings'.

    Raises:
        SettingsError: the model does not do one of the tasks.
    """

    def __init__(
        self,
        task: UniversalTask,
        model: nn.Module,
        classes: Classes,
        out: Path,
        label: str,
        *,
        tasks: Sequence[str] = (),
        least_score: float = SHOWN_SCORE,
        short_side: int | None = None,
    ) -> None:
        super().__init__(out, label)
        possible = task.possible_tasks
        wrong = [name for name in tasks if name not in possible]
        if wrong:
            raise SettingsError(f"--task: must be among {', '.join(possible)} for this model, got {wrong[0]}")
        self.task, self.model, self.classes, self.least_score = task, model, classes, least_score
        self.tasks = list(tasks or task.model_tasks)
        self.prepare = task.preparation(short_side)
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._folder = "."  # what the pictures' folders have in common
        self._numbers: dict[str, int] = {}  # of pictures called by a number that no other one has

    def find(self, queries: Sequence[str]) -> tuple[list[Path], int, Iterable[Picture]]:
        """Pictures of files and folders, and the frames of video files."""
        paths = find_pictures(queries)
        require_decoder(paths)
        names = output_names(paths)
        numbers = Counter(int(name) for name in names if name.isdecimal())
        self._numbers = {name: int(name) for name in names if name.isdecimal() and numbers[int(name)] == 1}
        self._folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        return paths, len(paths), pictures(paths, names)

    @torch.inference_mode()
    def segment(self, one: Picture) -> SegmentationResult:
        """Segment one picture and write its files."""
        image = one.pixels()
        result: SegmentationResult = self.task.segment_item(self.model, self.prepare(image, one.name), self.tasks)
        identifier = self._numbers.get(one.name, one.name)
        height, width = image.shape[:2]
        # Pictures of several folders may share a name: only with its folder it says which one it is.
        file_name = Path(os.path.relpath(one.origin, self._folder)).as_posix()
        self.rows.append({"id": identifier, "file_name": file_name, "height": height, "width": width})
        if result.semantic is not None:
            labels = result.semantic.label_map.cpu().numpy()
            self.save(label_image(labels, self.classes.colours), "semantic", f"{one.name}.png")
        if result.panoptic is not None:
            self._save_panoptic(one.name, identifier, result)
        if result.instance is not None:
            instances = result.instance
            ids = [category.id for category in self.classes.categories]
            masks = instances.masks.cpu().numpy()
            visible = [number for number, mask in enumerate(masks) if mask.any()]
            class_indices = [int(instances.labels[number]) for number in visible]
            scores = [float(instances.scores[number]) for number in visible]
            self._instances += coco_results(identifier, class_indices, scores, masks[visible], ids)
        for task in self.tasks:
            regions = result_regions(result, task, self.classes, self.least_score)
            folder = ("overlays",) if len(self.tasks) == 1 else ("overlays", task)
            self.save(overlay(image, regions), *folder, f"{one.name}.jpg")
        return result

    def _save_panoptic(self, name: str, identifier: int | str, result: SegmentationResult) -> None:
        assert result.panoptic is not None
        ids = result.panoptic.segment_ids.cpu().numpy()
        self.save(encode_ids(ids), "panoptic", f"{name}.png")
        rows = [
            {
                "id": segment.id,
                "category_id": self.classes.categories[segment.label].id,
                "isthing": int(segment.is_thing),
                "area": int((ids == segment.id).sum()),
                "score": round(segment.score, 6),
            }
            for segment in result.panoptic.segments
        ]
        self._panoptic.append({"image_id": identifier, "file_name": f"{name}.png", "segments_info": rows})

    def finish(self) -> None:
        """Write classes and the tables of all pictures."""
        content = self.classes.as_json()
        self.write_json("classes.json", content)
        if "panoptic" in self.tasks:
            body = {"images": self.rows, "annotations": self._panoptic, "categories": content["classes"]}
            self.write_json("panoptic.json", body)
        if "instance" in self.tasks:
            self.write_json("instances.json", self._instances)

    def summary(self) -> dict[str, Any]:
        """Tasks, size and classes."""
        return {"tasks": self.tasks, "test_size": self.task.test_size(), "classes": self.classes.names}

    def files(self) -> str:
        """Which files are left, in words."""
        return f"{', '.join(FILES[task] for task in self.tasks)}, overlays/, classes.json, summary.json"
