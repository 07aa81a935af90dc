"""bf16 and fp16 for every system, on the CPU too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import NormFreeModel, ToyBatch, build_trainer, toy_settings
from tiny_systems import SYSTEMS, tiny_settings, tiny_trainer
from torch import Tensor

from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.metrics_log import read_metrics
from fssops.engine.nonfinite import NonFiniteError
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import SettingsError
from fssops.engine.trainer import Trainer


def trained(system: str, folder: Path, precision: str) -> tuple[Trainer, list[float]]:
    trainer = tiny_trainer(tiny_settings(system, f"engine.precision={precision}"), folder)
    trainer.fit()
    return trainer, [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_trains_in_half_precision(system: str, precision: str, tmp_path: Path) -> None:
    _, exact = trained(system, tmp_path / "exact", "32")
    _, losses = trained(system, tmp_path / "half", precision)
    assert losses[0] == pytest.approx(exact[0], rel=0.03)
    state = read_checkpoint(tmp_path / "half" / "checkpoints" / "last.pt")
    assert all(value.dtype != torch.float16 and value.dtype != torch.bfloat16 for value in state["model"].values())
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert bool(state["scaler"]) == (precision == "fp16")


def halved(folder: Path, *overrides: str, model: Any = None) -> Trainer:
    settings = toy_settings("engine.precision=fp16", "engine.log_every=1", "schedule.steps=4", *overrides)
    return build_trainer(settings, RunFolder(folder), model=model or NormFreeModel())


class Gentle(NormFreeModel):
    """Its gradient fits into half precision with the first scale."""

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        return {name: 0.01 * value for name, value in super().losses(batch).items()}


@pytest.mark.parametrize("clip", ["optim.clip_norm=0.01", "optim.clip_norm=0", "optim.clip_value=0.001"])
def test_scaled_gradients_are_measured_and_clipped_without_their_scale(tmp_path: Path, clip: str) -> None:
    torch.manual_seed(3)
    model = Gentle()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = halved(tmp_path / "half", clip, model=model)
    trainer.fit()
    exact = build_trainer(
        toy_settings("engine.log_every=1", "schedule.steps=4", clip),
        RunFolder(tmp_path / "exact"),
        model=Gentle(),
    )
    exact.model.load_state_dict(start)
    exact.fit()
    pairs = zip(read_metrics(trainer.run.metrics), read_metrics(exact.run.metrics), strict=True)
    for half, full in pairs:
        assert half["grad_norm"] == pytest.approx(full["grad_norm"], rel=0.05)


class Steep(NormFreeModel):
    """Its gradient fits into half precision only with a scale of less than the first one, 65536."""

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        return {name: 100 * value for name, value in super().losses(batch).items()}


def test_a_scale_that_is_too_large_falls_and_training_goes_on(tmp_path: Path) -> None:
    trainer = halved(tmp_path / "run", "optim.lr=1e-4", "schedule.steps=12", model=Steep())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    scale = trainer.fabric.strategy.precision.scaler.get_scale()  # type: ignore[attr-defined]
    assert 1 < scale < 65536
    assert not torch.equal(before["layers.0.weight"], trainer.model.state_dict()["layers.0.weight"])
    norms = [record["grad_norm"] for record in read_metrics(trainer.run.metrics)]
    assert norms[0] is None
    assert norms[-1] is not None
    assert math.isfinite(norms[-1])


class Infinite(NormFreeModel):
    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        return {**super().losses(batch), "root": (self.layers[0].bias * 0.0).sum().sqrt()}  # type: ignore[operator]


def test_gradients_that_no_scale_mends_stop_the_run(tmp_path: Path) -> None:
    trainer = halved(tmp_path / "run", "schedule.steps=40", model=Infinite())
    with pytest.raises(NonFiniteError, match=r"gradient of layers\.0\.bias at step 16"):
        trainer.fit()


def test_sharded_fp16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must be 32 or bf16 with strategy fsdp, got fp16"):
        build_trainer(toy_settings("engine.precision=fp16", "engine.strategy=fsdp"), RunFolder(tmp_path / "run"))
