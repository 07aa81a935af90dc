"""save_pretrained and from_pretrained: every system as a folder and as a file; hostile descriptions are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fssops
from fssops.models.backbones.vit import VIT, ViTForm
from fssops.weights import CheckpointError, read_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from tiny_systems import tiny_settings

from fssops.tasks.trained_models import empty_model

CLASSES = {"classes": [{"id": 3, "name": "cup", "isthing": 1}]}
TINY_VIT = ViTForm(8, 32, 2, 2, 64, registers=4, norm_eps=1e-5, qkv_bias="no_key")


def tiny_model(system: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    if system == "insid3":
        monkeypatch.setitem(VIT, "tiny", TINY_VIT)
        return fssops.create_model("insid3", backbone="tiny", components=4)
    if system == "prototype_matching":
        return fssops.create_model(system)
    return empty_model(tiny_settings(system))


@pytest.mark.parametrize("system", fssops.list_models())
@pytest.mark.parametrize("target", ["folder", "file.safetensors"])
def test_a_system_is_built_again_with_its_configuration_and_weights(
    system: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(system, monkeypatch)
    preprocessing = {"data": {"size": [64, 48]}}
    fssops.save_pretrained(model, tmp_path / target, classes=CLASSES, preprocessing=preprocessing)
    again = fssops.from_pretrained(tmp_path / target)
    assert again.config == model.config
    assert not again.training
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    checkpoint = read_weights(tmp_path / target)
    assert (checkpoint.classes, checkpoint.preprocessing) == (CLASSES, preprocessing)


def test_what_is_no_system_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must be one of panet, .*, got Linear"):
        fssops.save_pretrained(nn.Linear(2, 2), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_weights_that_say_nothing_of_their_model_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="must say which model it is of, got tensors alone"):
        fssops.from_pretrained(tmp_path / "w.pth")


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        table = config["fssops_config"] if key in config["fssops_config"] else config
        table[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("fssops_model", "os.system"), "name must be one of panet"),
        (_set("fssops_model", ["panet"]), "fssops_model must be a name, got"),
        (_set("fssops_config", [1]), "fssops_config must be a JSON object, got"),
        (_set("fssops_classes", 7), "fssops_classes must be a JSON object, got 7"),
        (_set("fssops_config", {"module": "os"}), "options of mask2former are .*, got 'module'"),
        (_set("channels", "wide"), "channels"),
        (_set("decoder_layers", 10**9), "decoder_layers must be at most the number of tensors"),
        (_set("num_queries", 10**12), "must hold the model that it describes, of .* numbers, got"),
        (_set("backbone", "../../etc"), "backbone must be one of"),
        (_set("num_queries", 9), "it was made with num_queries|does not fit"),
    ],
)
def test_a_hostile_or_wrong_description_is_refused_in_a_line(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    fssops.save_pretrained(empty_model(tiny_settings("mask2former")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told) as error:
        fssops.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{" * 100_000, '{"fssops_model": "panet"', "\x80"])
def test_a_description_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    fssops.save_pretrained(empty_model(tiny_settings("panet")), tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match=r"config\.json must"):
        fssops.from_pretrained(tmp_path)


def test_a_folder_whose_file_is_cut_is_refused(tmp_path: Path) -> None:
    fssops.save_pretrained(empty_model(tiny_settings("panet")), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        fssops.from_pretrained(tmp_path)
