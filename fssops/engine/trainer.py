"""The training loop. It knows ``model.losses(batch)`` and a :class:`Validation`, and nothing of the task."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.profiler import record_function

from fssops.engine import nonfinite, step_synchronisation
from fssops.engine.averaging import WeightAverage
from fssops.engine.callbacks import Callback
from fssops.engine.checkpoints import copy_checkpoint, write_checkpoint
from fssops.engine.interrupts import Interrupted, StopRequest
from fssops.engine.metrics_log import MetricsLog
from fssops.engine.optimizers import build_optimizer, freeze
from fssops.engine.progress import ProgressBar
from fssops.engine.random_state import (
    capture_random_state,
    preserved_random_state,
    restore_random_state,
    seed_everything,
)
from fssops.engine.run_folder import RunFolder, versions
from fssops.engine.sampling import mix_seed
from fssops.engine.schedules import learning_rate_factor
from fssops.engine.settings import Settings, SettingsError
from fssops.engine.training_state import TrainingState
from fssops.engine.training_stream import TrainingStream, lost_loaders_explained
from fssops.models.interface import Trainable
from fssops.structures import move_to

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """How a model is scored in the course of training.

    Both functions get the model in eval mode; every process calls them, and gets the same metrics.

    Attributes:
        measure: (model, step) -> metrics by name.
        try_out: model -> the same metrics, of one item only. Called before the first step, so that missing data and an
            unknown ``engine.best_metric`` show then and not hours later; its values are not used.
    """

    measure: Callable[[nn.Module, int], Mapping[str, float]]
    try_out: Callable[[nn.Module], Mapping[str, float]]


@dataclass
class _Window:
    """Means since the last log line or checkpoint."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}


@dataclass(frozen=True)
class FitResult:
    """How training ended: number of updates made in all, mean losses of the last window, best value so far."""

    steps: int
    losses: dict[str, float]
    best: float | None


class Trainer:
    """Trains one model in one run folder.

    Args:
        settings: the resolved recipe.
        fabric: launched.
        model: computes its own losses.
        dataset: map-style training data; see :class:`fssops.engine.sampling.DrawnDataset`.
        collate: stacks items into the dataclass that ``model.losses`` takes.
        run: folder, held by the first process.
        validation: gives the metrics that ``engine.best_metric`` may name.
        callbacks: told of steps and validations, on the first process.

    Raises:
        SettingsError: ``best_metric`` can never be measured, or a batch cannot be shared among the processes.
        TypeError: the model has no ``losses``.
    """

    def __init__(
        self,
        settings: Settings,
        fabric: Fabric,
        model: nn.Module,
        dataset: Any,
        collate: Callable[[Sequence[Any]], Any],
        run: RunFolder,
        validation: Validation | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if not isinstance(model, Trainable):
            raise TypeError(f"Trainer: model must have losses(batch), got {type(model).__name__}")
        engine = settings.engine
        if engine.best_metric != "loss" and (validation is None or not engine.validate_every):
            raise SettingsError(
                f"engine.best_metric: {engine.best_metric!r} must be measured, got no validation; use 'loss'"
            )
        parts = fabric.world_size * engine.accumulate
        if engine.batch_size % parts:
            raise SettingsError(
                f"engine.batch_size must be a multiple of processes * accumulate = {parts}, got {engine.batch_size}"
            )
        self.settings, self.fabric, self.model, self.run = settings, fabric, model, run
        self._validation = validation if engine.validate_every else None
        self._dataset, self._collate = dataset, collate
        self._callbacks = callbacks if fabric.is_global_zero else ()
        if engine.deterministic:
            torch.use_deterministic_algorithms(True)
        if settings.optim.ema and engine.strategy == "fsdp":
            raise SettingsError(f"optim.ema: must be 0 with strategy fsdp, got {settings.optim.ema}")
        if engine.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        freeze(model, settings.optim)
        self._average = WeightAverage(model, settings.optim.ema) if settings.optim.ema else None
        if engine.compile:
            compiled = torch.compile(model.losses)
            # Fabric takes methods only, which a compiled function is not.
            model.losses = MethodType(lambda _, batch: compiled(batch), model)  # type: ignore[method-assign, assignment]
        self._module: Any = fabric.setup_module(model)
        self._module.mark_forward_method("losses")
        fused = engine.precision != "fp16" and engine.strategy != "fsdp" and fabric.device.type in ("cpu", "cuda")
        self._optimizer: Any = fabric.setup_optimizers(build_optimizer(self._module, settings.optim, fused=fused))
        self._state = TrainingState(fabric, self._module, model, self._optimizer)
        self._factor = learning_rate_factor(settings.schedule)
        self.scored_model.to(fabric.device)
        self.step = 0
        self._best: float | None = None
        self._without_gain = 0
        self._logged, self._saved = _Window(), _Window()
        self._random: dict[str, Any] | None = None
        self._skips = 0
        self._last_losses: dict[str, float] = {}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue from the contents of a checkpoint of :meth:`fit`; call before it."""
        averaged = "trained" in checkpoint
        if averaged != (self._average is not None):
            raise SettingsError(
                f"optim.ema: must be {'above 0' if averaged else '0'} to go on with a run that was trained "
                f"with{'' if averaged else 'out'} it, got {self.settings.optim.ema}"
            )
        if self._average is None:
            self._state.load(checkpoint)
        else:
            self._state.load({**checkpoint, "model": checkpoint["trained"]})
            self._average.load(checkpoint["model"], int(checkpoint["averaged"]))
        self.step, best = int(checkpoint["step"]), checkpoint["best"]
        # Runs made by earlier versions may have taken NaN for the best.
        self._best = best if best is not None and math.isfinite(best) else None
        self._logged, self._saved = _Window(**checkpoint["logged"]), _Window(**checkpoint["saved"])
        states = checkpoint["random"]
        if self.fabric.global_rank < len(states):
            self._random = states[self.fabric.global_rank]
        self._skips = int(checkpoint["skips"])
        self._without_gain = int(checkpoint.get("without_gain", 0))
        self._last_losses = dict(checkpoint.get("losses", {}))

    def whole_model(self) -> dict[str, Tensor]:
        """The trained weights, whole on every process; every process must call."""
        return self._state.whole_model()

    @property
    def scored_model(self) -> nn.Module:
        """The model that is scored and kept: that of averaged weights where ``optim.ema`` asks for them."""
        return self.model if self._average is None else self._average.model

    @property
    def sharded(self) -> bool:
        """Whether the model that was handed in now holds a part of the weights only (fsdp)."""
        return self._state.sharded

    def fit(self) -> FitResult:
        """Train up to ``schedule.steps``, or until ``engine.patience`` validations have brought no gain.

        Raises:
            SettingsError: ``engine.best_metric`` is none of the metrics of validation.
            Interrupted: Ctrl-C or SIGTERM came; the state is saved.
            NonFiniteError: a loss or gradient is NaN or infinite, and ``engine.on_nonfinite`` says stop.
            CheckpointWriteError: a checkpoint could not be written.
        """
        engine, fabric, total = self.settings.engine, self.fabric, self.settings.schedule.steps
        self._try_out_validation()
        log = None
        if fabric.is_global_zero:
            events = self.run.path / "tensorboard" if engine.tensorboard else None
            log = MetricsLog(self.run.metrics, events, self.step)
        stream = TrainingStream(
            self._dataset,
            self._collate,
            engine,
            start_step=self.step,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
        )
        if self._random is None:
            seed_everything(mix_seed(engine.seed, 1_000_003 * fabric.global_rank + self.step))
        else:
            restore_random_state(self._random)
        self.model.train()
        quiet = not fabric.is_global_zero
        try:
            with (
                lost_loaders_explained(),
                StopRequest(quiet=quiet) as stop,
                ProgressBar("train", total, done=self.step, quiet=quiet) as bar,
            ):
                while self.step < total and not self._out_of_patience:
                    asked = self._one_step(stream, stop, bar)
                    last = self.step == total
                    if last or self.step % engine.log_every == 0:
                        self._log(log, bar)
                    metrics = self._validate(log)
                    if last or asked or self.step % engine.save_every == 0 or metrics:
                        better = self._is_best(metrics)
                        if metrics:
                            self._without_gain = 0 if better else self._without_gain + 1
                        if self._out_of_patience and not last:
                            self._log(log, bar)
                        self._save(metrics, better)
                    if asked:
                        break
                if self._out_of_patience and self.step < total:
                    name, best = engine.best_metric, "no number" if self._best is None else f"{self._best:.4g}"
                    logger.info(
                        "ended early    step %s: %s validations without a gain in %s (best %s)",
                        *(self.step, self._without_gain, name, best),
                    )
                # A signal that came with the last step, its validation or its checkpoint counts too.
                if step_synchronisation.agree(fabric, False, bool(stop.received))[1]:
                    raise Interrupted(f"stopped by {stop.received or 'another process'} after step {self.step}")
        finally:
            stream.close()
            if log is not None:
                log.close()
        return FitResult(self.step, self._last_losses, self._best)

    # -- one step ---------------------------------------------------------------------------------------------

    def _one_step(self, stream: TrainingStream, stop: StopRequest, bar: ProgressBar) -> bool:
        engine, fabric = self.settings.engine, self.fabric
        started = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * self._factor(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        buffers = [b.clone() for b in self.model.buffers()] if engine.on_nonfinite == "skip" else []
        sums: dict[str, float] = {}
        asked, problem = False, False
        before = time.perf_counter()
        with record_function("fssops: wait for data"):
            batches = [next(stream) for _ in range(engine.accumulate)]
        waited = time.perf_counter() - before
        step_synchronisation.share_counts(fabric, self.model, batches)
        for micro, batch in enumerate(batches):
            batch = move_to(batch, fabric.device, non_blocking=True)
            random_state = capture_random_state()
            waits = fabric.world_size > 1 and micro + 1 < engine.accumulate
            with fabric.no_backward_sync(self._module, enabled=True) if waits else nullcontext():
                # Fabric applies the precision to ``forward`` alone where it need not wrap the model.
                with fabric.autocast(), record_function("fssops: losses"):
                    losses, bad = nonfinite.checked_losses(self._module, self.model, batch)
                problem, asked = step_synchronisation.agree(fabric, bad is not None, bool(stop.received))
                if problem:
                    self._handle_nonfinite(bad, batch, random_state, buffers)
                    break
                # The mean over micro-batches: with equal sizes it is what one large batch would give.
                with record_function("fssops: backward"):
                    fabric.backward(torch.stack([value.float() for value in losses.values()]).sum() / engine.accumulate)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / engine.accumulate
        norm = math.nan
        if not problem:
            with record_function("fssops: clip"):
                norm = step_synchronisation.clip_gradients(fabric, self.model, self._optimizer, self.settings.optim)
            # With fp16 the scaler meets infinite gradients on purpose: it skips the update and lowers its scale.
            bad_norm = not math.isfinite(norm) and not step_synchronisation.scale_can_fall(fabric)
            problem, _ = step_synchronisation.agree(fabric, bad_norm, False)
            if problem:
                parameter = nonfinite.first_nonfinite_gradient(self.model) if bad_norm else None
                where = f"gradient of {parameter}" if parameter else None
                self._handle_nonfinite(where, batch, random_state, buffers)
        if not problem:
            with record_function("fssops: update"):
                self._optimizer.step()
                if self._average is not None:
                    self._average.update(self.model)
            self._skips = 0
            values = {"loss": sum(sums.values()), **sums, "grad_norm": norm}
            seconds = time.perf_counter() - started
            self._logged.add({**values, "seconds": seconds, "waiting": waited})
            self._saved.add({"loss": values["loss"]})
        self.step += 1
        bar.update(self.step)
        if not problem:
            for callback in self._callbacks:
                callback.on_step(self.step, values)
        return asked

    def _handle_nonfinite(
        self, bad: str | None, batch: Any, random_state: dict[str, Any], buffers: list[Tensor]
    ) -> None:
        engine, message = self.settings.engine, f"non-finite training: another process met it at step {self.step}"
        self._optimizer.zero_grad(set_to_none=True)
        # Every process takes part in gathering sharded weights, though only those that met the number use them.
        weights = self._state.whole_model() if self._state.sharded else None
        self._state.gather_weights()
        if bad is not None:
            with preserved_random_state():
                restore_random_state(random_state)
                with self.fabric.autocast():
                    module = nonfinite.first_nonfinite_module(self.model, batch)
            message = nonfinite.describe(bad, self.step, batch, module)
            path = self.run.path / f"nonfinite_step{self.step}_rank{self.fabric.global_rank}.pt"
            text = json.dumps(self.settings.as_tables())
            whole = self.model.state_dict() if weights is None else weights
            nonfinite.save_replay(path, batch, self.step, whole, random_state, text)
            message += f"; kept for replay: {path}"
        self._skips += 1
        if engine.on_nonfinite == "stop":
            raise nonfinite.NonFiniteError(f"{message} (engine.on_nonfinite=skip would leave such steps out)")
        if self._skips >= engine.max_skips:
            raise nonfinite.NonFiniteError(f"{message}; {self._skips} bad steps in a row (engine.max_skips)")
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)  # statistics of normalisation layers may have taken the bad numbers in
        if self.fabric.is_global_zero:
            logger.warning("%s; step skipped", message)

    # -- between steps ----------------------------------------------------------------------------------------

    def _log(self, log: MetricsLog | None, bar: ProgressBar) -> None:
        means = self._logged.means()
        self._logged = _Window()
        if not means:
            return
        if self.fabric.world_size > 1:
            packed = torch.tensor(list(means.values()), dtype=torch.float64, device=self.fabric.device)
            packed = self.fabric.all_reduce(packed, reduce_op="mean")  # type: ignore[assignment]
            means = dict(zip(means, packed.tolist(), strict=True))
        seconds, waiting = means.pop("seconds"), means.pop("waiting")
        timing = {"step_seconds": round(seconds, 5), "data_wait": round(waiting / max(seconds, 1e-9), 4)}
        learning_rate = max(group["lr"] for group in self._optimizer.param_groups)
        if log is not None:
            log.write(self.step, {**means, "lr": learning_rate, **timing})
        self._last_losses = {name: value for name, value in means.items() if name != "grad_norm"}
        bar.update(self.step, {**self._last_losses, "lr": learning_rate})

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.settings.engine.patience <= self._without_gain

    @contextmanager
    def _scoring(self) -> Iterator[nn.Module]:
        """Outside a step: the model that is scored, in eval mode, and afterwards all as it was."""
        model = self.scored_model
        model.eval()
        self._state.gather_weights()
        with preserved_random_state(), torch.no_grad():
            yield model
        self.model.train()

    def _try_out_validation(self) -> None:
        if self._validation is None or self.step == self.settings.schedule.steps:
            return
        with self._scoring() as model:
            names = list(self._validation.try_out(model))
        name = self.settings.engine.best_metric
        if name not in [*names, "loss"]:
            raise SettingsError(f"engine.best_metric must be one of {', '.join(names)} or loss, got {name!r}")

    def _validate(self, log: MetricsLog | None) -> dict[str, float]:
        every = self.settings.engine.validate_every
        if self._validation is None or (self.step % every and self.step != self.settings.schedule.steps):
            return {}
        with self._scoring() as model:
            metrics = dict(self._validation.measure(model, self.step))
        if log is not None:
            log.write(self.step, metrics)
        for callback in self._callbacks:
            callback.on_validation(self.step, metrics)
        logger.info("step %d: %s", self.step, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether this step has the best value so far, which is noted; NaN and infinity are never the best."""
        engine = self.settings.engine
        value = (self._saved.means() if engine.best_metric == "loss" else metrics).get(engine.best_metric)
        if value is None:
            return False
        if not math.isfinite(value):
            if self.fabric.is_global_zero:
                logger.warning("step %d: %s is %s, which is never the best", self.step, engine.best_metric, value)
            return False
        if self._best is not None and not (value > self._best if engine.best_mode == "max" else value < self._best):
            return False
        self._best = value
        return True

    def _save(self, metrics: Mapping[str, float], better: bool) -> None:
        engine = self.settings.engine
        self._saved = _Window()
        state = {
            "kind": "training",
            "step": self.step,
            "best": self._best,
            "sampler": {"seed": engine.seed, "step": self.step, "batch_size": engine.batch_size},
            "logged": vars(self._logged),
            "saved": vars(self._saved),
            "skips": self._skips,
            "without_gain": self._without_gain,
            "losses": self._last_losses,
            "metrics": dict(metrics),
            "random": self._state.gather_random_states(),
            "settings": json.dumps(self.settings.as_tables()),
            "versions": versions(),
            **self._state.capture(),
        }
        if self._average is not None:
            # Whatever reads a checkpoint for its weights finds those that were scored.
            state |= {"trained": state["model"], "model": self._average.model.state_dict()}
            state["averaged"] = self._average.updates
        if self.fabric.is_global_zero:
            write_checkpoint(self.run.checkpoints / "last.pt", state)
            if better:
                copy_checkpoint(self.run.checkpoints / "last.pt", self.run.checkpoints / "best.pt")
        self.fabric.barrier()
