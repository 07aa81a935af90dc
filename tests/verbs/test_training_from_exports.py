"""From what a labelling tool wrote to a trained and evaluated model, in one command: a layout of each kind of truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import example_folders as folders

TINY = ["model.backbone=resnet18", "model.num_queries=4", "model.channels=32", "model.mask_channels=32"]
TINY += ["model.encoder_layers=1", "model.encoder_hidden=16", "model.decoder_layers=1", "model.decoder_hidden=16"]
TINY += ["model.train_points=64", "schedule.steps=1", "engine.workers=0", "eval.workers=0", "engine.accelerator=cpu"]
TINY += ["engine.tensorboard=false"]


@pytest.mark.parametrize(
    ("write", "layout", "classes", "score"),
    [
        (folders.yolo, "yolo", ["cat", "dog"], "AP"),
        (folders.colour_labels, "colour_labels", ["road", "car"], "mIoU"),
        (folders.youtube_vos, "youtube_vos", ["ape", "penguin"], "AP"),
    ],
)
def test_one_line_trains_on_what_a_tool_wrote(
    write: Callable[[Path], None], layout: str, classes: list[str], score: str, tmp_path: Path, verb: Any
) -> None:
    write(tmp_path / "data")
    settings = [part for override in TINY for part in ("--set", override)]
    run = tmp_path / "run"
    code, out, err = verb("train", "--data", tmp_path / "data", "--out", run, "--size", 64, "--batch", 1, *settings)
    assert code == 0, err
    assert f"data           {layout} " in out
    assert score in out
    assert [row["name"] for row in json.loads((run / "classes.json").read_text())["classes"]] == classes
