"""``data check`` counts what a recipe's model can make nothing of, copies of pictures, and objects to learn from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_folder import annotation, box, write_videos

from fssops.data.__main__ import main
from fssops.data.check import Finding, Report, check_data
from fssops.data.check_facts import Limits
from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.few_shot_source import FewShotSource
from fssops.data.folds import split_classes
from fssops.data.layouts import open_data
from fssops.data.preparation import FewShotPreparation
from fssops.evaluation.episodes import count_supports
from fssops.facts import Facts
from fssops.protocols import PROTOCOLS

CASES = Path(os.environ.get("FSSOPS_CASES", Path(__file__).resolve().parents[3] / "shared" / "cases"))


def rows(count: int, **further: Any) -> list[dict[str, Any]]:
    """Annotations of squares of 8 pixels in image 1."""
    corners = [(9 * (number % 6), 9 * (number // 6)) for number in range(count)]
    return [
        {"image_id": 1, "category_id": 1, "segmentation": [[x, y, x + 8, y, x + 8, y + 8, x, y + 8]], **further}
        for x, y in corners
    ]


def of_kind(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def test_crowds_and_objects_beyond_the_queries_are_counted_of_each_split(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([*rows(7), *rows(2, iscrowd=1)])
    coco_folder(rows(3), split="val2017")
    report = check_data("coco_instances", root, limits=Limits(queries=4))
    assert report.facts["train2017"].state() == {"crowd_regions": [2, 9], "unmatched_objects": [3, 7]}
    assert report.facts["val2017"].state() == {"crowd_regions": [0, 3], "unmatched_objects": [0, 3]}
    assert {split: row["objects"] for split, row in report.splits.items()} == {"train2017": 7, "val2017": 3}
    assert report.as_dict()["facts"]["val2017"]["unmatched_objects"] == {"count": 0, "of": 3}


@pytest.mark.parametrize("truth", ["instance", "few-shot"])
@pytest.mark.parametrize("iscrowd", [1, "1"])
def test_a_split_of_crowds_alone_has_nothing_to_learn(
    coco_folder: Callable[..., Path], iscrowd: Any, truth: Any
) -> None:
    report = check_data("coco", coco_folder(rows(5, iscrowd=iscrowd)), truth=truth)
    (finding,) = of_kind(report, "nothing_to_learn")
    assert finding.severity == "problem"
    assert "at least one object to learn from, got 5 crowd regions alone (iscrowd 1" in finding.message
    (finding,) = of_kind(check_data("coco", coco_folder([]), truth=truth), "nothing_to_learn")
    assert finding.message.endswith("got none")


def test_videos_of_crowds_alone_have_nothing_to_learn(tmp_path: Path) -> None:
    from fssops.data.datasets.clips import TrainingClips

    crowd = annotation(1, 1, 3, [box(2), None], iscrowd=1)
    root = write_videos(tmp_path, [crowd], lengths=(2, 1))
    (finding,) = of_kind(check_data("ytvis", root), "nothing_to_learn")
    assert "got 1 crowd regions alone" in finding.message
    with pytest.raises(ValueError, match=r"at least one object to learn from, got 2 videos without one \(crowd"):
        TrainingClips(open_data("ytvis", root, truth="video"), lambda scene, rng: scene)


def small_objects(root: Path) -> Path:
    """Two classes a folder each, of 10 images: objects of 1 and of 20 pixels a side."""
    for place, kind in enumerate(("dot", "square", "third", "fourth")):
        for number in range(10):
            mask = np.zeros((50, 70), dtype=np.uint8)
            side = 1 if kind == "dot" and number % 2 else 20
            mask[7 + number : 7 + number + side, 11:31][:, :side] = 255
            rng = np.random.default_rng([number, place])
            for folder, values in (("images", rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)), ("masks", mask)):
                (root / kind / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / kind / folder / f"{number}.png")
    return root


@pytest.mark.parametrize("geometry", ["square", "square_by_corners", "letterbox"])
def test_objects_that_are_gone_at_the_network_size_are_those_that_evaluation_counts(
    tmp_path: Path, geometry: str
) -> None:
    root, preparation = small_objects(tmp_path), FewShotPreparation((16, 16), geometry)
    counts = check_data("folder", root, limits=Limits(preparation=preparation)).facts["all"].state()["empty_supports"]
    source = open_data("folder", root, truth="few-shot")
    assert isinstance(source, FewShotSource)
    evaluated = Facts()
    for number in source.classes:
        names = source.images_of(number)
        episodes = EpisodeList.draw(source, [number], episodes=1)
        specs = [replace(episodes[0], support=((name,),), query=(names[0],)) for name in names]
        dataset = EpisodeDataset(source, replace(episodes, episodes=tuple(specs)), (16, 16), geometry=geometry)
        for index in range(len(dataset)):
            count_supports(evaluated, dataset[index], PROTOCOLS["fssops"])
    assert counts == evaluated.state()["empty_supports"]
    assert 0 < counts[0] < counts[1] == 40


def test_novel_classes_in_training_images_are_counted_by_what_becomes_of_them(voc_folder: Path) -> None:
    fold = split_classes(range(1, 21), 1)  # tests classes 6 to 10: image 0 shows class 7
    report = check_data("voc", voc_folder, fold=fold, limits=Limits(novel_images="ignored"))
    assert report.facts["train"].state()["novel_images_ignored"] == [1, 9]
    assert "novel_images_ignored" not in report.facts["val"].counts
    (note,) = of_kind(check_data("voc", voc_folder, fold=fold), "fold_leakage")
    assert note.message.startswith("1 of 9 images hold novel classes")


def test_copies_are_found_within_every_split_and_between_choosing_and_reporting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(3):
            for folder, values in (
                ("images", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)),
                ("labels", np.tile(np.arange(30, dtype=np.uint8) % 2, (20, 1))),
            ):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / folder / split / f"{split}{number}.png")
    (tmp_path / "classes.json").write_text('["background", "cat"]')
    assert check_data("label_folder", tmp_path).findings == []
    images = tmp_path / "images"
    (images / "val" / "val2.png").write_bytes((images / "val" / "val0.png").read_bytes())
    Image.open(images / "val" / "val1.png").save(images / "test" / "test1.bmp")  # the same pixels in other bytes
    (images / "test" / "test1.png").unlink()
    found = {(f.kind, f.where, f.message, f.severity) for f in check_data("label_folder", tmp_path).findings}
    assert found == {
        ("duplicate_id", "val: val2", "val0 and val2 are the same picture", "note"),
        ("split_leakage", "val / test", "test1 of test must not be in val, got the same picture as val1", "problem"),
    }
    few_shot = check_data("label_folder", tmp_path, truth="few-shot").findings
    assert {(f.kind, f.severity) for f in few_shot} == {("duplicate_id", "problem"), ("fold_leakage", "problem")}


def test_episodes_whose_support_is_a_copy_of_the_query_are_found_by_their_pixels(tmp_path: Path) -> None:
    root = small_objects(tmp_path)
    (root / "dot" / "images" / "3.png").write_bytes((root / "dot" / "images" / "4.png").read_bytes())
    source = open_data("folder", root, truth="few-shot")
    assert isinstance(source, FewShotSource)
    episodes = EpisodeList.draw(source, [1], episodes=2)
    copy = replace(episodes[0], support=(("dot/3.png",),), query=("dot/4.png",))
    other = replace(episodes[0], support=(("dot/3.png",),), query=("dot/5.png",))
    listed = replace(episodes, episodes=(other, copy))
    found = [f.message for f in of_kind(check_data("folder", root, test_episodes=listed), "fold_leakage")]
    assert found == [
        "episode 1: support and query must be different images, got 'dot/4.png', the same picture as 'dot/3.png'"
    ]


def test_a_recipe_says_what_is_counted_and_where_the_data_are(
    coco_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco_folder([*rows(7), *rows(1, iscrowd=1)])
    recipe = ("--recipe", "mask2former_coco_instance_r50", "--set", "model.num_queries=6", "--json", "-")
    assert main(["check", str(root), "--truth", "instance", *recipe]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["facts"]["train2017"]["unmatched_objects"] == {"count": 1, "of": 7}
    assert main(["check", *recipe, "--set", f"data.root={root}"]) == 0
    assert json.loads(capsys.readouterr().out) == given
    assert main(["check", str(root), "--truth", "instance", *recipe[:-2]]) == 0
    assert "train2017: 1 of 7 objects beyond the number of queries of their image or video" in capsys.readouterr().out


def test_a_few_shot_recipe_says_fold_size_and_fate_of_novel_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.source=folder", f"data.root={small_objects(tmp_path)}", "data.options={}", "data.folds=custom"]
    arguments = [part for text in [*settings, "data.size=[24,24]"] for part in ("--set", text)]
    assert main(["check", "--recipe", "panet_generated", *arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["facts"]["all"]
    assert found["empty_supports"]["of"] == 40
    assert found["empty_supports"]["count"] > 0


@pytest.mark.parametrize(
    ("case", "options", "code", "told"),
    [
        ("shapes", (), 1, "class_mismatch"),
        ("label_folder_255", (), 0, "read_as"),
        ("label_folder_255", ("--truth", "semantic"), 0, "read_as"),
    ],
)
def test_shared_cases(
    case: str, options: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not CASES.is_dir():
        pytest.skip(f"no folder {CASES}; set FSSOPS_CASES to run this test")
    assert main(["check", str(CASES / case), *options, "--json", "-"]) == code
    assert told in json.loads(capsys.readouterr().out)["counts"]


@pytest.mark.skipif(not (CASES / "coco_json").is_dir(), reason=f"no folder {CASES}; set FSSOPS_CASES to run this test")
@pytest.mark.parametrize("case", sorted(path.name for path in (CASES / "coco_json").glob("*")) or ["none"])
def test_shared_cases_of_coco_files_end_in_a_report(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = CASES / "coco_json" / case
    assert main(["check", str(root), "--truth", "instance", "--json", "-"]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] or "unreadable_layout" in report["counts"] or "duplicate_id" in report["counts"]
