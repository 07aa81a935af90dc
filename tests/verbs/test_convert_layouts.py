"""``python -m fssops.convert`` between our files and transformers' folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fssops
from fssops.command_line import exit_code_of
from fssops.convert import main
from fssops.weights import save_weights

OPTIONS = {"backbone": "resnet18", "num_classes": 4, "num_queries": 5, "channels": 32, "mask_channels": 32}
SMALL = [part for key, value in OPTIONS.items() for part in ("--set", f"{key}={value}")]


def test_a_model_goes_to_transformers_and_back_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fssops.create_model("mask2former", **OPTIONS)
    first, folder, second = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.safetensors"
    save_weights(model, first)
    assert main([str(first), str(folder), "--model", "mask2former", "--layout", "transformers", *SMALL]) == 0
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert main([str(folder), str(second)]) == 0
    assert "transformers (Mask2Former" in capsys.readouterr().out
    again = fssops.create_model("mask2former", **OPTIONS)
    fssops.load_weights(again, second)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in again.state_dict().items())


def test_what_cannot_be_converted_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.pth"
    torch.save(fssops.create_model("panet").state_dict(), source)
    for arguments, message in (
        ([str(source), str(tmp_path / "b.safetensors")], "--model must be given"),
        ([str(source), str(tmp_path / "b.safetensors"), "--model", "panet", "--layout", "transformers"], "be a folder"),
        (
            [str(source), str(tmp_path / "b"), "--model", "panet", "--layout", "transformers"],
            "mask2former or maskformer, got panet",
        ),
    ):
        assert exit_code_of("convert", main, arguments) == 2
        assert message in capsys.readouterr().err
