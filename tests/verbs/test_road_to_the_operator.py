"""From the command to an operator, calls go down the layers and never back up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import fssops
from fssops.train import main

PACKAGE = Path(fssops.__file__).parent
LAYERS = ["train.py", "tasks", "engine", "models", "ops"]


class Arrived(Exception):
    """Ends the run where the operator is called."""


class CallsAtOperator(TorchDispatchMode):
    """Keeps the package's own calls that lead to the first call of an operator."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator
        self.calls: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(f"fssops.{self.operator}"):
            frame = sys._getframe(1)
            while frame is not None:
                file = Path(frame.f_code.co_filename)
                if file.is_relative_to(PACKAGE):
                    self.calls.insert(0, (file.relative_to(PACKAGE).as_posix(), frame.f_code.co_qualname))
                frame = frame.f_back  # type: ignore[assignment]
            raise Arrived
        return func(*args, **(kwargs or {}))


def test_a_training_step_reaches_masked_attention_without_a_return_upwards(tmp_path: Path) -> None:
    overrides = ["engine.validate_every=0", "engine.best_metric=loss", "schedule.steps=1"]
    arguments = [argument for override in overrides for argument in ("--set", override)]
    with CallsAtOperator("masked_attention") as observer, pytest.raises(Arrived):
        main(["mask2former_generated", "--out", str(tmp_path / "run"), *arguments])
    layers = [LAYERS.index(file.split("/")[0]) for file, _ in observer.calls]
    assert layers == sorted(layers), observer.calls
    assert set(layers) == set(range(len(LAYERS)))
    assert len(observer.calls) <= 16, "a longer road than CONTRIBUTING.md tells"
