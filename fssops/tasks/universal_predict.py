"""What ``python -m fssops.predict`` does with fixed-class systems: label maps, COCO results and overlays.

OUT/semantic/NAME.png      palette picture, values are class indices
OUT/panoptic/NAME.png      RGB picture of segment ids, with OUT/panoptic.json in COCO's panoptic format
OUT/instances.json         COCO's results format: category id, score, run lengths
OUT/overlays/NAME.jpg      regions with class names; of several tasks OUT/overlays/TASK/NAME.jpg
OUT/classes.json           classes with their ids, names and colours
OUT/summary.json           what was done, and what could not be read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fssops.data.class_names import read_classes
from fssops.data.panoptic_json import encode_ids
from fssops.data.universal.dataset import UniversalItem, evaluation_item
from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.settings import SettingsError
from fssops.evaluation.instance import coco_results
from fssops.evaluation.universal_pictures import overlay_regions, palette_image
from fssops.structures import SegmentationResult, move_to
from fssops.tasks.frames import Frame
from fssops.tasks.universal import UniversalTask
from fssops.tasks.universal_pictures import SHOWN_SCORE, result_regions
from fssops.tasks.video import VideoTask
from fssops.truth import Classes


def classes_for(task: UniversalTask | VideoTask, checkpoint: Path | None) -> Classes:
    """Classes of a model: those its run folder keeps, else those of the data set or the published ones.

    Raises:
        SettingsError: none are to be had, or their number is not the model's.
    """
    classes = None
    for folder in () if checkpoint is None else (checkpoint, *checkpoint.parents[:2]):
        if (folder / "classes.json").is_file():
            classes = read_classes(folder / "classes.json")
            break
    classes = classes or task.classes()
    if len(classes) != task.config.num_classes:
        raise SettingsError(
            f"model.num_classes must be the number of classes ({len(classes)}), got {task.config.num_classes}"
        )
    return classes


@dataclass
class Predictor:
    """Segments pictures one by one and writes what it finds.

    Args:
        task: test size and tasks.
        model: on its device, in evaluation mode.
        classes: of the model.
        out: folder.
        tasks: which results; None: what the model does.
        least_score: instances below it are left out of overlays (not of the JSON).
        short_side: instead of the settings'.

    Attributes:
        images: what was segmented so far, in COCO's form.
    """

    task: UniversalTask
    model: nn.Module
    classes: Classes
    out: Path
    tasks: Sequence[str] | None = None
    least_score: float = SHOWN_SCORE
    short_side: int | None = None
    images: list[dict[str, Any]] = field(default_factory=list, init=False)
    _panoptic: list[dict[str, Any]] = field(default_factory=list, init=False)
    _instances: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Check the tasks.

        Raises:
            SettingsError: the model does not do one of them.
        """
        can = [task for task in self.task.model_tasks if task != "general"]
        if "panoptic" in can or self.task.settings.model.name in ("mask2former", "mp_former"):
            can = ["semantic", "instance", "panoptic"]
        chosen = list(self.tasks or [task for task in self.task.model_tasks if task != "general"])
        wrong = [task for task in chosen if task not in can]
        if wrong:
            raise SettingsError(f"--task: must be among {', '.join(can)} for this model, got {wrong[0]}")
        self.tasks = chosen

    def run(self, pictures: Iterable[Frame], progress: Any) -> list[Mapping[str, str]]:
        """Segment pictures and write everything.

        Args:
            pictures: those that could not be read are left out.
            progress: a progress bar.

        Returns:
            what was left out, with the reason.
        """
        failures: list[Mapping[str, str]] = []
        for frame in pictures:
            if frame.image is None:
                failures.append({"image": frame.origin, "error": frame.error})
                progress.say(f"left out {frame.origin}: {frame.error}")
            else:
                self.segment(frame)
            progress.advance()
        self._write_tables()
        return failures

    @torch.inference_mode()
    def segment(self, frame: Frame) -> SegmentationResult:
        """Segment one picture and write its files."""
        assert frame.image is not None
        assert self.tasks is not None
        rules = self.task.settings.eval
        side = rules.short_side if self.short_side is None else self.short_side
        item = evaluation_item(frame.image, frame.name, side, rules.longest)
        batch = move_to(UniversalItem.stack([item]), next(self.model.parameters()).device)
        result: SegmentationResult = self.model.segment(batch, self.tasks)[0]  # type: ignore[operator]
        identifier = int(frame.name) if frame.name.isdecimal() else frame.name
        height, width = frame.image.shape[:2]
        self.images.append({"id": identifier, "file_name": Path(frame.origin).name, "height": height, "width": width})
        if result.semantic is not None:
            labels = result.semantic.label_map.cpu().numpy()
            self._save(palette_image(labels, self.classes.colours), "semantic", f"{frame.name}.png")
        if result.panoptic is not None:
            self._save_panoptic(frame.name, identifier, result)
        if result.instance is not None:
            found = result.instance
            ids = [category.id for category in self.classes.categories]
            masks = found.masks.cpu().numpy()
            kept = [number for number, mask in enumerate(masks) if mask.any()]
            labels_kept = [int(found.labels[number]) for number in kept]
            scores = [float(found.scores[number]) for number in kept]
            self._instances += coco_results(identifier, labels_kept, scores, masks[kept], ids)
        for task in self.tasks:
            regions = result_regions(result, task, self.classes, self.least_score)
            folder = "overlays" if len(self.tasks) == 1 else f"overlays/{task}"
            self._save(Image.fromarray(overlay_regions(frame.image, regions)), folder, f"{frame.name}.jpg")
        return result

    def _save_panoptic(self, name: str, identifier: int | str, result: SegmentationResult) -> None:
        assert result.panoptic is not None
        ids = result.panoptic.segment_ids.cpu().numpy()
        self._save(Image.fromarray(encode_ids(ids)), "panoptic", f"{name}.png")
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

    def _save(self, picture: Image.Image, folder: str, name: str) -> None:
        target = self.out / folder
        target.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            picture.save(target / name, quality=92)
        else:
            picture.save(target / name)

    def _write_tables(self) -> None:
        assert self.tasks is not None
        rows = [
            {"id": c.id, "name": c.name, "color": list(c.colour), "isthing": int(c.is_thing)}
            for c in self.classes.categories
        ]
        self.write("classes.json", self.classes.as_json())
        if "panoptic" in self.tasks:
            body = {"images": self.images, "annotations": self._panoptic, "categories": rows}
            self.write("panoptic.json", body)
        if "instance" in self.tasks:
            self.write("instances.json", self._instances)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file into the output folder."""
        write_text_atomically(self.out / name, json.dumps(content) + "\n")


def predict(predictor: Predictor, pictures: Iterable[Frame], progress: Any, label: str) -> int:
    """Run a predictor, write ``summary.json`` and say what was done; returns the verb's exit code."""
    predictor.out.mkdir(parents=True, exist_ok=True)
    failures = predictor.run(pictures, progress)
    assert predictor.tasks is not None
    done = len(predictor.images)
    summary = {
        "model": label,
        "tasks": list(predictor.tasks),
        "test_size": predictor.task.test_size(),
        "classes": predictor.classes.names,
        "images": predictor.images,
        "failed": failures,
    }
    predictor.write("summary.json", summary)
    kinds = {"semantic": "semantic/", "panoptic": "panoptic/ and panoptic.json", "instance": "instances.json"}
    files = ", ".join(kinds[task] for task in predictor.tasks)
    print(f"{done} images segmented into {predictor.out}/ ({files}, overlays/, classes.json, summary.json)")
    if failures:
        print(f"{len(failures)} images could not be read, see summary.json")
    return 1 if failures else 0
