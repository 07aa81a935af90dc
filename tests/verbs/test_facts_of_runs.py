"""What changes no score is counted by evaluations and trainings of every kind, and told in line, table and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipe
import tiny_universal
from PIL import Image

from fssops.recipes import list_recipes
from fssops.tasks import load_task

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def class_folders(root: Path, sizes: dict[str, list[int]]) -> Path:
    """A folder a class; each image of 64 x 64 shows a square of so many pixels a side at an odd place."""
    rng = np.random.default_rng(0)
    for name, sides in sizes.items():
        for number, side in enumerate(sides):
            mask = np.zeros((64, 64))
            mask[31 : 31 + side, 31 : 31 + side] = 255
            save(root / name / "images" / f"{number}.png", rng.integers(0, 256, (64, 64, 3)))
            save(root / name / "masks" / f"{number}.png", mask)
    return root


def evaluate_folder(verb: Any, root: Path, out: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """Evaluate an untrained PANet on the first class of a folder; results and standard output."""
    settings = ["data.source=folder", f"data.root={root}", "data.options={}", "data.folds=custom", "eval.split=all"]
    settings += ["data.size=[16,16]", "eval.runs=1", "eval.episodes=12", *overrides]
    arguments = tiny_recipe.settings_arguments(*settings)
    code, printed, err = verb("evaluate", "--recipe", "panet_generated", "--out", out, *arguments)
    assert code == 0, err
    return json.loads((out / "results.json").read_text())["folds"][0], printed


SOUND = {name: [30, 30, 30] for name in "bcd"}


def test_supports_that_vanish_are_counted_and_left_out_where_settings_say_so(tmp_path: Path, verb: Any) -> None:
    root = class_folders(tmp_path / "data", {"a": [30, 30, 1, 1], **SOUND})
    kept, printed = evaluate_folder(verb, root, tmp_path / "kept")
    found = kept["facts"]["empty_supports"]
    assert 0 < found["count"] < found["of"] == 12
    assert f"{found['count']} of 12 supports without a pixel of their class" in kept["line"]
    assert "known of the items" in printed
    assert "skipped_episodes" not in kept["facts"]
    skipped, _ = evaluate_folder(verb, root, tmp_path / "skipped", "eval.empty_support=skip")
    assert skipped["facts"]["skipped_episodes"] == found
    unscored = [iou for iou in skipped["episode_iou"][0] if iou is None]
    assert len(unscored) >= found["count"]
    code, _, err = verb(
        *("evaluate", "--recipe", "panet_generated", "--out", tmp_path / "error"),
        *tiny_recipe.settings_arguments(
            *("data.source=folder", f"data.root={root}", "data.options={}", "data.folds=custom", "eval.split=all"),
            *("data.size=[16,16]", "eval.runs=1", "eval.episodes=12", "eval.empty_support=error"),
        ),
    )
    assert code == 2
    assert "support must show class 'a' (1) at (16, 16), got no pixel of it" in err


def test_one_photo_under_two_names_is_counted_where_it_is_support_and_query(tmp_path: Path, verb: Any) -> None:
    root = class_folders(tmp_path / "data", {"a": [30, 20], **SOUND})
    # The same pixels in another file: other bytes, another name.
    Image.open(root / "a" / "images" / "0.png").save(root / "a" / "images" / "1.bmp")
    (root / "a" / "images" / "1.png").unlink()
    copied, _ = evaluate_folder(verb, root, tmp_path / "copied")
    assert copied["facts"]["copied_supports"] == {"count": 12, "of": 12}
    assert "12 of 12 episodes with one picture as support and query" in copied["line"]
    sound = class_folders(tmp_path / "sound", {"a": [30, 20], **SOUND})
    fine, printed = evaluate_folder(verb, sound, tmp_path / "fine")
    assert fine["facts"]["copied_supports"] == {"count": 0, "of": 12}
    assert "one picture" not in fine["line"]
    assert "known of the items" not in printed


def coco_folder(root: Path, objects: int, crowds: int = 0, iscrowd: Any = 1) -> Path:
    """Two splits of one image with so many small objects and crowd regions."""
    rows = []
    for number in range(objects + crowds):
        x, y = 8 * (number % 7), 8 * (number // 7)
        polygon = [[x, y, x + 6, y, x + 6, y + 6, x, y + 6]]
        crowd = iscrowd if number >= objects else 0
        row = {"id": number + 1, "image_id": 1, "category_id": 1, "segmentation": polygon, "iscrowd": crowd}
        rows.append(row)
    images = [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    for number, split in enumerate(("train", "val")):
        save(root / split / "a.png", np.random.default_rng(number).integers(0, 256, (64, 64, 3)))
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def instance_settings(root: Path, *overrides: str) -> list[str]:
    settings = ["data.source=coco_instances", f"data.root={root}", "data.truth=instance", "model.num_classes=1"]
    settings += ['model.tasks=["instance"]', "model.things=[0]", "eval.options={}", "engine.best_metric=val/ap"]
    return [*tiny_universal.TINY, *settings, "data.options={}", *overrides]


def test_objects_beyond_the_queries_are_told_at_the_start_of_training_and_in_results(
    tmp_path: Path, verb: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = coco_folder(tmp_path / "data", objects=12, crowds=3)
    settings = [part for text in instance_settings(root, "model.num_queries=5") for part in ("--set", text)]
    code, _, err = verb("train", "mask2former_generated", "--out", tmp_path / "run", *settings)
    assert code == 0, err
    assert "1 images, 12 objects to learn from" in caplog.text
    assert "known of them  3 of 15 objects that are crowd regions (iscrowd), which train nothing" in caplog.text
    assert "known of them  7 of 12 objects beyond the number of queries of their image or video" in caplog.text
    entries = json.loads((tmp_path / "run" / "result.json").read_text())
    trained = entries["trained"]
    assert entries["untrained"]["training_facts"] == {}
    assert trained["facts"] == {"unmatched_objects": {"count": 7, "of": 12}}
    assert trained["training_facts"]["crowd_regions"] == {"count": 3, "of": 15}
    code, _, err = verb("evaluate", tmp_path / "run", "--out", tmp_path / "again")
    assert code == 0, err
    result = json.loads((tmp_path / "again" / "results.json").read_text())["results"][0]
    assert result["facts"] == trained["facts"]
    assert result["training_facts"] == trained["training_facts"], "a run keeps what was counted of its data"
    assert "in training 7 of 12 objects beyond the number of queries" in result["line"]
    (tmp_path / "run" / "facts.json").write_text('{"unmatched_objects": 3}')
    code, _, err = verb("evaluate", tmp_path / "run", "--out", tmp_path / "damaged")
    assert code == 2
    assert "facts.json: must hold the counts of the run's data" in err


def test_segments_and_tracks_beyond_the_queries_are_counted_too() -> None:
    scenes = load_task("mask2former_generated", [*tiny_universal.TINY, "model.num_queries=3"])
    _, lines = scenes.training_data()
    truths = [scenes.source().truth(name) for name in scenes.source().names]
    segments = [len(truth.segments) for truth in truths]
    assert scenes.training_facts.state() == {
        "crowd_regions": [0, sum(segments)],
        "unmatched_objects": [sum(max(0, count - 3) for count in segments), sum(segments)],
    }
    assert f"{sum(segments)} objects to learn from" in lines[0]
    videos = load_task("mask2former_vis_generated", ["data.options={size=48,videos=8,frames=5}", "model.num_queries=1"])
    videos.training_data()
    tracks = [len(videos.source().tracks(name)) for name in videos.source().names]
    assert videos.training_facts.state()["unmatched_objects"] == [sum(tracks) - len(tracks), sum(tracks)]


def test_crowds_alone_are_no_objects_to_learn_from(tmp_path: Path, verb: Any) -> None:
    for number, iscrowd in enumerate((1, "1", 1.0)):
        root = coco_folder(tmp_path / str(number), objects=0, crowds=4, iscrowd=iscrowd)
        settings = [part for text in instance_settings(root) for part in ("--set", text)]
        code, _, err = verb("train", "mask2former_generated", "--out", tmp_path / "run", *settings)
        assert code == 2
        assert "at least one object to learn from, got 1 images without one (crowd regions, iscrowd 1" in err


def test_novel_classes_in_training_images_are_counted_by_what_becomes_of_them() -> None:
    shown = {"panet_generated": "dropped", "mm_former_generated": "kept", "mm_former_segmenter_generated": "ignored"}
    for recipe, fate in shown.items():
        task = load_task(recipe, ["data.options={size=48,images_per_class=4}", "data.size=[48,48]"])
        task.training_data()
        source = task.source()
        novel = set(task.fold_classes(0, source).test)
        count = sum(bool(novel & set(source.classes_of(name))) for name in source.names)
        assert 0 < count < len(source.names)
        assert task.training_facts.state() == {f"novel_images_{fate}": [count, len(source.names)]}


def test_what_counts_survives_an_interruption(tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fssops.engine.progress import ProgressBar

    root = class_folders(tmp_path / "data", {"a": [30, 30, 1, 1], **SOUND})
    whole, _ = evaluate_folder(verb, root, tmp_path / "whole")
    advance, seen = ProgressBar.advance, []

    def interrupted(bar: ProgressBar, count: int = 1) -> None:
        seen.append(count)
        if len(seen) == 7:
            raise KeyboardInterrupt
        advance(bar, count)

    monkeypatch.setattr(ProgressBar, "advance", interrupted)
    with pytest.raises(AssertionError):
        evaluate_folder(verb, root, tmp_path / "parts")
    parts, _ = evaluate_folder(verb, root, tmp_path / "parts")
    assert len(seen) == 12, "the rest alone was counted"
    assert parts["facts"] == whole["facts"]


@pytest.mark.parametrize("recipe", list_recipes())
def test_the_best_checkpoint_is_not_chosen_on_the_split_that_is_reported_as_test(recipe: str) -> None:
    task = load_task(recipe)
    first = task.first_stage(Path("run"))
    for settings in (task.settings, *([first.task.settings] if first else [])):
        rules = settings.eval
        chosen_by = getattr(rules, "validation_split", None) or rules.split
        validates = settings.engine.validate_every and getattr(rules, "validation_episodes", 1)
        assert not validates or not str(chosen_by).startswith("test")
