"""The training loop: exact resume, guard against NaN, accumulation, interruption."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import NormFreeModel, ToyBatch, ToyData, ToyModel, build_trainer, toy_settings, weights
from torch import Tensor, nn

from fssops.engine import checkpoints
from fssops.engine.checkpoints import CheckpointError, newest_good_checkpoint, read_checkpoint
from fssops.engine.interrupts import Interrupted
from fssops.engine.metrics_log import read_metrics
from fssops.engine.nonfinite import NonFiniteError, load_replay
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Trainer


@pytest.fixture
def trainer_of(tmp_path: Path) -> Any:
    """Build trainers in folders of their own; the folders are released afterwards."""
    runs: list[RunFolder] = []

    def build(name: str, *overrides: str, **parts: Any) -> Trainer:
        run = RunFolder(tmp_path / name)
        trainer = build_trainer(toy_settings(*overrides), run, **parts)
        runs.append(run)
        return trainer

    yield build
    for run in runs:
        run.unlock()


def release(trainer: Trainer) -> Path:
    trainer.run.unlock()
    return trainer.run.path


def assert_equal_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_ends_in_the_same_bits(trainer_of: Any, optimizer: str, workers: int) -> None:
    overrides = [f"optim.name={optimizer}", f"engine.workers={workers}", "optim.clip_norm=1.0"]
    whole = trainer_of("whole", *overrides)
    whole.fit()

    parts = trainer_of("parts", *overrides, "schedule.steps=30")

    class Stop(Exception):
        pass

    def stop_at_17(*_: Any) -> None:
        if parts.step == 17:
            raise Stop

    parts.model.head.register_forward_pre_hook(stop_at_17)
    with pytest.raises(Stop):
        parts.fit()
    folder = release(parts)

    torch.manual_seed(99)  # whatever state the new process is in
    resumed = trainer_of(folder.name, *overrides)
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    assert resumed.step == 10
    resumed.fit()
    assert_equal_weights(weights(whole), weights(resumed))
    whole_log, resumed_log = (read_metrics(t.run.metrics) for t in (whole, resumed))
    timing = {"step_seconds", "data_wait"}
    strip = [[{k: v for k, v in r.items() if k not in timing} for r in log] for log in (whole_log, resumed_log)]
    assert strip[0] == strip[1]


def test_validation_and_checkpoint_frequency_do_not_change_training(trainer_of: Any) -> None:
    def validate(model: nn.Module, step: int) -> dict[str, float]:
        torch.rand(5)
        assert not model.training
        return {"val/score": float(step)}

    plain = trainer_of("plain")
    plain.fit()
    busy = trainer_of(
        "busy",
        "engine.save_every=3",
        "engine.validate_every=4",
        "engine.best_metric=val/score",
        "engine.best_mode=max",
        validate=validate,
    )
    result = busy.fit()
    assert_equal_weights(weights(plain), weights(busy))
    assert result.best == 30.0
    assert read_checkpoint(busy.run.checkpoints / "best.pt")["step"] == 30


def test_best_checkpoint_is_that_of_the_best_value(trainer_of: Any) -> None:
    trainer = trainer_of(
        "run",
        "engine.validate_every=5",
        "engine.best_metric=val/score",
        "engine.best_mode=max",
        validate=lambda model, step: {"val/score": -abs(step - 15.0)},
    )
    trainer.fit()
    assert read_checkpoint(trainer.run.checkpoints / "best.pt")["step"] == 15
    assert read_checkpoint(trainer.run.checkpoints / "last.pt")["step"] == 30


def test_unknown_best_metric_is_refused(trainer_of: Any) -> None:
    with pytest.raises(SettingsError, match="'val/x' must be measured"):
        trainer_of("run", "engine.best_metric=val/x")


def test_accumulated_micro_batches_equal_the_large_batch(trainer_of: Any) -> None:
    torch.manual_seed(5)
    first = NormFreeModel()
    for name, accumulate in (("a", 1), ("b", 4)):
        model = NormFreeModel()
        model.load_state_dict(first.state_dict())
        trainer = trainer_of(
            name, "engine.batch_size=8", f"engine.accumulate={accumulate}", "optim.clip_norm=0.5", model=model
        )
        trainer.fit()
        if name == "a":
            whole = weights(trainer)
    for key, value in weights(trainer).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)


def test_bf16_trains(trainer_of: Any) -> None:
    trainer = trainer_of("run", "engine.precision=bf16")
    before = weights(trainer)["head.weight"]
    result = trainer.fit()
    assert result.steps == 30
    assert weights(trainer)["head.weight"].dtype == torch.float32
    assert not torch.equal(before, weights(trainer)["head.weight"])


def test_nan_stops_and_names_loss_step_module_and_images(trainer_of: Any) -> None:
    trainer = trainer_of("run", data=ToyData(bad=3))
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert "squared = nan at step" in text
    assert "first bad module: backbone" in text
    assert "image3.jpg" in text
    path = next(trainer.run.path.glob("nonfinite_step*_rank0.pt"))
    assert str(path) in text
    batch, state = load_replay(path, ToyBatch)
    assert "image3.jpg" in batch.image_names
    model = ToyModel()
    model.load_state_dict(state["model"])
    assert torch.isnan(model.losses(batch)["squared"])


def test_nan_steps_are_left_out_on_request(trainer_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of("run", "engine.on_nonfinite=skip", data=ToyData(bad=3))
    result = trainer.fit()
    assert result.steps == 30
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert "step skipped" in capsys.readouterr().err


def test_too_many_nan_steps_in_a_row_stop(trainer_of: Any) -> None:
    trainer = trainer_of("run", "engine.on_nonfinite=skip", "engine.max_skips=2", data=ToyData(length=1, bad=0))
    with pytest.raises(NonFiniteError, match="2 bad steps in a row"):
        trainer.fit()


class BadGradient(ToyModel):
    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        # sqrt at 0 has a finite value and an infinite slope.
        return {**super().losses(batch), "root": (self.head.bias * 0.0).sum().sqrt()}


def test_bad_gradient_is_named_by_parameter(trainer_of: Any) -> None:
    trainer = trainer_of("run", model=BadGradient())
    with pytest.raises(NonFiniteError, match=r"gradient of head\.bias at step 0"):
        trainer.fit()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_resumes_exactly(trainer_of: Any, number: signal.Signals) -> None:
    whole = trainer_of("whole")
    whole.fit()
    parts = trainer_of("parts")

    def interrupt(*_: Any) -> None:
        if parts.step == 13:
            os.kill(os.getpid(), number)

    handle = parts.model.head.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 14"):
        parts.fit()
    handle.remove()
    folder = release(parts)
    resumed = trainer_of(folder.name)
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    assert resumed.step == 14
    resumed.fit()
    assert_equal_weights(weights(whole), weights(resumed))


@pytest.mark.parametrize("when", ["in the last step", "in the last validation"])
def test_interruption_at_the_end_is_not_forgotten(trainer_of: Any, when: str) -> None:
    def validate(model: nn.Module, step: int) -> dict[str, float]:
        if when == "in the last validation":
            os.kill(os.getpid(), signal.SIGTERM)
        return {"val/score": 1.0}

    trainer = trainer_of("run", "engine.validate_every=30", validate=validate)

    def interrupt(*_: Any) -> None:
        if trainer.step == 29 and when == "in the last step":
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.model.head.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 30"):
        trainer.fit()
    assert read_checkpoint(trainer.run.checkpoints / "last.pt")["step"] == 30


def test_full_disk_stops_with_the_earlier_checkpoint_intact(trainer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("run")
    original = checkpoints.write_bytes

    def full(file: Any, data: Any) -> int:
        if trainer.step >= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(file, data)

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left on device; the earlier checkpoint is intact"):
        trainer.fit()
    assert newest_good_checkpoint(trainer.run.checkpoints)[1]["step"] == 10


def test_weights_of_another_model_are_refused(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    folder = release(trainer)
    other = trainer_of(folder.name, model=NormFreeModel())
    with pytest.raises(ValueError, match="must be those of this NormFreeModel, got another model"):
        other.restore(newest_good_checkpoint(other.run.checkpoints)[1])


def test_metrics_hold_every_loss_rate_and_waiting(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    lines = [json.loads(line) for line in trainer.run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert set(lines[0]) == {"step", "loss", "squared", "absolute", "grad_norm", "lr", "step_seconds", "data_wait"}
    assert lines[0]["loss"] == pytest.approx(lines[0]["squared"] + lines[0]["absolute"])


def test_model_without_losses_is_refused(trainer_of: Any) -> None:
    with pytest.raises(TypeError, match=r"must have losses\(batch\), got Linear"):
        trainer_of("run", model=nn.Linear(1, 1))
