"""Train, evaluate and predict with MP-Former on a tiny recipe; its measures beside Mask2Former's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_universal import settings_arguments

from fssops.engine.metrics_log import read_metrics

LAYERS = settings_arguments("model.decoder_layers=2")


@pytest.fixture(scope="module")
def mp_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; do not write into it."""
    from fssops.train import main

    folder = tmp_path_factory.mktemp("mp_former") / "run"
    assert main(["mp_former_generated", "--out", str(folder), *LAYERS]) == 0
    return folder


def test_training_shows_piloted_losses_and_the_layer_measures(mp_run: Path) -> None:
    records = read_metrics(mp_run / "metrics.jsonl")
    training = next(record for record in records if "loss" in record)
    assert {"loss_ce_dn", "loss_mask_dn_0", "loss_dice_dn_1"} <= training.keys()
    validation = next(record for record in records if "val/pq" in record)
    assert 0 <= validation["val/layer_agreement"] <= 1
    assert 0 <= validation["val/query_utilisation"] <= 1
    result = json.loads((mp_run / "result.json").read_text())
    for who in ("trained", "untrained"):
        assert len(result[who]["layers"]["agreement"]) == len(result[who]["layers"]["utilisation"]) == 2


def test_evaluation_prints_a_table_of_layers_and_says_the_same_again(mp_run: Path, tmp_path: Path, verb: Any) -> None:
    found = []
    for name in ("first", "second"):
        code, out, err = verb("evaluate", mp_run, "--out", tmp_path / name, "--set", "eval.pictures=0")
        assert code == 0, err
        assert "agreement with the layer before" in out
        assert "layer agreement" in out.splitlines()[-3]
        result = json.loads((tmp_path / name / "results.json").read_text())["results"][0]
        found.append((result["layers"], result["scores"]))
    assert found[0] == found[1]


def test_evaluation_of_one_model_does_not_depend_on_how_the_images_are_spread(mp_run: Path, verb: Any) -> None:
    """The matcher's points belong to the image: fewer images give these images' own measures."""
    from lightning.fabric import Fabric

    from fssops.tasks import task_of
    from fssops.tasks.trained_models import load_for_use

    settings, model, label = load_for_use(mp_run, None, [])
    task, fabric = task_of(settings), Fabric(accelerator="cpu", devices=1)
    task.chosen = lambda limit: [1, 2]
    both = task.evaluate(model, fabric, label, "")
    singles = []
    for number in (1, 2):
        task.chosen = lambda limit, number=number: [number]
        singles.append(task.evaluate(model, fabric, label, "").measured["layers"])
    low = [min(values) for values in zip(*(one.utilisation for one in singles), strict=True)]
    high = [max(values) for values in zip(*(one.utilisation for one in singles), strict=True)]
    assert all(a <= value <= b for a, value, b in zip(low, both.measured["layers"].utilisation, high, strict=True))


def test_mask2former_is_measured_where_it_is_asked_for(tmp_path: Path, verb: Any) -> None:
    sets = [*LAYERS, "--set", "eval.pictures=0", "--out", tmp_path / "out"]
    code, out, err = verb("evaluate", "--recipe", "mask2former_generated", *sets)
    assert code == 0, err
    assert "layer agreement" not in out
    code, out, err = verb("evaluate", "--recipe", "mask2former_generated", *sets, "--set", "eval.layer_measures=true")
    assert code == 0, err
    assert "queries of use in the end" in out


def test_scores_are_the_same_with_and_without_the_measures(mp_run: Path, tmp_path: Path, verb: Any) -> None:
    scores = []
    for choice in ("true", "false"):
        sets = ["--set", "eval.pictures=0", "--set", f"eval.layer_measures={choice}", "--out", tmp_path / choice]
        assert verb("evaluate", mp_run, *sets)[0] == 0
        scores.append(json.loads((tmp_path / choice / "results.json").read_text())["results"][0]["scores"])
    assert set(scores[0]) - set(scores[1]) == {"layer agreement", "query utilisation"}
    assert all(scores[0][name] == value for name, value in scores[1].items())


def test_systems_without_masked_attention_cannot_be_measured(tmp_path: Path, verb: Any) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name = "mine"\n[model]\nname = "maskformer"\nbackbone = "resnet18"\nnum_classes = 8\nnum_queries = 5\n'
        'channels = 32\nmask_channels = 32\ntasks = ["semantic"]\n[data]\noptions = { size = 48, images = 2 }\n'
        "[eval]\nlayer_measures = true\noptions = { size = 48, images = 2 }\n"
    )
    code, _, err = verb("evaluate", "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 2
    assert "eval.layer_measures must be off but for mask2former and mp_former" in err
    assert "Traceback" not in err


def test_prediction_works_as_mask2formers(mp_run: Path, tmp_path: Path, verb: Any) -> None:
    photo = tmp_path / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(photo)
    code, _, err = verb("predict", "--checkpoint", mp_run, "--query", photo, "--out", tmp_path / "out")
    assert code == 0, err
    assert list((tmp_path / "out").rglob("*street*"))


def test_bad_noise_in_a_recipe_is_told_in_one_line(verb: Any) -> None:
    sets = ["--set", 'model.pilot_mode="shift"', "--set", "model.noise_scale=0"]
    code, _, err = verb("train", "mp_former_generated", *sets)
    assert code == 2
    assert "noise_scale must be more than 0 in mode shift" in err
    assert "Traceback" not in err
