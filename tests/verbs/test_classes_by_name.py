"""A number stands for a class only as long as its name does: data whose numbers mean something else are refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fssops.engine.settings import SettingsError
from fssops.tasks import load_task
from fssops.tasks.class_names import classes_of_run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from example_folders import coco, coco_json, label_folder, picture, save

EXCHANGED = [{"id": 3, "name": "sky", "isthing": 1}, {"id": 7, "name": "cat", "isthing": 0}]
TINY = ["model.backbone=resnet18", "model.channels=32", "model.mask_channels=32"]


def instances(root: Path, **val: Any) -> list[str]:
    coco(root)
    save(root / "val" / "a.jpg", picture())
    coco_json(root / "annotations" / "instances_val.json", **val)
    return [f"data.root={root}", "data.split=train", "eval.split=val", "model.num_classes=2"]


def opened(recipe: str, overrides: list[str]) -> Any:
    task = load_task(recipe, [*TINY, *overrides])
    task.source()
    return task.source(evaluation=True)


def test_splits_with_the_same_names_are_opened(tmp_path: Path) -> None:
    assert opened("mask2former_coco_instance_r50", instances(tmp_path)).classes.names == ["cat", "sky"]


def test_a_split_with_exchanged_ids_is_refused(tmp_path: Path) -> None:
    overrides = instances(tmp_path, categories=EXCHANGED)
    with pytest.raises(SettingsError, match=r"got 'sky' as class 0, which is 'cat' to the model"):
        opened("mask2former_coco_instance_r50", overrides)


def test_a_folder_of_labels_with_exchanged_names_is_refused(tmp_path: Path) -> None:
    label_folder(tmp_path / "mine")
    label_folder(tmp_path / "theirs", names='["tree", "road"]')
    overrides = ["data.source=label_folder", f"data.root={tmp_path}/mine", "model.num_classes=2", 'data.split=""']
    overrides += [f"eval.root={tmp_path}/theirs", 'eval.split=""', "data.truth=semantic", 'model.tasks=["semantic"]']
    with pytest.raises(SettingsError, match=r"got 'tree' as class 0, which is 'road' to the model"):
        opened("mask2former_camvid", overrides)


def test_spelling_in_capitals_is_the_same_name(tmp_path: Path) -> None:
    label_folder(tmp_path / "mine")
    label_folder(tmp_path / "theirs", names='["Road", "TREE"]')
    overrides = ["data.source=label_folder", f"data.root={tmp_path}/mine", "model.num_classes=2", 'data.split=""']
    overrides += [f"eval.root={tmp_path}/theirs", 'eval.split=""', "data.truth=semantic", 'model.tasks=["semantic"]']
    assert opened("mask2former_camvid", overrides).classes.names == ["Road", "TREE"]


def relabelled(run: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a run that says of its model that it has other classes."""
    shutil.copytree(run, folder)
    content = json.loads((folder / "classes.json").read_text())
    change(content)
    (folder / "classes.json").write_text(json.dumps(content))
    return folder


def test_a_few_shot_run_knows_its_classes(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    def exchange(content: Any) -> None:
        numbers = content["numbers"]
        numbers["1"], numbers["2"] = numbers["2"], numbers["1"]

    run = relabelled(tiny_run, tmp_path / "run", exchange)
    code, _, errors = verb("evaluate", run, "--out", tmp_path / "scores")
    assert code == 2
    assert "must be those that the model was trained for" in errors
    code, _, errors = verb("train", "--resume", run, "--set", "schedule.steps=30")
    assert code == 2
    assert "as class 1, which is" in errors


def test_a_damaged_list_of_classes_is_told(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    run = relabelled(tiny_run, tmp_path / "run", lambda content: content.update(numbers=[1, 2]))
    code, _, errors = verb("evaluate", run, "--out", tmp_path / "scores")
    assert code == 2
    assert "classes.json: must list the classes of the run" in errors


def test_the_classes_of_a_data_set_beside_a_weights_file_are_not_taken_for_a_run_s(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["road", "tree"]')
    weights = tmp_path / "weights" / "model.pth"
    assert classes_of_run(weights) is None
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SettingsError, match="must list the classes of the run"):
        classes_of_run(weights)
