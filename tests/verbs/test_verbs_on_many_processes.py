"""The verbs under torchrun: results of one process, files from the first alone, fewer items than processes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_universal
import tiny_video
import torch
from tiny_recipe import settings_arguments

from fssops.engine.checkpoints import read_checkpoint

RESULTS = ("few", "scenes", "videos", "base")
SHARDED = ["engine.batch_size=4", "engine.strategy=fsdp", "eval.baseline=false"]
WORKER = Path(__file__).with_name("verbs_worker.py")

BASE_RECIPE = """
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
images = 3
pictures = 1
"""


def jobs(folder: Path, base: Path, run: Path) -> list[list[str]]:
    """Train a run with sharded weights; evaluate 3 episodes, 3 images, 3 videos and 3 images of base classes."""
    train = ["train", "--out", str(folder / "run"), *settings_arguments(*SHARDED)]
    few = ["evaluate", str(run), "--out", str(folder / "few"), "--set", "eval.runs=1", "--set", "eval.episodes=3"]
    scenes = ["evaluate", "--recipe", "mask2former_generated", "--out", str(folder / "scenes")]
    base_classes = ["evaluate", "--recipe", str(base), "--out", str(folder / "base")]
    videos = ["evaluate", "--recipe", "mask2former_vis_generated", "--out", str(folder / "videos")]
    scenes += tiny_universal.settings_arguments()
    return [train, few, scenes, [*videos, *tiny_video.settings_arguments()], base_classes]


def results_in(folder: Path) -> dict[str, Any]:
    """What was measured, without what differs by nature: time, and passes, as each process keeps its own features."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in ("seconds", "passes")}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {name: plain(json.loads((folder / name / "results.json").read_text())) for name in RESULTS}


@pytest.mark.slow
def test_four_processes_measure_what_one_measures_and_the_first_alone_writes(tiny_run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(BASE_RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the four have: the number of threads changes the last bit of a score
    try:
        for verb, *arguments in jobs(tmp_path / "one", base, tiny_run)[1:]:
            assert importlib.import_module(f"fssops.{verb}").main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    texts = [json.dumps(job) for job in jobs(tmp_path / "four", base, tiny_run)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*launcher, str(WORKER), str(tmp_path / "four"), *texts],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, four = results_in(tmp_path / "one"), results_in(tmp_path / "four")
    submissions = [(tmp_path / side / "videos" / "submission.json").read_text() for side in ("one", "four")]
    assert submissions[0] == submissions[1]
    for name, result in one.items():
        assert four[name] == result, name
    assert read_checkpoint(tmp_path / "four" / "run" / "checkpoints" / "last.pt")["step"] == 6
    assert json.loads((tmp_path / "four" / "run" / "result.json").read_text())["novel"]["episodes"] == 10
