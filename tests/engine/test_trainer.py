"""The training loop: exact resume, guard against NaN, accumulation, interruption."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_toy import NormFreeModel, ToyBatch, ToyData, ToyModel, build_trainer, toy_settings, weights
from torch import Tensor, nn

from fssops.engine import checkpoints
from fssops.engine.averaging import WeightAverage
from fssops.engine.checkpoints import RunCheckpointError, newest_good_checkpoint, read_checkpoint
from fssops.engine.interrupts import Interrupted
from fssops.engine.metrics_log import MetricsLog, read_metrics
from fssops.engine.nonfinite import NonFiniteError, load_replay
from fssops.engine.progress import ProgressBar
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import SettingsError


@pytest.fixture
def trainer_of(tmp_path: Path) -> Any:
    """Build trainers in folders of their own."""
    return lambda name, *overrides, **parts: build_trainer(
        toy_settings(*overrides), RunFolder(tmp_path / name), **parts
    )


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

    torch.manual_seed(99)  # whatever state the new process is in
    resumed = trainer_of("parts", *overrides)
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    assert resumed.step == 10
    resumed.fit()
    assert_equal_weights(weights(whole), weights(resumed))
    whole_log, resumed_log = (read_metrics(t.run.metrics) for t in (whole, resumed))
    timing = {"step_seconds", "data_wait"}
    strip = [[{k: v for k, v in r.items() if k not in timing} for r in log] for log in (whole_log, resumed_log)]
    assert strip[0] == strip[1]


class RareData(ToyData):
    repeats: ClassVar[list[float]] = [1.0 + (index % 5 == 0) for index in range(37)]


def test_a_run_that_averages_its_weights_and_repeats_items_is_resumed_in_the_same_bits(trainer_of: Any) -> None:
    options = ["optim.ema=0.9", "engine.validate_every=10"]
    seen: dict[int, float] = {}

    def measure(model: nn.Module, step: int) -> dict[str, float]:
        seen[step] = float(model.head.weight.sum())  # type: ignore[union-attr, operator]
        return {"val/score": seen[step]}

    whole = trainer_of("whole", *options, data=RareData(), measure=measure)
    whole.fit()
    once, average = {step: seen[step] for step in (10, 20, 30)}, whole.scored_model.state_dict()
    assert not torch.equal(average["head.weight"], weights(whole)["head.weight"])
    assert seen[30] == float(average["head.weight"].sum())
    kept = read_checkpoint(whole.run.checkpoints / "last.pt")
    assert_equal_weights(average, kept["model"])
    assert_equal_weights(weights(whole), kept["trained"])
    stopped = trainer_of("parts", *options, data=RareData(), measure=measure)

    def stop(*_: Any) -> None:
        if stopped.step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = stopped.model.head.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        stopped.fit()
    handle.remove()
    resumed = trainer_of("parts", *options, data=RareData(), measure=measure)
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    resumed.fit()
    assert_equal_weights(weights(whole), weights(resumed))
    assert_equal_weights(average, resumed.scored_model.state_dict())
    assert {step: seen[step] for step in once} == once
    with pytest.raises(SettingsError, match=r"optim\.ema: must be above 0 to go on with a run .* with it"):
        trainer_of("other").restore(kept)


def test_an_average_follows_the_weights_slower_and_slower(trainer_of: Any) -> None:
    model = NormFreeModel()
    average = WeightAverage(model, 0.5)
    start = model.layers[0].weight.detach().clone()
    with torch.no_grad():
        for value in (1.0, 2.0, 3.0):
            model.layers[0].weight.fill_(value)
            average.update(model)
    expected = start
    for value, decay in ((1.0, 2 / 11), (2.0, 3 / 12), (3.0, 4 / 13)):
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.model.layers[0].weight, expected)  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("values", "end"), [([1, 3, 2, 3, 4, 5], 20), ([1, 2, 3, 2, 1, 4], 25), ([1, 2, 3, 4, 5, 6], 30)]
)
def test_training_ends_when_validations_bring_no_gain(trainer_of: Any, values: list[int], end: int) -> None:
    options = ["engine.validate_every=5", "engine.best_metric=val/score", "engine.best_mode=max", "engine.patience=2"]
    options += ["engine.log_every=7"]

    def measure(model: nn.Module, step: int) -> dict[str, float]:
        return {"val/score": float(values[max(step // 5 - 1, 0)])}

    trainer = trainer_of("run", *options, measure=measure)
    result = trainer.fit()
    assert (result.steps, trainer.step) == (end, end)
    assert read_checkpoint(trainer.run.checkpoints / "last.pt")["step"] == end
    assert read_metrics(trainer.run.metrics)[-1]["step"] == end
    again = trainer_of("run", *options, measure=measure)
    again.restore(newest_good_checkpoint(again.run.checkpoints)[1])
    assert again.fit() == result
    parts = trainer_of("parts", *options, measure=measure)

    def stop(*_: Any) -> None:
        if parts.step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = parts.model.head.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        parts.fit()
    handle.remove()
    resumed = trainer_of("parts", *options, measure=measure)
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    assert resumed.fit().steps == end


def test_validation_and_checkpoint_frequency_do_not_change_training(trainer_of: Any) -> None:
    def measure(model: nn.Module, step: int) -> dict[str, float]:
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
        measure=measure,
    )
    result = busy.fit()
    assert_equal_weights(weights(plain), weights(busy))
    assert result.best == 30.0
    assert read_checkpoint(busy.run.checkpoints / "best.pt")["step"] == 30


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", [1, 2, 3, 2, 1, 0], 15),
        ("min", [2, 1, 0, 1, 2, 3], 15),
        ("max", [NAN, 1, 2, 1, 1, 1], 15),
        ("min", [NAN, 2, 1, 2, 2, 2], 15),
        ("max", [1, 2, NAN, 3, NAN, NAN], 20),
        ("min", [3, 2, NAN, 1, NAN, NAN], 20),
        ("max", [1, INF, 2, 1, 1, -INF], 15),
        ("max", [1, 1, 1, 1, 1, 1], 5),
        ("max", [NAN] * 6, None),
    ],
)
def test_best_checkpoint_is_that_of_the_best_number(
    trainer_of: Any, mode: str, values: list[float], best: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(
        "run",
        "engine.validate_every=5",
        "engine.best_metric=val/score",
        f"engine.best_mode={mode}",
        measure=lambda model, step: {"val/score": float(values[step // 5 - 1])},
    )
    result = trainer.fit()
    if best is None:
        assert not (trainer.run.checkpoints / "best.pt").exists()
        assert result.best is None
    else:
        assert read_checkpoint(trainer.run.checkpoints / "best.pt")["step"] == best
        assert result.best == values[best // 5 - 1]
    assert read_checkpoint(trainer.run.checkpoints / "last.pt")["step"] == 30
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        f"step {5 * number + 5}: val/score is {value}, which is never the best"
        for number, value in enumerate(values)
        if not math.isfinite(value)
    ]


def test_a_run_whose_best_was_nan_finds_a_better_one(trainer_of: Any) -> None:
    options = ["engine.validate_every=10", "engine.best_metric=val/score", "engine.best_mode=max"]
    trainer = trainer_of("run", *options, measure=lambda model, step: {"val/score": NAN})
    trainer.fit()
    again = trainer_of("again", *options, measure=lambda model, step: {"val/score": 0.5})
    state = newest_good_checkpoint(trainer.run.checkpoints)[1]
    again.restore({**state, "step": 20, "best": NAN})
    assert again.fit().best == 0.5


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_best_loss_is_the_mean_between_two_checkpoints(trainer_of: Any, mode: str, sign: int) -> None:
    trainer = trainer_of("run", f"engine.best_mode={mode}", "engine.log_every=10", "optim.lr=0.05")
    result = trainer.fit()
    losses = {record["step"]: record["loss"] for record in read_metrics(trainer.run.metrics)}
    best = min(losses, key=lambda step: sign * losses[step])
    assert result.best == pytest.approx(losses[best])
    assert read_checkpoint(trainer.run.checkpoints / "best.pt")["step"] == best


def test_unknown_best_metric_is_refused_before_the_first_step(trainer_of: Any) -> None:
    with pytest.raises(SettingsError, match="'val/x' must be measured"):
        trainer_of("run", "engine.best_metric=val/x")
    options = ["engine.best_metric=val/x", "engine.validate_every=30"]
    trainer = trainer_of("run", *options, measure=lambda model, step: {"val/miou": 1.0, "val/ap": 1.0})
    with pytest.raises(SettingsError, match="must be one of val/miou, val/ap or loss, got 'val/x'"):
        trainer.fit()
    assert trainer.step == 0
    assert list(trainer.run.path.rglob("*")) == [trainer.run.checkpoints]


def test_validation_that_cannot_be_made_stops_before_the_first_step(trainer_of: Any) -> None:
    def measure(model: nn.Module, step: int) -> dict[str, float]:
        raise OSError("val.json must be a readable file")

    trainer = trainer_of("run", "engine.validate_every=30", measure=measure)
    with pytest.raises(OSError, match=r"val\.json must be a readable file"):
        trainer.fit()
    assert trainer.step == 0
    idle = trainer_of("idle", measure=measure)
    assert idle.fit().steps == 30


@pytest.mark.parametrize("clip", ["optim.clip_norm=0.5", "optim.clip_norm=0"])
def test_accumulated_micro_batches_equal_the_large_batch(trainer_of: Any, clip: str) -> None:
    torch.manual_seed(5)
    first = NormFreeModel()
    for name, accumulate in (("a", 1), ("b", 4)):
        model = NormFreeModel()
        model.load_state_dict(first.state_dict())
        trainer = trainer_of(name, "engine.batch_size=8", f"engine.accumulate={accumulate}", clip, model=model)
        trainer.fit()
        if name == "a":
            whole, records = weights(trainer), read_metrics(trainer.run.metrics)
    assert not torch.equal(whole["layers.0.weight"], first.state_dict()["layers.0.weight"])
    for key, value in weights(trainer).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)
    for one, many in zip(records, read_metrics(trainer.run.metrics), strict=True):
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


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


def test_nan_steps_are_left_out_on_request(trainer_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of("run", "engine.on_nonfinite=skip", data=ToyData(bad=3))
    result = trainer.fit()
    assert result.steps == 30
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert "step skipped" in caplog.text


def test_too_many_nan_steps_in_a_row_stop(trainer_of: Any) -> None:
    trainer = trainer_of("run", "engine.on_nonfinite=skip", "engine.max_skips=2", data=ToyData(length=1, bad=0))
    with pytest.raises(NonFiniteError, match="2 bad steps in a row"):
        trainer.fit()


def test_the_bad_module_is_sought_with_the_random_numbers_of_the_bad_step(trainer_of: Any) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def forward(self, values: Tensor) -> Tensor:
            self.drawn.append(float(torch.rand(())))
            return values * (NAN if len(self.drawn) > 2 else 1.0)

    model = ToyModel()
    model.norm = nn.Sequential(model.norm, Moody())  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match=r"first bad module: norm\.1"):
        trainer_of("run", model=model).fit()
    drawn = model.norm[1].drawn  # type: ignore[index]
    assert drawn[3] == drawn[2] != drawn[1]


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
    resumed = trainer_of("parts")
    resumed.restore(newest_good_checkpoint(resumed.run.checkpoints)[1])
    assert resumed.step == 14
    resumed.fit()
    assert_equal_weights(weights(whole), weights(resumed))


@pytest.mark.parametrize("when", ["in the last step", "in the last validation"])
def test_interruption_at_the_end_is_not_forgotten(trainer_of: Any, when: str) -> None:
    def measure(model: nn.Module, step: int) -> dict[str, float]:
        if when == "in the last validation" and step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"val/score": 1.0}

    trainer = trainer_of("run", "engine.validate_every=30", measure=measure)

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
    with pytest.raises(RunCheckpointError, match="No space left on device; the earlier checkpoint is intact"):
        trainer.fit()
    assert newest_good_checkpoint(trainer.run.checkpoints)[1]["step"] == 10


def test_weights_of_another_model_are_refused(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    other = trainer_of("run", model=NormFreeModel())
    with pytest.raises(ValueError, match="must be those of this NormFreeModel, got another model"):
        other.restore(newest_good_checkpoint(other.run.checkpoints)[1])


def test_weights_of_another_width_are_refused_with_both_shapes(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    wide = ToyModel()
    wide.head = nn.Linear(8, 2)
    other = trainer_of("run", model=wide)
    with pytest.raises(ValueError, match=r"checkpoint: head\.weight must have shape \[2, 8\], got \[1, 8\]"):
        other.restore(newest_good_checkpoint(other.run.checkpoints)[1])


def test_metrics_hold_every_loss_rate_and_waiting(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    lines = [json.loads(line) for line in trainer.run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert set(lines[0]) == {"step", "loss", "squared", "absolute", "grad_norm", "lr", "step_seconds", "data_wait"}
    assert lines[0]["loss"] == pytest.approx(lines[0]["squared"] + lines[0]["absolute"])


def test_a_run_returns_the_mean_losses_of_its_last_window(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    result = trainer.fit()
    last = read_metrics(trainer.run.metrics)[-1]
    assert result.losses == {name: last[name] for name in ("loss", "squared", "absolute")}
    assert read_checkpoint(trainer.run.checkpoints / "last.pt")["losses"] == result.losses
    again = trainer_of("run")
    again.restore(newest_good_checkpoint(again.run.checkpoints)[1])
    assert again.fit() == result


def test_losses_of_the_log_are_means_over_the_steps_since_the_last_line(trainer_of: Any) -> None:
    each, fifth = trainer_of("each", "engine.log_every=1"), trainer_of("fifth")
    each.fit()
    fifth.fit()
    single = [record["loss"] for record in read_metrics(each.run.metrics)]
    for number, record in enumerate(read_metrics(fifth.run.metrics)):
        assert record["loss"] == pytest.approx(sum(single[5 * number : 5 * number + 5]) / 5)
        assert 0 <= record["data_wait"] <= 1


def test_a_checkpoint_of_fewer_processes_is_taken_without_a_random_state(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    state = newest_good_checkpoint(trainer.run.checkpoints)[1]
    again = trainer_of("again")
    again.restore({**state, "step": 20, "random": []})
    assert again.fit().steps == 30


@pytest.mark.parametrize("asked", [True, False])
def test_deterministic_kernels_are_asked_for_only_on_request(
    trainer_of: Any, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", calls.append)
    trainer_of("run", f"engine.deterministic={str(asked).lower()}")
    assert calls == [True] * asked


def test_channels_last_reorders_convolutions_only_on_request(trainer_of: Any) -> None:
    class Convolution(NormFreeModel):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Conv2d(4, 6, 3)

    for asked in (True, False):
        trainer = trainer_of(f"run{asked}", f"engine.channels_last={str(asked).lower()}", model=Convolution())
        strides = trainer.model.kernel.weight.stride()
        assert (strides == (36, 1, 12, 4)) == asked


def test_a_bad_step_leaves_weights_and_statistics_as_they_were(trainer_of: Any) -> None:
    """The only item is bad: of the statistics that its forward pass moved nothing stays."""
    trainer = trainer_of("run", "engine.on_nonfinite=skip", "engine.max_skips=3", data=ToyData(length=1, bad=0))
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match="3 bad steps in a row"):
        trainer.fit()
    for name in ("backbone.weight", "head.bias"):
        assert torch.equal(weights(trainer)[name], before[name])


def test_good_steps_between_bad_ones_start_their_count_anew(trainer_of: Any) -> None:
    """One item of 37 in batches of 4: bad steps come apart, and more of them than two in a row are allowed."""
    trainer = trainer_of(
        "run", "engine.on_nonfinite=skip", "engine.max_skips=2", "schedule.steps=60", data=ToyData(bad=3)
    )
    assert trainer.fit().steps == 60


def test_bad_steps_before_a_checkpoint_count_after_it(trainer_of: Any) -> None:
    trainer = trainer_of("run")
    trainer.fit()
    state = newest_good_checkpoint(trainer.run.checkpoints)[1]
    options = ["engine.on_nonfinite=skip", "engine.max_skips=3"]
    again = trainer_of("again", *options, data=ToyData(length=1, bad=0))
    again.restore({**state, "step": 20, "skips": 2})
    with pytest.raises(NonFiniteError, match=r"at step 20.*3 bad steps in a row"):
        again.fit()


@pytest.mark.parametrize("bad", [None, 3])
def test_the_log_is_closed_and_the_bar_moves_with_every_step(
    trainer_of: Any, monkeypatch: pytest.MonkeyPatch, bad: int | None
) -> None:
    closed, steps = [], []

    class Log(MetricsLog):
        def close(self) -> None:
            super().close()
            closed.append(self._file.closed)

    class Bar(ProgressBar):
        def update(self, done: int, values: Any = None) -> None:
            steps.append(done)

    monkeypatch.setattr("fssops.engine.trainer.MetricsLog", Log)
    monkeypatch.setattr("fssops.engine.trainer.ProgressBar", Bar)
    trainer = trainer_of("run", "engine.log_every=100", data=ToyData(bad=bad))
    if bad is None:
        trainer.fit()
        assert steps == [*range(1, 31), 30]
    else:
        with pytest.raises(NonFiniteError):
            trainer.fit()
    assert closed == [True]


def test_model_without_losses_is_refused(trainer_of: Any) -> None:
    with pytest.raises(TypeError, match=r"must have losses\(batch\), got Linear"):
        trainer_of("run", model=nn.Linear(1, 1))
