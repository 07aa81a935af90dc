"""An evaluation that was interrupted goes on where it was, for every kind of task, with the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_universal
from tiny_recipe import settings_arguments

from fssops.engine.evaluation_progress import FOLDER
from fssops.engine.progress import ProgressBar

BASE = """
name = "base_tiny"
[model]
name = "pspnet"
backbone = "resnet18"
backbone_width = 8
head_channels = 16
base_classes = 21
[data]
size = [48, 48]
folds = "generated"
options = { size = 48, images_per_class = 4 }
[engine]
accelerator = "cpu"
[eval]
images = 6
pictures = 1
"""
MSANET = """
name = "msanet_tiny"
[model]
name = "msanet"
backbone = "resnet18"
backbone_width = 8
channels = 16
similarity_channels = 8
head_channels = 16
base_classes = 21
[data]
folds = "generated"
definition = "msanet"
size = [48, 48]
geometry = "letterbox"
options = { size = 48, images_per_class = 6 }
[engine]
accelerator = "cpu"
[eval]
split = "test"
runs = 2
episodes = 3
pictures = 1
"""
CLIPS = ["model.num_queries=4", "model.channels=32", "model.mask_channels=32", "model.encoder_layers=1"]
CLIPS += ["model.encoder_hidden=32", "model.decoder_layers=1", "model.decoder_hidden=32", "engine.accelerator=cpu"]
CLIPS += ["eval.videos=6", "eval.pictures=1", "eval.workers=0"]


def arguments_of(kind: str, folder: Path) -> list[str]:
    if kind == "few-shot":
        return ["--recipe", "panet_generated", *settings_arguments("eval.runs=2", "eval.episodes=3")]
    if kind == "universal":
        return ["--recipe", "mask2former_generated", *tiny_universal.settings_arguments("eval.images=4")]
    if kind == "video":
        return ["--recipe", "mask2former_vis_generated", *(part for text in CLIPS for part in ("--set", text))]
    path = folder / "recipe.toml"
    path.write_text(MSANET if kind == "two stages" else BASE)
    return ["--recipe", str(path)]


def results_in(folder: Path) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in ("seconds", "passes")}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(json.loads((folder / "results.json").read_text()))


@pytest.mark.parametrize("kind", ["few-shot", "two stages", "universal", "base classes", "video"])
def test_interrupted_twice_it_measures_the_same(
    kind: str, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of(kind, tmp_path)
    seen: list[int] = []
    limit = [0]
    advance = ProgressBar.advance

    def counting(bar: ProgressBar, count: int = 1) -> None:
        seen.append(1)
        if len(seen) == limit[-1]:
            raise KeyboardInterrupt
        advance(bar, count)

    monkeypatch.setattr(ProgressBar, "advance", counting)
    code, _, err = verb("evaluate", *arguments, "--out", tmp_path / "whole")
    assert code == 0, err
    total = len(seen)
    for after in (1, 2):
        seen.clear()
        limit.append(after)
        code, _, err = verb("evaluate", *arguments, "--out", tmp_path / "parts")
        assert code == 130
        assert f"the same command with --out {tmp_path / 'parts'} goes on" in err
    limit.append(0)
    seen.clear()
    code, _, err = verb("evaluate", *arguments, "--out", tmp_path / "parts")
    assert code == 0, err
    assert "3 counted before an interruption; going on" in err
    assert len(seen) == total - 3
    assert results_in(tmp_path / "parts") == results_in(tmp_path / "whole")
    assert not (tmp_path / "parts" / FOLDER).exists()
