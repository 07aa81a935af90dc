"""Faults that the other tests of the engine leave: a loader process that is killed, a clock that jumps."""

from __future__ import annotations

import os
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyBatch, ToyData, build_trainer, toy_settings, weights

from fssops.engine.checkpoints import newest_good_checkpoint
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import EngineSettings
from fssops.engine.training_stream import LoaderLostError, TrainingStream, lost_loaders_explained


class SlowData(ToyData):
    def draw(self, index: int, generator: torch.Generator) -> Any:
        time.sleep(0.05)
        return super().draw(index, generator)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_loader_process_ends_training_with_advice(number: signal.Signals) -> None:
    stream = TrainingStream(SlowData(), ToyBatch.stack, EngineSettings(batch_size=4, workers=1))
    next(stream)
    for worker in stream._batches._workers:  # type: ignore[attr-defined]
        os.kill(worker.pid, number)
    told = r"loader processes must keep running, got: .*resume with --resume"
    with pytest.raises(LoaderLostError, match=told), lost_loaders_explained():
        list(islice(stream, 50))
    stream.close()


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    now, jumps = time.time, iter(range(10**6))
    for name in ("steady", "jumping"):
        if name == "jumping":
            monkeypatch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 1e8)
        torch.manual_seed(0)
        run = RunFolder(tmp_path / name)
        trainer = build_trainer(toy_settings(), run)
        trainer.fit()
        found.append(weights(trainer))
        for age, path in enumerate(sorted((run.path / "checkpoints").iterdir())):
            os.utime(path, (1e9 - age, 1e9 - age))
        assert newest_good_checkpoint(run.checkpoints)[1]["step"] == 30
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key
