"""The items that training and evaluation see stay the same, pixel by pixel, for every augmentation and kind of task.

A training case takes the first batches of a recipe as its loader gives them: order of the items, their seeds,
augmentation and masks. An evaluation case takes what the model sees and the truth it is compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import surfaces
from fingerprints import differences, expected, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = [
    "data.options={size=64,images_per_class=4}",
    "data.size=[48,48]",
    "engine.batch_size=2",
    "engine.workers=0",
    "schedule.steps=2",
]
TWO_WAYS = [*SMALL, "data.ways=2", "data.shots=2", "data.queries=2"]
EVALUATION = ["eval.runs=2", "eval.ways=2", "eval.shots=2", "eval.queries=2", "eval.episodes=4", "eval.min_area=1"]
BASE_CLASSES = ["data.source=generated", "data.folds=generated", "model.base_classes=21", *SMALL, "eval.split=test"]
SCENES = ["data.options={size=64,images=6}", "engine.batch_size=2", "engine.workers=0"]
VIDEOS = ["data.options={size=48,videos=6,frames=6}", "engine.batch_size=2", "engine.workers=0"]
CHAINS = {
    "none": ["data.augment=none"],
    "none, resized": ["data.augment=none", "data.short_sides=[40,56]"],
    "flip": ["data.augment=flip"],
    "flip, resized": ["data.augment=flip", "data.short_sides=[40,56]", "data.longest=50"],
    "resize_crop": ["data.augment=resize_crop", "data.short_sides=[48,64,80]", "data.crop=[48,64]"],
    "resize_crop, no padding": [
        "data.augment=resize_crop",
        "data.short_sides=[32,80]",
        "data.crop=[48,64]",
        "data.pad=false",
    ],
    "resize_crop, category_share": [
        "data.augment=resize_crop",
        "data.short_sides=[96]",
        "data.crop=[32,32]",
        "data.category_share=0.5",
    ],
    "large_scale_jitter": ["data.augment=large_scale_jitter", "data.side=56"],
    "detr": ["data.augment=detr", "data.short_sides=[48,64]", "data.longest=72"],
}

Case = tuple[str, list[str]]
"""Recipe and overrides."""

TRAINING: dict[str, Case] = {
    **{
        f"few-shot, {augment}, {geometry}": (
            "panet_generated",
            [*TWO_WAYS, f"data.augment={augment}", f"data.geometry={geometry}"],
        )
        for augment in ("none", "flip")
        for geometry in ("square", "square_by_corners", "letterbox")
    },
    **{
        f"few-shot, {augment}": ("panet_generated", [*TWO_WAYS, f"data.augment={augment}"])
        for augment in ("msanet_pascal", "msanet_coco", "mm_former")
    },
    **{
        f"few-shot, drawn {draw}": ("panet_generated", [*SMALL, "data.shots=3", "data.queries=1", f"data.draw={draw}"])
        for draw in ("balanced", "panet", "list", "shuffled")
    },
    "few-shot, published PANet": (
        "panet_generated",
        [
            *TWO_WAYS,
            "data.draw=panet",
            "data.drop_novel=false",
            "data.ignore_in_support=background",
            "data.other_ways=background",
            "data.fold=2",
        ],
    ),
    "few-shot, least pixels of MM-Former": (
        "panet_generated",
        [*SMALL, "data.augment=mm_former", "data.least_query=150", "data.least_support=400"],
    ),
    "few-shot, a short list gone through again": (
        "panet_generated",
        [*SMALL, "data.episodes=3", "data.augment=msanet_pascal", "data.seed=5"],
    ),
    "few-shot, recipe of MSANet": (
        "msanet_generated",
        [*SMALL, "data.geometry=letterbox", "data.augment=msanet_pascal"],
    ),
    "few-shot, recipe of MM-Former": ("mm_former_generated", [*SMALL, "data.augment=mm_former"]),
    **{
        f"base classes, {augment}": ("pspnet_pascal5i", [*BASE_CLASSES, f"data.augment={augment}"])
        for augment in ("none", "flip", "msanet_base")
    },
    "base classes, flip, square": (
        "pspnet_pascal5i",
        [*BASE_CLASSES, "data.augment=flip", "data.geometry=square", "data.drop_novel=true", "engine.seed=7"],
    ),
    **{
        f"proposals, {augment}": ("mm_former_segmenter_generated", [*SMALL, f"data.augment={augment}"])
        for augment in ("none", "flip", "msanet_coco", "mm_former")
    },
    **{
        f"{truth}, {chain}": ("mask2former_generated", [*SCENES, f"data.truth={truth}", *overrides])
        for truth in ("semantic", "instance", "panoptic")
        for chain, overrides in CHAINS.items()
    },
    "instance, large_scale_jitter, empty objects kept": (
        "mask2former_generated",
        [
            *SCENES,
            "data.truth=instance",
            *CHAINS["large_scale_jitter"],
            "data.scales=[1.5,4.0]",
            "data.keep_empty=true",
        ],
    ),
    "semantic label maps": (
        "per_pixel_baseline_ade20k_semantic_r50",
        ["data.source=generated", "model.num_classes=8", *SCENES, *CHAINS["resize_crop"]],
    ),
    "videos, none": ("mask2former_vis_generated", [*VIDEOS, "data.augment=none"]),
    "videos, flip": ("mask2former_vis_generated", [*VIDEOS, "data.augment=flip", "data.frames=3", "data.reach=2"]),
    "videos, flip, resized": ("mask2former_vis_generated", [*VIDEOS, "data.augment=flip", "data.short_sides=[32,40]"]),
}

ITEMS: dict[str, Case] = {
    **{
        f"few-shot, {annotation}, {protocol}": (
            "panet_generated",
            [*TWO_WAYS, *EVALUATION, f"eval.annotation={annotation}", f"eval.protocol={protocol}"],
        )
        for annotation in ("mask", "box", "component_boxes", "scribble")
        for protocol in ("fssops", "panet")
    },
    **{
        f"few-shot, {annotation}, {geometry}": (
            "panet_generated",
            [*TWO_WAYS, *EVALUATION, f"eval.annotation={annotation}", f"data.geometry={geometry}"],
        )
        for annotation in ("mask", "box", "component_boxes", "scribble")
        for geometry in ("square_by_corners", "letterbox")
    },
    **{
        f"few-shot, {protocol}": (
            "panet_generated",
            [*SMALL, *EVALUATION, "eval.ways=1", "eval.queries=1", f"eval.protocol={protocol}", "data.fold=3"],
        )
        for protocol in ("msanet", "mm_former")
    },
    "few-shot with base labels": (
        "msanet_generated",
        [*SMALL, *EVALUATION, "eval.ways=1", "eval.queries=1", "eval.protocol=msanet", "data.geometry=letterbox"],
    ),
    "base classes, letterbox": ("pspnet_pascal5i", BASE_CLASSES),
    "base classes, square": ("pspnet_pascal5i", [*BASE_CLASSES, "data.geometry=square"]),
    "panoptic": ("mask2former_generated", [*SCENES, "eval.options={size=64,images=4}"]),
    "panoptic, resized": (
        "mask2former_generated",
        [*SCENES, "eval.options={size=64,images=4}", "eval.short_side=40", "eval.longest=50"],
    ),
    "videos": ("mask2former_vis_generated", ["eval.options={size=48,videos=3,frames=4}"]),
    "videos, resized": (
        "mask2former_vis_generated",
        ["eval.options={size=48,videos=3,frames=4}", "eval.short_side=32"],
    ),
}

ONE_STEP = ["schedule.steps=1", "engine.batch_size=2", "engine.workers=0", "data.too_few=skip"]
VOC = ["data.root={data}/voc_mini", "data.split=train", *ONE_STEP]
COCO = ["data.root={data}/coco_mini", "data.split=train2017", *ONE_STEP]
PANOPTIC = ["data.source=coco_panoptic", "data.root={data}/panoptic_sample", "data.split=val2017"]
DAVIS = ["data.source=ytvis", "data.root={data}/davis_mini", "model.num_classes=4"]
FIXED = ["engine.batch_size=2", "engine.workers=0"]
MEDIUM = ["data.size=[161,161]"]

REAL_TRAINING: dict[str, Case] = {
    "voc_mini, panet": ("panet_pascal5i", VOC),
    "voc_mini, panet, 2-way": ("panet_pascal5i", [*VOC, *MEDIUM, "data.ways=2", "data.fold=2"]),
    "voc_mini, msanet": ("msanet_pascal5i", [*VOC, "data.fold=1"]),
    "voc_mini, mm_former": ("mm_former_pascal5i", [*VOC, "data.fold=3"]),
    "voc_mini, base classes": ("pspnet_pascal5i", VOC[:-1]),
    "voc_mini, proposals": ("mm_former_segmenter_pascal5i", VOC),
    "coco_mini, panet": ("panet_coco20i", [*COCO, *MEDIUM, "data.ways=2"]),
    "coco_mini, msanet": ("msanet_coco20i", COCO),
    "coco_mini, mm_former": ("mm_former_coco20i", COCO),
    "coco_mini, base classes": ("pspnet_coco20i", COCO[:-1]),
    "coco_mini, proposals": ("mm_former_segmenter_coco20i", [*COCO, "data.fold=2"]),
    "coco_mini, instances": ("mask2former_coco_instance_r50", [*COCO[:2], *FIXED]),
    "coco_mini, instances, detr": (
        "mask2former_coco_instance_r50",
        [*COCO[:2], *FIXED, "data.augment=detr", "data.short_sides=[96,128]"],
    ),
    "panoptic_sample, large_scale_jitter": (
        "mask2former_coco_panoptic_r50",
        [*PANOPTIC, *FIXED, "data.side=320"],
    ),
    "panoptic_sample, detr": ("maskformer_coco_panoptic_r50", [*PANOPTIC, *FIXED, "data.short_sides=[160,192]"]),
    "camvid, resize_crop": ("mask2former_camvid", ["data.root={data}/camvid", *FIXED]),
    "camvid, category_share": (
        "mask2former_camvid",
        ["data.root={data}/camvid", *FIXED, "data.category_share=0.4", "data.crop=[64,64]"],
    ),
    "camvid as a folder of label maps": (
        "mask2former_camvid",
        ["data.source=label_folder", "data.root={data}/camvid", *FIXED, "data.split=val", "data.augment=flip"],
    ),
    "camvid as few-shot classes": (
        "panet_generated",
        ["data.source=auto", "data.root={data}/camvid", "data.split=val", "data.drop_novel=false", *MEDIUM, *ONE_STEP],
    ),
    "davis_mini": ("mask2former_vis_ytvis2019_r50", [*DAVIS, *FIXED, "data.short_sides=[96,120]"]),
}

REAL_ITEMS: dict[str, Case] = {
    "voc_mini, panet": ("panet_pascal5i", [*VOC, *MEDIUM, "eval.split=val", "eval.runs=1", "eval.episodes=3"]),
    "voc_mini, msanet": ("msanet_pascal5i", [*VOC, "eval.runs=1", "eval.episodes=3"]),
    "voc_mini, mm_former, boxes": (
        "mm_former_pascal5i",
        [*VOC, "eval.runs=1", "eval.episodes=3", "eval.annotation=box", "data.fold=2"],
    ),
    "coco_mini, panet, boxes": (
        "panet_coco20i",
        [*COCO, *MEDIUM, "eval.split=val2017", "eval.runs=1", "eval.episodes=3", "eval.annotation=box"],
    ),
    "coco_mini, msanet": ("msanet_coco20i", [*COCO, "eval.split=val2017", "eval.runs=1", "eval.episodes=3"]),
    "coco_mini, mm_former": ("mm_former_coco20i", [*COCO, "eval.runs=1", "eval.episodes=3"]),
    "voc_mini, base classes": ("pspnet_pascal5i", VOC[:-1]),
    "coco_mini, instances": ("mask2former_coco_instance_r50", [*COCO[:2], "eval.short_side=128"]),
    "panoptic_sample": (
        "mask2former_coco_panoptic_r50",
        [*PANOPTIC, "eval.split=val2017", "eval.short_side=200", "eval.options={}"],
    ),
    "camvid": ("mask2former_camvid", ["data.root={data}/camvid"]),
    "davis_mini": ("mask2former_vis_ytvis2019_r50", [*DAVIS, "eval.split=val", "eval.short_side=96"]),
}

BATCHES, ITEM_COUNT = 2, 2


def training_stream(case: Case, data: str = "") -> dict[str, Any]:
    """Fingerprint of the first batches of a training."""
    recipe, overrides = case
    count = 1 if data else BATCHES
    return fingerprint(surfaces.training_batches(recipe, [o.replace("{data}", data) for o in overrides], count))


def evaluation_stream(case: Case, data: str = "") -> dict[str, Any]:
    """Fingerprint of the first items of an evaluation."""
    recipe, overrides = case
    return fingerprint(surfaces.evaluation_items(recipe, [o.replace("{data}", data) for o in overrides], ITEM_COUNT))


@pytest.mark.parametrize("name", TRAINING)
def test_training_sees_the_same_items(name: str) -> None:
    assert differences(training_stream(TRAINING[name]), expected("items")["training"][name]) == []


@pytest.mark.parametrize("name", ITEMS)
def test_evaluation_sees_the_same_items(name: str) -> None:
    assert differences(evaluation_stream(ITEMS[name]), expected("items")["evaluation"][name]) == []


@pytest.mark.parametrize("name", REAL_TRAINING)
def test_training_sees_the_same_items_of_real_images(name: str, data_root: Path) -> None:
    found = training_stream(REAL_TRAINING[name], str(data_root))
    assert differences(found, expected("items_of_real_images")["training"][name]) == []


@pytest.mark.parametrize("name", REAL_ITEMS)
def test_evaluation_sees_the_same_items_of_real_images(name: str, data_root: Path) -> None:
    found = evaluation_stream(REAL_ITEMS[name], str(data_root))
    assert differences(found, expected("items_of_real_images")["evaluation"][name]) == []
