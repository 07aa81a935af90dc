"""The smallest folder of every layout that is recognised, written to disk."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from video_folder import annotation, box, write_videos

from fssops.data.datasets.universal import TrainingDataset

H, W = 20, 30


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right)
    values[:, : W // 2] = left
    return values


def coco_json(file: Path, **table: Any) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
        ],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**content, **table}))


def training_names(source: Any, kind: Any) -> list[str]:
    """The images that training on one kind of mask takes."""
    return TrainingDataset(source, kind, lambda scene, rng: scene).names


def voc(root: Path) -> None:
    save(root / "JPEGImages" / "a.jpg", picture())
    save(root / "SegmentationClass" / "a.png", halves(1, 15))
    save(root / "SegmentationObject" / "a.png", halves(1, 2))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")


def coco(root: Path) -> None:
    save(root / "train" / "a.jpg", picture())
    coco_json(root / "annotations" / "instances_train.json")


def coco_with_images_in_one_folder(root: Path) -> None:
    """``images`` beside ``annotations``, as folders of label maps have them."""
    save(root / "images" / "train" / "a.jpg", picture())
    coco_json(root / "annotations" / "instances_train.json")


def roboflow(root: Path) -> None:
    """As the tool writes it: the project's name is category 0, above the others."""
    save(root / "train" / "a.jpg", picture())
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 3, "name": "cat", "supercategory": "pets"}]
    coco_json(root / "train" / "_annotations.coco.json", categories=categories)


def label_studio(root: Path) -> None:
    """As the tool writes it: digits before the uploaded name, folders with back-slashes."""
    save(root / "images" / "0a1b2c3d-a.jpg", picture())
    images = [{"id": 1, "file_name": "images\\0a1b2c3d-a.jpg", "height": H, "width": W}]
    coco_json(root / "result.json", images=images)


def lvis(root: Path) -> None:
    save(root / "val2017" / "a.jpg", picture())
    url = "http://images.cocodataset.org/val2017/a.jpg"
    coco_json(root / "lvis_v1_train.json", images=[{"id": 1, "coco_url": url, "height": H, "width": W}])


def coco_panoptic(root: Path) -> None:
    save(root / "train" / "a.jpg", picture())
    save(
        root / "annotations" / "panoptic_train" / "a.png",
        np.stack([halves(1, 2), 0 * halves(1, 2), 0 * halves(1, 2)], -1),
    )
    rows = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 7}]
    coco_json(
        root / "annotations" / "panoptic_train.json",
        annotations=[{"image_id": 1, "file_name": "a.png", "segments_info": rows}],
    )


def coco_with_both(root: Path) -> None:
    coco(root)
    coco_panoptic(root)


def ade20k(root: Path) -> None:
    for folder in ("training", "validation"):
        save(root / "images" / folder / "a.jpg", picture())
        save(root / "annotations" / folder / "a.png", halves(0, 150))


def cityscapes(root: Path) -> None:
    stem = "bonn_000001_000019"
    save(root / "leftImg8bit" / "train" / "bonn" / f"{stem}_leftImg8bit.png", picture())
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_labelIds.png", halves(7, 26))
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_instanceIds.png", halves(7, 26))


def camvid(root: Path) -> None:
    save(root / "train" / "a.png", picture())
    save(root / "trainannot" / "a.png", halves(3, 11))


def label_folder(root: Path, images: str = "images", labels: str = "labels", names: str = '["road", "tree"]') -> None:
    save(root / images / "a.jpg", picture())
    save(root / labels / "a.png", halves(0, 1))
    (root / "classes.json").write_text(names)


def label_folder_of_splits(root: Path) -> None:
    label_folder(root, "images/train", "labels/train")


def label_folder_called_like_ade20k(root: Path) -> None:
    label_folder(root, "images/training", "labels/training")
    label_folder(root, "images/validation", "labels/validation")


def splits_of_label_folders(root: Path) -> None:
    label_folder(root, "train/images", "train/masks")
    label_folder(root, "val/images", "val/masks")


def splits_without_a_class_file(root: Path) -> None:
    splits_of_label_folders(root)
    (root / "classes.json").unlink()


def class_folders(root: Path) -> None:
    for name in ("cup", "train"):
        save(root / name / "images" / "a.jpg", picture())
        save(root / name / "masks" / "a.png", halves(0, 255))


def class_folders_with_masks_beside(root: Path) -> None:
    for name in ("cup", "pen"):
        save(root / name / "a.jpg", picture())
        save(root / name / "a_mask.png", halves(0, 255))


def fss1000(root: Path) -> None:
    for name in ("cup", "pen"):
        for number in (1, 2):
            save(root / name / f"{number}.jpg", picture())
            save(root / name / f"{number}.png", halves(0, 255))


def labelme(root: Path) -> None:
    save(root / "a.jpg", picture())
    rows = [
        {"label": "cat", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": [[12, 3], [28, 17]], "shape_type": "rectangle", "group_id": None},
    ]
    stated = {"imagePath": "a.jpg", "imageData": None, "imageHeight": H, "imageWidth": W}
    (root / "a.json").write_text(json.dumps({"version": "5.5.0", "flags": {}, "shapes": rows, **stated}))


def yolo(root: Path, images: str = "images/train", labels: str = "labels/train") -> None:
    save(root / images / "a.jpg", picture())
    (root / labels).mkdir(parents=True)
    (root / labels / "a.txt").write_text("0 0 0 0.5 0 0.5 0.5\n1 0.6 0.1 0.9 0.1 0.9 0.9 0.6 0.9\n")
    (root / "data.yaml").write_text(f"path: .\ntrain: {images}\nnc: 2\nnames: [cat, dog]\n")


def yolo_of_roboflow(root: Path) -> None:
    yolo(root, "train/images", "train/labels")
    (root / "data.yaml").write_text("train: ../train/images\nnames:\n  0: cat\n  1: dog\n")


def yolo_of_label_studio(root: Path) -> None:
    yolo(root, "images", "labels")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")


def colours(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    return np.stack([halves(a, b) for a, b in zip(left, right, strict=True)], -1)


def voc_of_cvat(root: Path) -> None:
    save(root / "JPEGImages" / "a.png", picture())
    save(root / "SegmentationClass" / "a.png", colours((0, 0, 0), (250, 50, 83)))
    save(root / "SegmentationObject" / "a.png", colours((0, 0, 0), (128, 0, 0)))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:250,50,83::\n")


def colour_labels(root: Path) -> None:
    save(root / "images" / "a.jpg", picture())
    save(root / "labels" / "a.png", colours((128, 64, 128), (0, 0, 142)))
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\ncar,0,0,142\n")


def binary_masks(root: Path, images: str = "images", masks: str = "masks") -> None:
    save(root / images / "a.jpg", picture())
    save(root / masks / "a_mask.png", halves(0, 255))


def binary_masks_of_splits(root: Path) -> None:
    binary_masks(root, "train/images", "train/masks")
    binary_masks(root, "val/images", "val/masks")


def mvtec(root: Path) -> None:
    for number, place in enumerate(("train/good", "test/good", "test/scratch", "test/dent")):
        save(root / "bottle" / place / "000.png", picture(number))
    for defect in ("scratch", "dent"):
        save(root / "bottle" / "ground_truth" / defect / "000_mask.png", halves(0, 255))


def davis(root: Path, below: str = "480p/") -> None:
    for frame in range(3):
        save(root / f"JPEGImages/{below}bear/{frame:05d}.jpg", picture(frame))
        save(root / f"Annotations/{below}bear/{frame:05d}.png", halves(1, 2 if frame else 0))
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "train.txt").write_text("bear\n")


def youtube_vos(root: Path) -> None:
    for frame in range(0, 15, 5):
        save(root / f"train/JPEGImages/003234408d/{frame:05d}.jpg", picture(frame))
        if frame % 10 == 0:
            save(root / f"train/Annotations/003234408d/{frame:05d}.png", halves(1, 2))
    objects = {n: {"category": c, "frames": ["00000", "00010"]} for n, c in (("1", "penguin"), ("2", "ape"))}
    (root / "train" / "meta.json").write_text(json.dumps({"videos": {"003234408d": {"objects": objects}}}))


def ytvis(root: Path) -> None:
    write_videos(root, [annotation(1, 1, 3, [box(0)] * 4)])


def ytvis_called_like_coco(root: Path) -> None:
    ytvis(root)
    (root / "annotations").mkdir()
    (root / "train.json").rename(root / "annotations" / "instances_train.json")


SQUARE = {"image_id": 1, "category_id": 3, "iscrowd": 0, "area": 81, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
RUNS = {"size": [H, W], "counts": [100, 200, 300]}


def cvat(root: Path) -> None:
    """One object as a polygon, and one drawn with the brush."""
    save(root / "images" / "a.jpg", picture())
    brushed = {**SQUARE, "id": 2, "category_id": 7, "iscrowd": 1, "segmentation": RUNS}
    coco_json(root / "annotations" / "instances_default.json", annotations=[{**SQUARE, "id": 1}, brushed])


def cvat_by_subset(root: Path) -> None:
    """With the head that CVAT writes, by which it is told from COCO."""
    names = ("contributor", "date_created", "description", "url", "version", "year")
    head = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": dict.fromkeys(names, "")}
    for subset in ("Train", "Validation"):
        save(root / "images" / subset / "a.jpg", picture())
        file = root / "annotations" / f"instances_{subset}.json"
        coco_json(file)
        file.write_text(json.dumps({**head, **json.loads(file.read_text())}))


def parquet(root: Path) -> None:
    """As Hugging Face's ``datasets`` writes pictures; pyarrow must be there."""
    import pyarrow
    from pyarrow.parquet import write_table

    save(root / "a.png", picture())
    save(root / "label.png", halves(1, 2))
    content = {column: (root / f"{file}.png").read_bytes() for column, file in (("image", "a"), ("label", "label"))}
    table = pyarrow.Table.from_pylist([{column: {"bytes": b, "path": None} for column, b in content.items()}])
    (root / "data").mkdir()
    write_table(table, root / "data" / "train-00000-of-00001.parquet")
    for file in ("a.png", "label.png"):
        (root / file).unlink()
    (root / "id2label.json").write_text('{"0": "background", "1": "road", "2": "tree"}')


EXAMPLES: dict[Callable[[Path], None], dict[str, str]] = {
    voc: dict.fromkeys(("few-shot", "semantic", "instance"), "voc"),
    coco: {"few-shot": "coco", "instance": "coco_instances", "semantic": "coco"},
    coco_with_images_in_one_folder: {"few-shot": "coco", "instance": "coco_instances", "semantic": "coco"},
    roboflow: dict.fromkeys(("instance", "semantic", "few-shot"), "roboflow"),
    label_studio: dict.fromkeys(("instance", "semantic", "few-shot"), "label_studio"),
    lvis: dict.fromkeys(("instance", "semantic", "few-shot"), "lvis"),
    coco_panoptic: dict.fromkeys(("panoptic", "semantic", "instance", "few-shot"), "coco_panoptic"),
    coco_with_both: {
        "few-shot": "coco",
        "panoptic": "coco_panoptic",
        "semantic": "coco_panoptic",
        "instance": "coco_panoptic",
    },
    ade20k: dict.fromkeys(("semantic", "instance", "panoptic", "few-shot"), "ade20k"),
    cityscapes: dict.fromkeys(("semantic", "instance", "panoptic", "few-shot"), "cityscapes"),
    camvid: dict.fromkeys(("semantic", "few-shot"), "camvid"),
    label_folder: {"semantic": "label_folder", "few-shot": "folder"},
    label_folder_of_splits: {"semantic": "label_folder", "few-shot": "folder"},
    label_folder_called_like_ade20k: {"semantic": "label_folder", "few-shot": "folder"},
    splits_of_label_folders: {"semantic": "label_folder", "few-shot": "folder"},
    splits_without_a_class_file: {"semantic": "label_folder", "few-shot": "folder"},
    class_folders: {"few-shot": "folder"},
    class_folders_with_masks_beside: {"few-shot": "folder"},
    fss1000: {"few-shot": "fss1000"},
    cvat: dict.fromkeys(("instance", "semantic", "few-shot"), "cvat"),
    cvat_by_subset: dict.fromkeys(("instance", "semantic", "few-shot"), "cvat"),
    labelme: dict.fromkeys(("instance", "semantic", "few-shot"), "labelme"),
    yolo: dict.fromkeys(("instance", "semantic", "few-shot"), "yolo"),
    yolo_of_roboflow: dict.fromkeys(("instance", "semantic", "few-shot"), "yolo"),
    yolo_of_label_studio: dict.fromkeys(("instance", "semantic", "few-shot"), "yolo"),
    voc_of_cvat: dict.fromkeys(("few-shot", "semantic", "instance"), "voc"),
    colour_labels: dict.fromkeys(("semantic", "few-shot"), "colour_labels"),
    binary_masks: dict.fromkeys(("semantic", "few-shot"), "binary_masks"),
    binary_masks_of_splits: dict.fromkeys(("semantic", "few-shot"), "binary_masks"),
    mvtec: dict.fromkeys(("semantic", "few-shot"), "mvtec"),
    davis: dict.fromkeys(("video", "instance", "few-shot"), "davis"),
    youtube_vos: dict.fromkeys(("video", "instance", "few-shot"), "youtube_vos"),
    ytvis: {"video": "ytvis"},
    ytvis_called_like_coco: {"video": "ytvis"},
}
"""What writes a folder, and its layout for each kind of truth that it has."""

if importlib.util.find_spec("pyarrow"):
    EXAMPLES[parquet] = dict.fromkeys(("semantic", "few-shot"), "parquet")
