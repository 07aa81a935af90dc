"""``python -m fssops.train`` from start to finish, on a tiny recipe."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_recipe import settings_arguments

from fssops.engine import checkpoints
from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.metrics_log import read_metrics
from fssops.engine.run_folder import RunFolder


def test_run_leaves_everything_in_one_folder(tiny_run: Path) -> None:
    left = {path.name for path in tiny_run.iterdir()}
    assert left >= {
        "settings.toml",
        "settings.json",
        "versions.json",
        "metrics.jsonl",
        "curves.png",
        "grid.png",
        "best.png",
        "worst.png",
        "result.json",
    }
    assert {path.name for path in (tiny_run / "checkpoints").iterdir()} >= {"last.pt", "best.pt"}
    for name in ("curves.png", "grid.png"):
        with Image.open(tiny_run / name) as picture:
            assert min(picture.size) > 200


def test_result_compares_with_the_untrained_model_on_the_same_episodes(tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    assert result["steps"] == 6
    assert result["peak_memory_mb"]["process"] > 50
    assert result["novel"]["list_hashes"] == result["untrained"]["list_hashes"]
    assert result["gain"] == pytest.approx(result["miou"] - result["untrained_miou"])
    assert result["novel"]["seeds"] == [1234, 1235]
    trained_classes = set(result["novel"]["classes"])
    assert trained_classes == {"1", "5", "9", "13", "17", "21", "25"}


def test_metrics_hold_training_and_validation(tiny_run: Path) -> None:
    records = read_metrics(tiny_run / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6]
    assert [r["step"] for r in records if "val/miou" in r] == [3, 6]
    assert {"loss_query", "loss_align", "lr", "grad_norm"} <= set(records[0])


def test_saved_settings_are_a_recipe_that_gives_the_same_settings(tiny_run: Path, verb: Any) -> None:
    code, out, _ = verb("train", tiny_run / "settings.toml", "--show")
    assert code == 0
    assert out == (tiny_run / "settings.toml").read_text()


def test_same_recipe_gives_the_same_weights(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    code, _, err = verb("train", "--out", tmp_path / "again", "--no-eval", *settings_arguments("engine.workers=2"))
    assert code == 0, err
    first, second = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (tiny_run, tmp_path / "again"))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


def test_resume_continues_exactly_and_lists_what_changed(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    run = tmp_path / "run"
    stopped_at = 3

    def stop(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original, writes = checkpoints.write_checkpoint, []

    def stopping(path: Path, state: dict[str, Any]) -> None:
        writes.append(state["step"])
        if state["step"] > stopped_at:
            stop()
        original(path, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fssops.engine.trainer.write_checkpoint", stopping)
        code, _, err = verb("train", "--out", run, "--no-eval", *settings_arguments())
    assert writes == [3, 6]
    assert (code, "No space left on device" in err) == (1, True)
    code, out, _ = verb("train", "--resume", run, "--no-eval", "--set", "engine.log_every=1")
    assert code == 0
    assert "changed        engine.log_every: 2 -> 1" in out
    assert "last.pt at step 3 of 6" in out
    first, second = (read_checkpoint(path / "checkpoints" / "last.pt") for path in (tiny_run, run))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


def test_resume_passes_over_a_truncated_checkpoint(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    run = tmp_path / "run"
    verb("train", "--out", run, "--no-eval", *settings_arguments())
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    code, out, _ = verb("train", "--resume", run, "--no-eval")
    assert code == 0
    assert "passed over" in out
    assert "last.previous.pt at step 3 of 6" in out
    first, second = (read_checkpoint(path / "checkpoints" / "last.pt") for path in (tiny_run, run))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no_such_recipe"], "recipe must be a name that"),
        (["--set", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["--set", "engine.accelerator=mps"], "engine.accelerator: mps must be available"),
        (["--set", "optim.lr=fast"], "optim.lr must be a valid number, got 'fast'"),
        (["--set", "data.source=voc", "--set", "data.root=nowhere"], "nowhere"),
        (["--set", "data.shots=5000"], "must have at least 5002 images"),
        (["--set", "model.weights=none.pth"], "none.pth"),
        (["--resume", "nowhere"], "nowhere must hold settings.json, got No such file"),
        (["--resume", "nowhere", "--out", "elsewhere"], "--out: a run goes on in its own folder"),
        (
            ["panet_pascal5i", "--set", "data.root=nowhere", "--set", "model.weights="],
            "nowhere: root must be a folder, got no such folder",
        ),
        (["msanet_pascal5i", "--set", "data.root=nowhere"], "nowhere: root must be a folder, got no such folder"),
        (["--set", "data.size=[5,5]"], "images must be at least 8 pixels a side"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--replay", "none.pt"], "none.pt must be a readable file"),
        (["--replay", "none.pt", "--set", "optim.lr=1"], "--replay: the file holds its settings"),
    ],
)
def test_mistake_is_told_in_two_lines_with_code_2(
    arguments: list[str], told: str, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = verb("train", *arguments)
    assert told in err
    assert len([line for line in err.splitlines() if line.startswith("fssops") or "python -m" in line]) <= 2
    assert "Traceback" not in err
    assert code == 2
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_written_is_told(tmp_path: Path, verb: Any) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = verb("train", "--out", tmp_path / "file" / "run", *settings_arguments())
    assert code == 2
    assert "must be a writable folder" in err


def test_folder_of_another_run_is_refused(tiny_run: Path, verb: Any) -> None:
    code, _, err = verb("train", "--out", tiny_run, *settings_arguments())
    assert code == 2
    assert "must be a new folder" in err


def test_folder_in_use_is_refused(tmp_path: Path, verb: Any) -> None:
    with RunFolder(tmp_path / "run").locked():
        code, _, err = verb("train", "--out", tmp_path / "run", *settings_arguments())
    assert code == 2
    assert "must be free" in err


def test_checkpoint_of_another_model_is_refused(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    import shutil

    shutil.copytree(tiny_run, tmp_path / "run")
    code, _, err = verb("train", "--resume", tmp_path / "run", "--set", "model.backbone_width=16")
    assert code == 2
    assert "must have shape" in err
    for name in ("settings.json", "settings.toml"):
        assert (tmp_path / "run" / name).read_text() == (tiny_run / name).read_text()


def test_run_that_was_finished_has_the_same_result_when_resumed(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    import shutil

    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    code, _, err = verb("train", "--resume", tmp_path / "run")
    assert code == 0, err
    results = [json.loads((run / "result.json").read_text()) for run in (tiny_run, tmp_path / "run")]
    for key in ("steps", "losses", "best", "miou", "untrained_miou", "gain"):
        assert results[0][key] == results[1][key], key


def test_what_a_run_says_it_has_left_is_there(tmp_path: Path, verb: Any) -> None:
    for name, override in (("trained", "schedule.steps=2"), ("untrained", "schedule.steps=0")):
        run = tmp_path / name
        code, out, err = verb("train", "--out", run, "--no-eval", *settings_arguments(override))
        assert code == 0, err
        told = out.split("everything is in")[1].splitlines()[1].split()
        assert {"result.json", "metrics.jsonl", "curves.png", "settings.toml"} <= set(told)
        assert all((run / path).exists() for path in told)
        assert ("next:" in out) == (name == "trained")


def test_interrupted_evaluation_says_how_to_go_on(tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fssops.tasks.few_shot.FewShotTask.evaluate", interrupt)
    code, out, _ = verb("train", "--out", tmp_path / "run", *settings_arguments("schedule.steps=1"))
    assert code == 130
    assert f"Continue with: python -m fssops.train --resume {tmp_path / 'run'}" in out


def test_folder_that_was_there_before_is_not_removed(tmp_path: Path, verb: Any) -> None:
    code, _, _ = verb("train", "--out", tmp_path, *settings_arguments("data.root=nowhere", "data.source=voc"))
    assert code == 2
    assert tmp_path.exists()


def test_nan_is_kept_and_replayed(tmp_path: Path, verb: Any) -> None:
    run = tmp_path / "run"
    code, _, err = verb("train", "--out", run, "--no-eval", *settings_arguments("optim.lr=1e30", "optim.clip_norm=0"))
    assert code == 1
    assert "non-finite training:" in err
    assert "images: train-" in err
    kept = next(run.glob("nonfinite_step*.pt"))
    code, out, _ = verb("train", "--replay", kept)
    assert code == 1
    assert "first bad module: backbone" in out


def test_help_teaches_with_examples(verb: Any) -> None:
    code, out, _ = verb("train", "--help")
    assert code == 0
    assert "examples:" in out
    assert "panet_pascal5i" in out


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "fssops.train", "--out", str(run), *settings_arguments("schedule.steps=100000")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "stopped by SIGINT" in out
    assert f"--resume {run}" in out
    assert read_checkpoint(run / "checkpoints" / "last.pt")["step"] >= 3
    assert (run / "run.lock").read_text() == ""
