"""The guard against NaN and infinity: says what went bad, in which step, on which images, and keeps it for replay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fssops.engine.checkpoints import read_checkpoint, write_checkpoint
from fssops.structures import StepShare


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the message names the first one, its step and its images."""


def first_nonfinite_loss(losses: Mapping[str, Tensor]) -> str | None:
    """Return ``name = value`` of the first loss term that is NaN or infinite, or None."""
    for name, value in losses.items():
        if not bool(torch.isfinite(value.detach()).all()):
            return f"{name} = {value.detach().float().sum().item()}"
    return None


def checked_losses(module: Any, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], str | None]:
    """Run ``module.losses(batch)`` and say what is NaN or infinite in it.

    A system may refuse such numbers itself before any loss is formed (a matcher cannot assign NaN costs); that is told
    like a bad loss. Any other error is raised as it is.

    Args:
        module: what computes the losses; ``model``, possibly wrapped for several processes.
        model: the bare model, searched for where the numbers went bad.
        batch: as the model takes it.

    Returns:
        the losses (empty where the system refused), and the first bad one or None.
    """
    try:
        losses: dict[str, Tensor] = module.losses(batch)
    except (RuntimeError, ValueError) as error:
        module_name = first_nonfinite_module(model, batch)
        if module_name is None or module_name.startswith("an error"):
            raise
        return {}, f"loss refused ({error})"
    return losses, first_nonfinite_loss(losses)


def first_nonfinite_gradient(model: nn.Module) -> str | None:
    """Return the name of the first parameter whose gradient has a NaN or infinity, or None."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name
    return None


def first_nonfinite_module(model: nn.Module, batch: Any) -> str | None:
    """Run ``model.losses(batch)`` again and name the first module with a non-finite output, or None.

    The name is followed by what went bad first: a tensor of the batch, a parameter or buffer of the model, or the
    output itself, with its shape and the number of bad values. Buffers of normalisation layers are put back afterwards.
    """
    first: list[str] = []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def hook(name: str) -> Any:
        def check(_: nn.Module, __: Any, output: Any) -> None:
            if not first:
                bad = next((text for tensor in _tensors(output) if (text := _badness(tensor))), None)
                if bad is not None:
                    first.append(f"{name} ({given or f'its output, {bad}'})")

        return check

    given = _first_bad_given(model, batch)
    handles = [module.register_forward_hook(hook(name or "model")) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model.losses(batch)  # type: ignore[operator]
    except (RuntimeError, ValueError) as error:
        # A system may itself refuse non-finite numbers further on; the module is what is asked for.
        if not first:
            first.append(f"an error: {error}")
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return first[0] if first else None


def _first_bad_given(model: nn.Module, batch: Any) -> str | None:
    """What is bad before anything is computed: data of the batch, then parameters and buffers."""
    if dataclasses.is_dataclass(batch):
        for item in dataclasses.fields(batch):
            for number, tensor in enumerate(_tensors(getattr(batch, item.name))):
                if bad := _badness(tensor):
                    place = f"[{number}]" if isinstance(getattr(batch, item.name), (list, tuple)) else ""
                    return f"from batch.{item.name}{place}, {bad}"
    # Other buffers may hold -inf on purpose.
    statistics = [(name, buffer) for name, buffer in model.named_buffers() if "running_" in name]
    for kind, named in (("parameter", model.named_parameters()), ("buffer", statistics)):
        for name, tensor in named:
            if bad := _badness(tensor):
                return f"from {kind} {name}, {bad}"
    return None


def _badness(tensor: Tensor) -> str | None:
    """Shape and number of NaN and infinite values; None where all are finite."""
    if not tensor.is_floating_point():
        return None
    bad = int((~torch.isfinite(tensor.detach())).sum())
    return f"{bad} of {tensor.numel()} values of {list(tensor.shape)}" if bad else None


def image_names(batch: Any) -> list[str]:
    """Collect all strings in the fields of a batch whose names end in ``names``, each once, in order."""
    if not dataclasses.is_dataclass(batch):
        return []
    names: dict[str, None] = {}
    for item in dataclasses.fields(batch):
        if item.name.endswith("names"):
            names.update(dict.fromkeys(_strings(getattr(batch, item.name))))
    return list(names)


def describe(bad: str, step: int, batch: Any, module: str | None) -> str:
    """Write the one line that a user needs to find the cause."""
    names = image_names(batch)
    images = f"; images: {', '.join(names[:12])}" + (" ..." if len(names) > 12 else "") if names else ""
    inside = f"; first bad module: {module}" if module else ""
    return f"non-finite training: {bad} at step {step}{inside}{images}"


def save_replay(
    path: Path, batch: Any, step: int, weights: Mapping[str, Tensor], random_state: dict[str, Any], settings: str
) -> None:
    """Save what is needed to run the bad step again: batch, weights, random states, settings (JSON)."""
    state = {"kind": "replay", "step": step, "batch": pack(batch), "model": dict(weights)}
    write_checkpoint(path, {**state, "random": random_state, "settings": settings})


def load_replay(path: Path, batch_class: type[Any]) -> tuple[Any, dict[str, Any]]:
    """Load a file of :func:`save_replay`; returns the batch as ``batch_class`` and the whole state."""
    state = read_checkpoint(path)
    if state.get("kind") != "replay":
        raise ValueError(f"--replay: {path} must be a file saved by the guard against NaN, got another checkpoint")
    values = dict(state["batch"])
    if values.get("share") is not None:
        values["share"] = StepShare(**values["share"])
    return batch_class(**values), state


def pack(batch: Any) -> Any:
    """Turn a dataclass into a dict of its fields (recursively); tensors go to the CPU."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {item.name: pack(getattr(batch, item.name)) for item in dataclasses.fields(batch)}
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if isinstance(batch, Mapping):
        return {key: pack(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [pack(item) for item in batch]
    return batch


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
