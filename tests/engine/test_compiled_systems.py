"""``engine.compile``: every system trains as without it, and no operator of ours breaks the graph."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torch._dynamo
from tiny_systems import SYSTEMS, losses_of, tiny_settings, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_operator_of_ours_breaks_the_graph(system: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_settings(system), tmp_path)
    dataset = trainer._dataset
    draw = dataset.draw if hasattr(dataset, "draw") else lambda index, generator: dataset[index]
    batch = trainer._collate([draw(index, torch.Generator().manual_seed(index)) for index in range(2)])
    found = torch._dynamo.explain(trainer.model.losses)(batch)  # type: ignore[arg-type]
    assert found.graph_count > 0
    frames = [frame for reason in found.break_reasons for frame in reason.user_stack[-1:]]
    inside = [f"{frame.filename}:{frame.lineno}" for frame in frames if "/fssops/ops/" in frame.filename]
    assert not inside


@pytest.mark.slow
@pytest.mark.parametrize("system", ["panet", "pspnet", "mask2former", "per_pixel_baseline"])
def test_compiled_training_sees_the_losses_of_plain_training(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses_of(system, tmp_path / "plain")
    # The compiler's own code generator takes minutes a system on a CPU; everything before it is the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = losses_of(system, tmp_path / "compiled", ["engine.compile=true"])
    assert compiled == pytest.approx(plain, rel=1e-3)
