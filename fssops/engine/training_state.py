"""Model, optimiser and random states of all processes, as what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from fssops.engine.random_state import capture_random_state


class TrainingState:
    """Captures and loads the state of training, the same layout for every strategy.

    Args:
        fabric: launched.
        module: the model as set up by Fabric.
        model: the model itself.
        optimizer: as set up by Fabric.
    """

    def __init__(self, fabric: Fabric, module: Any, model: nn.Module, optimizer: Any) -> None:
        self.fabric, self.module, self.model, self.optimizer = fabric, module, model, optimizer
        self.sharded = type(fabric.strategy).__name__ == "ModelParallelStrategy"

    def capture(self) -> dict[str, Any]:
        """Return ``model``, ``optimizer`` and ``scaler``; every process must call, the first one's is whole."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimizer = get_state_dict(self._wrapped(), self._plain_optimizer(), options=options)
        else:
            model, optimizer = self.model.state_dict(), self._plain_optimizer().state_dict()
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return {"model": dict(model), "optimizer": optimizer, "scaler": scaler.state_dict() if scaler else {}}

    def whole_model(self) -> dict[str, torch.Tensor]:
        """The weights, whole on every process; every process must call."""
        if not self.sharded:
            return dict(self.model.state_dict())
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole: Any = get_model_state_dict(self._wrapped(), options=StateDictOptions(full_state_dict=True))
        return dict(whole)

    def gather_weights(self) -> None:
        """Hold sharded weights whole until the next step, for work between steps; every process must call."""
        if self.sharded:
            self._wrapped().unshard()  # type: ignore[operator]

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Load what :meth:`capture` returned.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        check_same_model(self.model, checkpoint["model"])
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            set_state_dict(
                self._wrapped(),
                self._plain_optimizer(),
                model_state_dict=checkpoint["model"],
                optim_state_dict=checkpoint["optimizer"],
                options=StateDictOptions(full_state_dict=True),
            )
        else:
            self.model.load_state_dict(checkpoint["model"])
            self._plain_optimizer().load_state_dict(checkpoint["optimizer"])
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and checkpoint["scaler"]:
            scaler.load_state_dict(checkpoint["scaler"])

    def gather_random_states(self) -> list[dict[str, Any]]:
        """Return the random states of all processes, in the order of their ranks."""
        state = capture_random_state()
        if self.fabric.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(states, state)
        return states

    def _wrapped(self) -> nn.Module:
        wrapped: nn.Module = self.module._forward_module
        return wrapped

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain


def check_same_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse weights of another model with one line that names the first difference.

    Raises:
        ValueError: a name is missing, unknown, or of another shape.
    """
    expected = model.state_dict()
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        detail = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
        raise ValueError(
            f"checkpoint: weights must be those of this {type(model).__name__}, got another model "
            f"({detail}; {len(missing)} missing, {len(unknown)} unknown)"
        )
    for name, value in expected.items():
        if value.shape != state[name].shape:
            raise ValueError(
                f"checkpoint: {name} must have shape {list(value.shape)}, got {list(state[name].shape)} "
                "(another backbone or configuration?)"
            )
