"""``python -m fssops.train --data FOLDER``: what is chosen, what is said of it, and what it leaves."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import example_folders as folders

import fssops
from fssops.engine.checkpoints import read_checkpoint, write_checkpoint
from fssops.engine.settings import SettingsError, read_recipe
from fssops.tasks import load_task, task_from_tables
from fssops.tasks.own_data import recipe_for
from fssops.tasks.support_options import supports_in
from fssops.tasks.trained_models import build_model, load_trained
from fssops.tasks.training import count_steps
from fssops.weights import CheckpointError, save_weights

SMALL = {"num_queries": 8, "channels": 32, "mask_channels": 32, "encoder_layers": 1, "encoder_hidden": 16}
SMALL |= {"decoder_layers": 1, "decoder_hidden": 16, "train_points": 64}
QUICK = ["model.backbone=resnet18", *(f"model.{name}={value}" for name, value in SMALL.items())]
QUICK += ["engine.workers=0", "engine.tensorboard=false", "engine.accelerator=cpu", "eval.workers=0"]


def arguments(*overrides: str) -> list[str]:
    return [part for override in (*QUICK, *overrides) for part in ("--set", override)]


def label_maps(root: Path, count: int = 10) -> Path:
    """Images of road and tree without splits, tree in every other one."""
    folders.label_folder(root)
    for number in range(count - 1):
        folders.save(root / "images" / f"n{number}.jpg", folders.picture(number))
        folders.save(root / "labels" / f"n{number}.png", folders.halves(0, number % 2))
    return root


def things(root: Path, **counts: int) -> Path:
    """Class folders with NAME.jpg and NAME_mask.png."""
    for name, count in counts.items():
        for number in range(count):
            folders.save(root / name / f"{number}.jpg", np.tile(folders.picture(number), (3, 3, 1)))
            folders.save(root / name / f"{number}_mask.png", np.tile(folders.halves(0, 255), (3, 3)))
    return root


def test_one_line_trains_and_leaves_a_recipe_that_trains_again(tmp_path: Path, verb: Any) -> None:
    data, run = label_maps(tmp_path / "street"), tmp_path / "run"
    code, out, err = verb("train", "--data", data, "--out", run, "--epochs", 1, "--size", 32, *arguments())
    assert code == 0, err
    for said in (
        "data           label_folder all: 10 images in",
        "task           semantic, the most specific that the files have truth for",
        "classes        2: road, tree",
        "split          train 8, val 2; each class in proportion, seed 1234",
        "so its scores there flatter a little",
        "weights        random; nothing is downloaded unasked (--weights ",
        "length         1 epochs of 8 images = 2 steps; as asked for",
        "mIoU",
    ):
        assert said in out, said
    lists = {part: (run / "splits" / f"{part}.txt").read_text().splitlines()[1:] for part in ("train", "val")}
    assert sorted(lists["train"] + lists["val"]) == sorted(["a", *(f"n{number}" for number in range(9))])
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["schedule"]["steps"], settings["schedule"]["epochs"]) == (2, 0)
    assert settings["optim"]["ema"] == 0.999
    assert (run / "metrics.csv").read_text().startswith("step,")
    recipe = read_recipe(run / "recipe.toml")
    assert recipe["data"]["split"] == str(run / "splits" / "train.txt")
    assert recipe["eval"]["split"] == settings["eval"]["split"] == str(run / "splits" / "val.txt")
    assert recipe["schedule"]["epochs"] == 1
    assert recipe["model"]["backbone_norm"] == "batch"  # frozen statistics of random weights would be wrong
    again = tmp_path / "again"
    code, _, err = verb("train", run / "recipe.toml", "--out", again, "--no-eval", "--set", "schedule.steps=1")
    assert code == 0, err
    assert read_checkpoint(again / "checkpoints" / "last.pt")["step"] == 1
    # Another training goes on from all of it but the head of its classes.
    folders.label_folder(tmp_path / "three", names='["road", "tree", "sky"]')
    tuned = ["train", "--data", tmp_path / "three", "--weights", run, "--out", tmp_path / "tuned", "--batch", 1]
    tuned += ["--freeze", "all", "--lr", "0.01", "--set", "schedule.steps=1", "--set", "engine.workers=0", "--no-eval"]
    code, out, err = verb(*tuned)
    assert code == 0, err
    assert "starts anew, other classes: transformer_decoder.class_embed.weight [3, 32] -> [4, 32]" in out
    assert "1 images are too few to hold any out: scores are of what was trained on" in out
    first, last = (read_checkpoint(path / "checkpoints" / "last.pt") for path in (run, tmp_path / "tuned"))
    name = next(key for key in first["model"] if key.startswith("backbone.") and key.endswith("weight"))
    assert torch.equal(first["model"][name], last["trained"][name])


def test_weights_for_other_classes_are_refused_unless_it_is_said(tmp_path: Path) -> None:
    options = {**load_task("mask2former_generated", QUICK).settings.model.options, "num_classes": 4, "things": None}
    save_weights(fssops.create_model("mask2former", **options), tmp_path / "m.safetensors")
    task = load_task("mask2former_generated", [*QUICK, f"model.weights={tmp_path}/m.safetensors"])
    with pytest.raises(CheckpointError, match=r"for 4; .* or train from these weights with model\.new_classes=true"):
        build_model(task.settings)


@pytest.mark.parametrize(
    ("make", "truth", "layout"),
    [
        (folders.coco_with_both, "panoptic", "coco_panoptic"),
        (folders.coco, "instance", "coco_instances"),
        (folders.voc, "instance", "voc"),
        (folders.splits_of_label_folders, "semantic", "label_folder"),
        (folders.class_folders, "few-shot", "folder"),
        (folders.ytvis, "video", "ytvis"),
    ],
)
def test_the_most_specific_truth_that_can_be_read_is_trained(
    tmp_path: Path, make: Callable[[Path], None], truth: str, layout: str
) -> None:
    make(tmp_path)
    own = recipe_for(tmp_path, overrides=["model.backbone=resnet18"])
    assert own.tables["data"]["source"] == layout
    assert own.choices[1] == ("task", f"{truth}, the most specific that the files have truth for")
    task = own.task()
    if truth in ("semantic", "instance", "panoptic"):
        assert task.settings.data.truth == truth
        assert task.settings.model.config.num_classes == (20 if layout == "voc" else 2)
    assert task.settings.engine.batch_size == (2 if truth in ("few-shot", "video") else 1)  # of as many items


def test_what_files_lack_is_told_and_the_next_form_of_truth_is_taken(tmp_path: Path) -> None:
    folders.voc(tmp_path)
    (tmp_path / "SegmentationObject" / "a.png").unlink()
    own = recipe_for(tmp_path, overrides=["model.backbone=resnet18"])
    assert own.tables["data"]["truth"] == "semantic"
    told = dict(own.choices)[""]
    assert told.startswith("not instance: ")
    assert "SegmentationObject" in told
    with pytest.raises(FileNotFoundError, match="SegmentationObject"):
        recipe_for(tmp_path, task="instance")


def test_splits_of_the_data_are_kept(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        folders.label_folder(tmp_path, f"{split}/images", f"{split}/masks")
    own = recipe_for(tmp_path, overrides=["model.backbone=resnet18"])
    assert own.division.made is None
    assert own.tables["data"]["split"] == "train"
    assert (own.tables["eval"]["split"], own.tables["eval"]["validation_split"]) == ("test", "valid")
    assert "flatter" not in str(own.choices)


def test_few_shot_trains_on_all_classes_and_is_scored_on_other_images_of_them(tmp_path: Path, verb: Any) -> None:
    data, run = things(tmp_path / "things", cup=6, pen=5, jar=1), tmp_path / "run"
    small = ["--set", "model.backbone=resnet18", "--set", "model.backbone_width=8", "--set", "engine.workers=0"]
    small += ["--set", "eval.episodes=3", "--set", "eval.validation_episodes=2", "--set", "engine.accelerator=cpu"]
    command = ["train", "--data", data, "--out", run, "--set", "schedule.steps=2", "--size", 32]
    code, out, err = verb(*command, *small, "--set", "engine.tensorboard=false")
    assert code == 0, err
    assert "3 training classes" in out
    assert "no class is held out; scores are of other images" in out
    assert "all (no class held out)" in out
    assert "novel" not in out
    held = (run / "splits" / "val.txt").read_text().splitlines()
    for name in ("cup", "pen"):
        assert sum(image.startswith(name) for image in held) >= 2
    code, _, err = verb(
        "predict", "--checkpoint", run, "--support", data, "--query", data / "cup", "--out", tmp_path / "o"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "o" / "summary.json").read_text())
    labels = np.asarray(Image.open(next((tmp_path / "o").glob("*_labels.png"))))
    assert labels.max() <= 3
    with pytest.raises(SettingsError, match=r"data\.folds must hold classes out"):
        load_task("msanet_generated", ["data.folds=all"])


def test_a_folder_of_supports_is_read_and_what_is_missing_is_named(tmp_path: Path, verb: Any) -> None:
    data = things(tmp_path / "things", cup=2, pen=1)
    assert [(s.way, Path(s.image).name, Path(str(s.mask)).name) for s in supports_in(data, "object")] == [
        ("cup", "0.jpg", "0_mask.png"),
        ("cup", "1.jpg", "1_mask.png"),
        ("pen", "0.jpg", "0_mask.png"),
    ]
    assert {s.way for s in supports_in(data / "cup", "mug")} == {"mug"}
    (data / "cup" / "1_mask.png").unlink()
    command = ["predict", "--support", data / "cup", "--query", data / "pen", "--out", tmp_path / "o"]
    code, _, err = verb(*command)
    assert (code, "1.jpg must have a mask" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = verb("predict", "--support", tmp_path / "empty", "--query", data, "--out", tmp_path / "o")
    assert (code, "must hold images with masks, or folders of these, got none" in err) == (2, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["panet_generated", "--epochs", "3"], "--epochs: must come with --data FOLDER"),
        (["panet_generated", "--data", "."], "--data: must come without a recipe and --resume"),
        (["--data", "nowhere"], "--data: nowhere must be a folder, got no such folder"),
        (["--data", "{}", "--task", "panoptic"], "folder must be of a layout with panoptic truth, got none"),
        (["--data", "{}", "--task", "depth"], "--task: must be one of few-shot, semantic, .* got 'depth'"),
        (["--data", "{}", "--model", "mask2fromer"], "got 'mask2fromer'; did you mean 'mask2former'"),
        (["--data", "{}", "--model", "msanet"], "--model: msanet is not trained on a folder alone"),
        (["--data", "{}", "--size", "8"], "--size: must be at least the backbone's stride 32, got 8"),
        (["--data", "{}", "--epochs", "0"], "--epochs: must be above 0, got 0"),
        (
            ["--data", "{}", "--set", "schedule.steps=5", "--set", "schedule.epochs=2.0"],
            "epochs must be 0 beside",
        ),
        (["--data", "{}", "--weights", "nothing.pt"], "--weights: path must exist"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    label_maps(tmp_path / "street", 3)
    code, _, err = verb("train", *(text.format(tmp_path / "street") for text in given))
    assert code == 2
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_change_of_the_length_replaces_the_other_way_to_say_it(tmp_path: Path) -> None:
    own = recipe_for(label_maps(tmp_path), epochs=3, batch=3, overrides=["model.backbone=resnet18"])
    task = task_from_tables(own.tables_in(tmp_path), "own")
    own.write(tmp_path)
    assert task.settings.schedule.epochs == 3
    count_steps(task)
    assert (task.settings.schedule.steps, task.settings.schedule.epochs) == (8, 0)
    tables = task.settings.as_tables()
    assert task_from_tables(tables, "run", ["schedule.epochs=2.0"]).settings.schedule.epochs == 2
    assert task_from_tables(own.tables, "own", ["schedule.steps=7"]).settings.schedule.steps == 7


def test_images_with_rare_classes_come_more_often_where_it_is_asked_for(tmp_path: Path) -> None:
    data = label_maps(tmp_path, 20)
    for number in range(19):
        folders.save(data / "labels" / f"n{number}.png", folders.halves(0, int(number == 4)))
    tables = recipe_for(data, overrides=["model.backbone=resnet18"]).tables
    for share, times in ((0.0, None), (0.4, 2.0)):
        changed = {**tables, "data": {**tables["data"], "rare_classes": share, "split": "all"}}
        task = task_from_tables(changed, "own")
        dataset, lines = task.training_data()
        if times is None:
            assert not hasattr(dataset, "repeats")
        else:
            often = [name for name, count in zip(dataset.names, dataset.repeats, strict=True) if count > 1]
            assert sorted(often) == ["a", "n4"]
            assert max(dataset.repeats) == pytest.approx(times)
            assert "22 a pass with repeats for rare classes" in lines[0]
            assert task.items_of_pass() == 22


def test_the_checkpoint_that_training_evaluated_is_taken(tmp_path: Path, tiny_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    state = torch.load(run / "checkpoints" / "best.pt")
    write_checkpoint(run / "checkpoints" / "best.pt", {**state, "step": 4}, spare=False)
    assert load_trained(run, None, []).label.endswith("step 6")
    assert load_trained(run, None, [], "best").label.endswith("step 4")
    settings = json.loads((run / "settings.json").read_text())
    settings["eval"]["checkpoint"] = "best"
    (run / "settings.json").write_text(json.dumps(settings))
    assert load_trained(run, None, []).label.endswith("step 4")
    assert load_trained(run, None, [], "last").label.endswith("step 6")
    (run / "checkpoints" / "best.pt").unlink()
    assert load_trained(run, None, []).label.endswith("step 6")
