"""What may watch a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fssops.runs import Run


class Callback(Protocol):
    """Told how a training goes, on the first process alone; derive from it and write the methods that are wanted.

    What a method raises ends the training; :func:`fssops.train` with ``resume`` goes on from the last checkpoint.
    """

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        """After each update of the weights; steps that are left out for a number that is none are not told.

        Args:
            step: updates made, from 1.
            losses: "loss", the terms that it is the sum of, and "grad_norm", of this step and process.
        """
        return

    def on_validation(self, step: int, scores: Mapping[str, float]) -> None:
        """After each validation.

        Args:
            step: updates made.
            scores: metrics by name, e.g. "val/miou", in [0, 1].
        """
        return

    def on_end(self, run: Run) -> None:
        """After the evaluation that ends a training.

        Args:
            run: what :func:`fssops.train` returns then.
        """
        return
