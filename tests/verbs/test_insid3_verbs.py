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
from fssops.tasks import load_task
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
    support, query = support_and_query(tmp_path)
    options = ["--option", "backbone=tiny", "--option", "components=4", "--size", 64]
    code, _, err = verb(
        "predict", "--model", "insid3", "--weights", checkpoint, *options, "--device", "cpu",
        *support, "--query", query, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    labels = Image.open(tmp_path / "out" / "q_labels.png")
    assert labels.size == (70, 50)
    model = fssops.create_model("insid3", backbone="tiny", components=4)
    assert fssops.load_weights(model, checkpoint).complete
    predictor = fssops.FewShotPredictor(model, size=64)
    predictor.set_support([tmp_path / "s.png"], [tmp_path / "m.png"])
    assert np.array_equal(np.asarray(labels), predictor.segment(tmp_path / "q.png").label_map)


def support_and_query(folder: Path) -> tuple[list[str | Path], Path]:
    """Arguments that name a labelled picture of 64 pixels, and another picture."""
    source = open_data("generated", split="test", truth="few-shot", size=64, images_per_class=4)
    name, query = source.images_of(5)[:2]
    source.image(name).save(folder / "s.png")
    Image.fromarray((source.label_map(name, [5]) == 5).astype(np.uint8) * 255).save(folder / "m.png")
    source.image(query).resize((70, 50)).save(folder / "q.png")
    return ["--support", folder / "s.png", folder / "m.png"], folder / "q.png"


def test_pictures_enter_at_64_patches_a_side_unless_told(checkpoint: Path, tmp_path: Path, verb: Any) -> None:
    support, query = support_and_query(tmp_path)
    options = ["--option", "backbone=tiny", "--option", "components=4", "--device", "cpu"]
    code, _, err = verb(
        "predict", "--model", "insid3", "--weights", checkpoint, *options,
        *support, "--query", query, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["size"] == [512, 512]
    assert "multiples of the patch" not in err


def test_a_size_that_is_no_multiple_of_the_patch_is_padded_and_said(
    checkpoint: Path, tmp_path: Path, verb: Any
) -> None:
    support, query = support_and_query(tmp_path)
    options = ["--option", "backbone=tiny", "--option", "components=4", "--device", "cpu", "--size", 61]
    with pytest.warns(UserWarning, match="multiples of the patch, 8, got 61 x 61; they are padded"):
        code, _, err = verb(
            "predict", "--model", "insid3", "--weights", checkpoint, *options,
            *support, "--query", query, "--out", tmp_path / "out",
        )  # fmt: skip
    assert code == 0, err


@pytest.mark.parametrize("recipe", ["insid3_coco20i", "insid3_coco20i_published"])
def test_published_recipes_have_the_published_settings(recipe: str) -> None:
    settings = load_task(recipe, []).settings
    model, published = settings.model.config, recipe.endswith("published")
    assert (settings.data.size, settings.data.definition, settings.eval.protocol) == ((1024, 1024), "msanet", "insid3")
    assert (model.cluster_similarity, model.merge_threshold, model.components) == (0.6, 0.2, None)
    assert (model.behaviour, model.refinement) == (("published", "crf") if published else ("sound", "none"))


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
