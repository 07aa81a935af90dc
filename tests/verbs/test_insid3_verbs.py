"""INSID3 in the verbs: nothing to train, but weights of a backbone or a checkpoint segment and are evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fssops
from fssops.data.layouts import open_data
from fssops.models.backbones.vit import VIT, ViTForm
from fssops.weights import save_weights

TINY = ViTForm(8, 32, 2, 2, 64, registers=4, norm_eps=1e-5, qkv_bias="no_key")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT, "tiny", TINY)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "insid3.safetensors"
    save_weights(fssops.create_model("insid3", backbone="tiny", components=4), file)
    return file


def test_training_is_refused_in_one_line_before_anything_is_made(tmp_path: Path, verb: Any) -> None:
    code, out, err = verb("train", "insid3_pascal5i", "--set", "model.backbone=tiny", "--out", tmp_path / "run")
    assert code != 0
    assert err.strip().count("\n") == 0
    assert "model.name: a system to train must have losses, and insid3 needs no training" in err
    assert not out
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_segments_pictures(checkpoint: Path, tmp_path: Path, verb: Any) -> None:
    source = open_data("generated", split="test", truth="few-shot", size=64, images_per_class=4)
    name, query = source.images_of(5)[:2]
    source.image(name).save(tmp_path / "s.png")
    Image.fromarray((source.label_map(name, [5]) == 5).astype(np.uint8) * 255).save(tmp_path / "m.png")
    source.image(query).resize((70, 50)).save(tmp_path / "q.png")
    options = ["--option", "backbone=tiny", "--option", "components=4", "--size", 64]
    code, _, err = verb(
        "predict", "--model", "insid3", "--weights", checkpoint, *options, "--device", "cpu",
        "--support", tmp_path / "s.png", tmp_path / "m.png", "--query", tmp_path / "q.png", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    labels = Image.open(tmp_path / "out" / "q_labels.png")
    assert labels.size == (70, 50)
    model = fssops.create_model("insid3", backbone="tiny", components=4)
    assert fssops.load_weights(model, checkpoint).complete
    predictor = fssops.FewShotPredictor(model, size=64)
    predictor.set_support([tmp_path / "s.png"], [tmp_path / "m.png"])
    assert np.array_equal(np.asarray(labels), predictor.segment(tmp_path / "q.png").labels)


def test_its_recipe_evaluates_a_checkpoint(checkpoint: Path, tmp_path: Path, verb: Any) -> None:
    overrides = [
        *("model.backbone=tiny", "model.components=4", "data.size=[48,48]", "data.source=generated"),
        *("data.options={size=48,images_per_class=6}", "eval.runs=1", "eval.episodes=4", "eval.pictures=1"),
        "engine.accelerator=cpu",
    ]
    settings = [part for override in overrides for part in ("--set", override)]
    code, out, err = verb(
        "evaluate", checkpoint, "--recipe", "insid3_pascal5i", *settings, "--out", tmp_path / "scores"
    )
    assert code == 0, err
    assert "mIoU" in out
    assert json.loads(next((tmp_path / "scores").rglob("*.json")).read_text())
