"""Optimisers and parameter groups from settings."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from fssops.engine.settings import OptimSettings, SettingsError
from fssops.models.interface import Layered

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_POSITION_NAMES = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")


def freeze(model: nn.Module, settings: OptimSettings) -> None:
    """Stop training of the first layers of the backbone and of parameters whose full name matches a shell pattern.

    Raises:
        SettingsError: there are not so many layers, or a pattern matches nothing, which is a misspelling.
    """
    if settings.frozen_layers:
        parts = _layered(model)
        if not parts:
            raise SettingsError(f"optim.frozen_layers: must be 0 without a backbone, got {settings.frozen_layers}")
        for _, part in parts:
            try:
                part.freeze(settings.frozen_layers)  # type: ignore[arg-type]
            except ValueError as error:
                raise SettingsError(f"optim.frozen_layers: {error}") from None
    frozen: list[str] = []
    for pattern in settings.frozen:
        names = [name for name, _ in model.named_parameters() if _matches(name, pattern)]
        if not names:
            raise SettingsError(f"optim.frozen: {pattern!r} must match a parameter, got none")
        frozen += names
    for name, parameter in model.named_parameters():
        if name in set(frozen):
            parameter.requires_grad_(False)


def _layered(model: nn.Module) -> list[tuple[str, Layered]]:
    """Parts of a model that count their layers, with their prefixes in its names."""
    return [(f"{name}." if name else "", part) for name, part in model.named_modules() if isinstance(part, Layered)]


def _layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor of the learning rate of each trained parameter of a backbone, by its depth."""
    return {
        f"{prefix}{name}": decay ** (len(part.layers_by_depth) - part.layer_of(name))
        for prefix, part in _layered(model)
        if part.layers_by_depth
        for name, parameter in part.named_parameters()  # type: ignore[attr-defined]
        if parameter.requires_grad
    }


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Group trained parameters by learning rate and weight decay.

    Each group carries ``base_lr`` (multiplied by the schedule's factor at each step) and ``names``. Order of
    precedence for the decay: ``groups``, embedding, normalisation, bias, the common one.

    Raises:
        SettingsError: nothing is left to train, an entry of ``optim.groups`` matches nothing, or learning rates are to
            decay over layers that there are not.
    """
    factors = {} if settings.layer_decay == 1 else _layer_factors(model, settings.layer_decay)
    if settings.layer_decay != 1 and not factors:
        raise SettingsError(
            f"optim.layer_decay must be 1 without a trained backbone that counts its layers, got {settings.layer_decay}"
        )
    grouped: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    used: set[str] = set()
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{leaf}" if module_name else leaf
            lr, decay = settings.lr, _weight_decay(module, leaf, settings)
            if "backbone" in name.split("."):
                lr *= settings.backbone_lr_scale * factors.get(name, 1.0)
            for rule in settings.groups:
                if _matches(name, rule.match):
                    used.add(rule.match)
                    lr *= rule.lr_scale
                    decay = decay if rule.weight_decay is None else rule.weight_decay
            group = {"params": [], "names": [], "lr": lr, "base_lr": lr, "weight_decay": decay}
            entry = grouped.setdefault((lr, decay), group)
            entry["params"].append(parameter)
            entry["names"].append(name)
    if not grouped:
        raise SettingsError("optim: the model must have a parameter to train, got none (see optim.frozen)")
    for rule in settings.groups:
        if rule.match not in used:
            raise SettingsError(f"optim.groups: {rule.match!r} must match a trained parameter, got none")
    return list(grouped.values())


def build_optimizer(model: nn.Module, settings: OptimSettings, *, fused: bool = False) -> torch.optim.Optimizer:
    """Build the optimiser over the trained parameters of ``model``, after :func:`freeze`.

    Args:
        model: its trained parameters are updated.
        settings: which optimiser.
        fused: update each tensor in one pass over memory; not with a scaler of gradients.
    """
    freeze(model, settings)
    groups = parameter_groups(model, settings)
    for group in groups:
        del group["names"]
    if settings.name == "sgd":
        momentum, nesterov = settings.momentum, settings.nesterov
        return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=nesterov, fused=fused)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _weight_decay(module: nn.Module, leaf: str, settings: OptimSettings) -> float:
    special: float | None = None
    if isinstance(module, nn.Embedding) or leaf in _POSITION_NAMES:
        special = settings.weight_decay_embedding
    elif isinstance(module, _NORMS) or (
        # Normalisation layers of the package go by their name; a convolution that carries one is none itself.
        "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.conv._ConvNd)
    ):
        special = settings.weight_decay_norm
    elif leaf == "bias":
        special = settings.weight_decay_bias
    return settings.weight_decay if special is None else special


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}*")
