"""A task small enough for tests of the engine: noisy regression with dropout, so that every random state matters."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fssops.engine.checkpoints import RunCheckpointError, newest_good_checkpoint
from fssops.engine.launch import build_fabric, run_on_first
from fssops.engine.run_folder import RunFolder, locked_run
from fssops.engine.settings import Settings, apply_overrides, validate
from fssops.engine.trainer import Trainer, Validation


@dataclass
class ToyBatch:
    inputs: Tensor
    targets: Tensor
    image_names: list[str] = field(default_factory=list)

    @staticmethod
    def stack(items: Sequence[tuple[Tensor, Tensor, str]]) -> ToyBatch:
        inputs, targets, names = zip(*items, strict=True)
        return ToyBatch(torch.stack(inputs), torch.stack(targets), list(names))


class ToyData:
    """37 items whose inputs are drawn anew each time they occur in the stream."""

    def __init__(self, length: int = 37, bad: int | None = None, unreadable: int | None = None) -> None:
        self.length, self.bad, self.unreadable = length, bad, unreadable

    def __len__(self) -> int:
        return self.length

    def draw(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor, str]:
        if index == self.unreadable:
            raise OSError(f"image{index}.jpg: cannot identify image file")
        inputs = torch.randn(4, generator=generator)
        if index == self.bad:
            inputs[0] = float("nan")
        return inputs, torch.tensor(float(index % 5)), f"image{index}.jpg"


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        hidden = self.dropout(self.norm(self.backbone(batch.inputs)).relu())
        error = self.head(hidden)[:, 0] - batch.targets
        return {"squared": error.square().mean(), "absolute": 0.1 * error.abs().mean()}


class NormFreeModel(nn.Module):
    """Without batch statistics and dropout: its gradients do not depend on how a batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        return {"squared": (self.layers(batch.inputs)[:, 0] - batch.targets).square().mean()}


def toy_settings(*overrides: str) -> Settings:
    tables = {
        "name": "toy",
        "model": {"name": "toy"},
        "optim": {"lr": 0.01},
        "schedule": {"steps": 30, "name": "poly", "warmup_steps": 5},
        "engine": {"accelerator": "cpu", "batch_size": 4, "save_every": 10, "log_every": 5, "workers": 0},
    }
    quiet = ["engine.tensorboard=false"]
    return validate(Settings, apply_overrides(tables, [*quiet, *overrides]), "toy")


def build_trainer(
    settings: Settings,
    run: RunFolder,
    *,
    data: ToyData | None = None,
    model: nn.Module | None = None,
    measure: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
) -> Trainer:
    fabric = build_fabric(settings.engine)
    fabric.launch()
    torch.manual_seed(settings.engine.seed)
    run_on_first(fabric, run.create)
    validation = Validation(measure, lambda model: measure(model, 0)) if measure else None
    return Trainer(settings, fabric, model or ToyModel(), data or ToyData(), ToyBatch.stack, run, validation)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def main(arguments: Sequence[str]) -> int:
    """Train in a process of its own, for tests that kill it or run several.

    FOLDER [resume] [--norm-free] [--validate] [--slow] [--die-at=STEP] [--fail-at=STEP] [--stall-at=STEP]
    [table.key=value ...]
    The last process dies without a word, fails with a message, or hangs.
    """
    folder, rest = Path(arguments[0]), list(arguments[1:])
    resume = "resume" in rest
    torch.manual_seed(0)
    model = NormFreeModel() if "--norm-free" in rest else ToyModel()
    overrides = [text for text in rest if "=" in text and not text.startswith("--")]
    at = {name: int(step) for text in rest if text.startswith("--") for name, _, step in [text.partition("=")] if step}
    settings = toy_settings(*overrides)
    fabric = build_fabric(settings.engine)
    fabric.launch()
    with locked_run(fabric, lambda: folder) as run:
        measure = squared_error if "--validate" in rest else None
        return train(build_trainer(settings, run, model=model, measure=measure), rest, at, resume=resume)


def squared_error(model: Any, step: int) -> dict[str, float]:
    items = [ToyData().draw(index, torch.Generator().manual_seed(index)) for index in range(8)]
    assert not model.training
    return {"val/error": float(model.losses(ToyBatch.stack(items))["squared"])}


def train(trainer: Trainer, arguments: Sequence[str], at: Mapping[str, int], *, resume: bool) -> int:
    if resume:
        try:
            trainer.restore(newest_good_checkpoint(trainer.run.checkpoints)[1])
        except RunCheckpointError as error:
            if "no checkpoint file" not in str(error):
                raise

    def before_step(*_: Any) -> None:
        if trainer.fabric.global_rank == trainer.fabric.world_size - 1:
            if trainer.step == at.get("--die-at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if trainer.step == at.get("--fail-at"):
                raise ValueError("image7.jpg: image must be readable, got nothing")
            if trainer.step == at.get("--stall-at"):
                time.sleep(1000)
        if "--slow" in arguments:
            time.sleep(0.02)

    next(trainer.model.children()).register_forward_pre_hook(before_step)
    trainer.fit()
    return 0


if __name__ == "__main__":
    from fssops.command_line import run_verb

    run_verb("train", main)
