"""Several processes resume exactly; a kill at any moment loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fssops.engine.checkpoints import newest_good_checkpoint, read_checkpoint
from fssops.engine.metrics_log import read_metrics

TOY = Path(__file__).with_name("engine_toy.py")


def environment() -> dict[str, str]:
    # The tests' own search path, so that the package is found however it was installed.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def run_toy(folder: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(TOY), str(folder), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_resumed_processes_end_in_the_same_bits(tmp_path: Path) -> None:
    common = ["engine.batch_size=4", "engine.save_every=5"]
    whole = run_toy(tmp_path / "whole", *common, "schedule.steps=12", processes=2)
    assert whole.returncode == 0, whole.stderr[-2000:]
    # The schedule must be that of the whole run, so the first part is cut by a kill, not by fewer steps.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TOY), str(tmp_path / "parts"), *common, "schedule.steps=12", "--die-at=8"]
    died = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL) received" in died.stderr  # torchrun's own report of the process that began it
    assert newest_good_checkpoint(tmp_path / "parts" / "checkpoints")[1]["step"] == 5
    resumed = run_toy(tmp_path / "parts", *common, "schedule.steps=12", "resume", processes=2)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    weights = [read_checkpoint(tmp_path / n / "checkpoints" / "last.pt")["model"] for n in ("whole", "parts")]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_validation_between_steps_does_not_change_training(tmp_path: Path, strategy: str) -> None:
    common = ["--norm-free", "schedule.steps=6", "engine.log_every=1", f"engine.strategy={strategy}"]
    scored = ["--validate", "engine.validate_every=2", "engine.best_metric=val/error"]
    for name, further in (("plain", []), ("scored", scored)):
        done = run_toy(tmp_path / name, *common, *further, processes=2)
        assert done.returncode == 0, done.stderr[-2000:]
    weights = [read_checkpoint(tmp_path / n / "checkpoints" / "last.pt")["model"] for n in ("plain", "scored")]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    errors = {
        r["step"]: r["val/error"] for r in read_metrics(tmp_path / "scored" / "metrics.jsonl") if "val/error" in r
    }
    assert list(errors) == [2, 4, 6]
    best = read_checkpoint(tmp_path / "scored" / "checkpoints" / "best.pt")
    assert best["best"] == min(errors.values())


def start_process(rank: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """One of two processes of a job, as torchrun would start it; here nobody ends the others."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 20000 + os.getpid() % 20000, "TORCHELASTIC_RUN_ID": "test"}
    variables = {**environment(), **{name: str(value) for name, value in own.items()}}
    command = [sys.executable, str(TOY), str(folder), "engine.batch_size=4", *arguments]
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-at=3"], "another process of this job has ended, so this one ends too"),
        (["--stall-at=3", "engine.timeout=4"], "another process of this job has not answered for as long as"),
    ],
    ids=["failed", "stuck"],
)
def test_a_process_does_not_wait_for_one_that_is_lost(tmp_path: Path, arguments: list[str], told: str) -> None:
    first, last = (start_process(rank, tmp_path / "run", *arguments) for rank in (0, 1))
    try:
        _, message = first.communicate(timeout=100)
        assert first.returncode == 1, message
        assert f"fssops.train [process 0 of 2]: {told}" in " ".join(message.split())
        if "--fail-at=3" in arguments:
            _, message = last.communicate(timeout=60)
            assert last.returncode == 2
            assert "fssops.train [process 1 of 2]: image7.jpg: image must be readable, got nothing" in message
    finally:
        last.kill()
        first.kill()
        last.wait()


@pytest.mark.slow
def test_killed_at_random_moments_the_run_still_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Each attempt is killed at a moment of its own, in training or in writing, until one gets through."""
    arguments = ["schedule.steps=30", "engine.save_every=1", "engine.log_every=1"]
    whole = run_toy(tmp_path / "whole", *arguments)
    assert whole.returncode == 0, whole.stderr[-2000:]
    rng, kills, folder = random.Random(0), 0, tmp_path / "parts"
    command = [sys.executable, str(TOY), str(folder), *arguments, "resume", "--slow"]
    while kills < 4:
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (folder / "run.lock").exists():
            time.sleep(0.01)
        before = step_of(folder)
        while process.poll() is None and step_of(folder) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.03))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills >= 3
    resumed = run_toy(folder, *arguments, "resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    weights = [read_checkpoint(tmp_path / n / "checkpoints" / "last.pt")["model"] for n in ("whole", "parts")]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(1, 31))


def step_of(folder: Path) -> int:
    """Time stamp of the newest checkpoint, cheap enough to poll."""
    path = folder / "checkpoints" / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else 0
