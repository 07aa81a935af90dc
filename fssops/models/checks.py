"""Checks of options and inputs that several systems make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

# Types of options with their bounds; the description ends the sentence "<option> must be ...".
Count = Annotated[int, Field(ge=1, description="at least 1")]
Natural = Annotated[int, Field(ge=0, description="at least 0")]
Ratio = Annotated[float, Field(ge=1, description="at least 1")]
NonNegative = Annotated[float, Field(ge=0, description="at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="more than 0")]
Share = Annotated[float, Field(ge=0, le=1, description="in 0..1")]
Rate = Annotated[float, Field(ge=0, lt=1, description="at least 0 and less than 1")]


def check_options(config: Any, **choices: Sequence[str]) -> None:
    """Check every option of a configuration by its type, and convert what TOML writes otherwise, lists to tuples.

    Args:
        config: a dataclass, which calls this first in ``__post_init__``.
        **choices: what an option may be, where that is no matter of its type.

    Raises:
        ValueError: names the configuration, each bad option, its rule and its value.
    """
    config_class: Any = type(config)
    faults = []
    for option, adapter in _adapters(config_class).items():
        value = getattr(config, option)
        try:
            object.__setattr__(config, option, adapter.validate_python(value))
        except ValidationError as error:
            (problem, *_) = error.errors()
            faults.append(f"{'.'.join(map(str, (option, *problem['loc'])))} must {_rule(config, option, problem)}")
            continue
        if option in choices and value not in choices[option]:
            faults.append(f"{option} must be one of {', '.join(choices[option])}, got {value!r}")
    if faults:
        raise ValueError(f"{config_class.__name__}: {'; '.join(faults)}")


@cache
def _adapters(config_class: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(config_class)}


def _rule(config: Any, option: str, problem: Any) -> str:
    """What pydantic found, as the end of our sentence."""
    hint = get_type_hints(type(config), include_extras=True)[option]
    if problem["type"] == "literal_error":
        rule = "be one of " + problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    elif re.match("greater_than|less_than", problem["type"]):
        rule = "be " + hint.__metadata__[0].description
    else:
        rule = re.sub(r"^\w+ should ", "", problem["msg"])  # "Input should be a valid integer"
    return f"{rule}, got {problem['input']!r}"


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
