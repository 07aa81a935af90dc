"""Checks of configurations and inputs that several systems make."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor


def check_choices(config: object, *, but: str = "") -> None:
    """Check every field of a configuration whose type is a ``Literal``; ``but`` names one that is left alone.

    Raises:
        ValueError: names the configuration, the field and what it may be.
    """
    hints = get_type_hints(type(config))
    for option in fields(config):  # type: ignore[arg-type]
        hint, value = hints[option.name], getattr(config, option.name)
        allowed = get_args(hint)
        if option.name != but and get_origin(hint) is Literal and value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"{type(config).__name__}: {option.name} must be one of {choices}, got {value!r}")


def check_least(config: object, least: float, *options: str) -> None:
    """Check that options of a configuration are at least ``least``.

    Raises:
        ValueError: names the configuration, the option and the bound.
    """
    for option in options:
        value = getattr(config, option)
        if not value >= least:  # NaN is refused as well
            raise ValueError(f"{type(config).__name__}: {option} must be at least {least}, got {value}")


def check_share(config: object, *options: str, below_one: bool = False) -> None:
    """Check that options of a configuration are in 0..1; ``below_one`` leaves 1 itself out.

    Raises:
        ValueError: names the configuration and the option.
    """
    for option in options:
        value = getattr(config, option)
        if not 0 <= value <= 1 or (below_one and value == 1):
            rule = "at least 0 and less than 1" if below_one else "in 0..1"
            raise ValueError(f"{type(config).__name__}: {option} must be {rule}, got {value}")


def check_width(config: Any) -> None:
    """Check that ``channels`` of a configuration suit GroupNorm and ``heads``.

    Raises:
        ValueError: they do not.
    """
    if config.channels % 32 or config.channels % config.heads:
        raise ValueError(
            f"{type(config).__name__}: channels must be divisible by 32 (GroupNorm) and by heads ({config.heads}), got"
            f" {config.channels}"
        )


def check_images(where: str, images: Tensor, smallest: int) -> None:
    """Check that images are float [n, 3, H, W] of at least ``smallest`` pixels a side.

    Raises:
        ValueError: they are not.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"{where}: images must be float [n, 3, H, W], got {list(images.shape)} {images.dtype}")
    if min(images.shape[-2:]) < smallest:
        raise ValueError(
            f"{where}: images must be at least {smallest} pixels a side, got {images.shape[-2]} x {images.shape[-1]}"
        )
