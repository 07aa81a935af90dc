"""Checks of configurations and inputs that several systems make."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args, get_type_hints

from torch import Tensor


def check_choices(config: object) -> None:
    """Check every field of a configuration whose type is a ``Literal``.

    Raises:
        ValueError: names the configuration, the field and what it may be.
    """
    hints = get_type_hints(type(config))
    for option in fields(config):  # type: ignore[arg-type]
        allowed, value = get_args(hints[option.name]), getattr(config, option.name)
        if allowed and value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"{type(config).__name__}: {option.name} must be one of {choices}, got {value!r}")


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
