"""Every system: a step is the same however its batch is cut, over processes or micro-batches, with DDP or FSDP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_systems import SYSTEMS, losses_of

WORKER = Path(__file__).with_name("systems_worker.py")


def on_processes(folder: Path, processes: int, *jobs: str) -> dict[str, list[float]]:
    """Losses of jobs "system,table.key=value,.." under torchrun."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), *jobs],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads((folder / "losses.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of one process that takes each step's batch in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    return {system: losses_of(system, folder / system) for system in SYSTEMS}


@pytest.mark.parametrize("system", SYSTEMS)
def test_accumulated_micro_batches_equal_the_large_batch(
    system: str, whole: dict[str, list[float]], tmp_path: Path
) -> None:
    assert losses_of(system, tmp_path / "run", ["engine.accumulate=4"]) == pytest.approx(whole[system], rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "jobs"),
    [
        (2, [*SYSTEMS, "msanet,engine.strategy=fsdp", "mask2former,engine.strategy=fsdp,engine.accumulate=2"]),
        (4, ["msanet", "mask2former"]),
    ],
    ids=["two", "four"],
)
def test_processes_together_see_the_losses_of_one(
    processes: int, jobs: list[str], whole: dict[str, list[float]], tmp_path: Path
) -> None:
    for job, losses in on_processes(tmp_path, processes, *jobs).items():
        assert losses == pytest.approx(whole[job.partition(",")[0]], rel=2e-4), job
