"""Whose weights a checkpoint holds: recognised from what it says of itself, or from the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from fssops.models import MODELS
from fssops.models.layers.singular_values import plain_name
from fssops.weights.layout import Layout, State
from fssops.weights.layouts import LAYOUTS, layouts_of
from fssops.weights.reading import PREFIXES, Checkpoint, CheckpointError

FSSOPS = "fssops"
"""What reports call our own layout."""
COUNTER = "num_batches_tracked"
"""Step counters of batch normalisation: written by some trainers, read by none of the systems."""


class Place(NamedTuple):
    """Where weights belong: their layout (None: our own), the module, and its prefix in the model's names."""

    layout: Layout | None
    target: nn.Module
    prefix: str


def recognise(model: nn.Module, checkpoint: Checkpoint) -> tuple[Place, State, list[str]]:
    """Where the weights belong, those that do, and names of what lies beside them.

    Trainers such as Lightning keep a model below one attribute of theirs, with losses and measures beside it.
    """
    try:
        return _place(model, checkpoint.state, checkpoint), checkpoint.state, []
    except CheckpointError:
        for prefix in PREFIXES:
            inner = {
                key.removeprefix(prefix): value for key, value in checkpoint.state.items() if key.startswith(prefix)
            }
            if inner:
                try:
                    place = _place(model, inner, checkpoint)
                except CheckpointError:
                    continue
                return place, inner, [key for key in checkpoint.state if not key.startswith(prefix)]
        raise


def _place(model: nn.Module, state: State, checkpoint: Checkpoint) -> Place:
    keys = state.keys()
    names = {plain_name(key) for key in keys if not key.endswith(COUNTER)}
    whole = Place(None, model, "")
    # A system may be made of others, each with weights of its own (``parts``).
    systems = [whole, *(Place(None, model.get_submodule(part), f"{part}.") for part in getattr(model, "parts", ()))]
    backbone = getattr(model, "backbone", None)
    backbones = [Place(None, backbone, "backbone.")] if isinstance(backbone, nn.Module) else []
    places = [*systems, *backbones]
    described = " with backbone ".join(name_of(place.target) for place in (whole, *backbones))
    shares = [_share(names, place.target) for place in places]
    if checkpoint.model:  # it says itself what it is of
        named = [place for place in places if name_of(place.target) == checkpoint.model]
        if not named and max(shares) < 0.5:
            raise CheckpointError(
                f"weights: {checkpoint.source} is of {checkpoint.model}, and the model is {described}; build the "
                "matching model, or give weights for this one"
            )
        return named[0] if named else places[shares.index(max(shares))]
    for place, share in zip(systems, shares, strict=False):
        if share >= 0.9:
            # Some layouts name nearly everything as we do (Swin's); what is left over is theirs to explain.
            layouts = layouts_of(name_of(model)) if share < 1 and place is whole else []
            return place._replace(layout=next((layout for layout in layouts if layout.recognise(keys)), None))
    for layout in LAYOUTS:
        if layout.recognise(keys):
            if layout.model not in MODELS and not layout.fits(name_of(model)) and _is_like(names, model):
                break  # weights of such a model, whose backbone alone is named as in this layout
            for place in places:
                if layout.fits(name_of(place.target)):
                    return place._replace(layout=layout)
            raise CheckpointError(
                f"weights: {checkpoint.source} looks like {layout.name} weights of {layout.model}, and the model is "
                f"{described}; build the matching model, or give weights for this one"
            )
    if backbones and shares[-1] >= 0.5:
        return backbones[0]
    if shares[0] >= 0.5 or _is_like(names, model):
        return whole
    layouts = layouts_of(*(name_of(place.target) for place in places))
    raise CheckpointError(
        f"weights: {checkpoint.source} is of no layout known for {name_of(model)} (known: "
        f"{'; '.join([FSSOPS, *(layout.name for layout in layouts)])}); its first names are {', '.join(list(keys)[:3])}"
    )


def _share(names: Collection[str], module: nn.Module) -> float:
    """The share of names that a module's tensors have."""
    return len({plain_name(key) for key in module.state_dict()} & set(names)) / max(len(names), 1)


def _is_like(names: Collection[str], model: nn.Module) -> bool:
    """Whether names are those of such a model with other options: other numbers of layers, another backbone."""

    def forms(names: Collection[str]) -> set[str]:
        return {re.sub(r"\d+", "#", name) for name in names}

    def beyond_the_backbone(names: set[str]) -> set[str]:
        return {name for name in names if not name.startswith("backbone.")}

    theirs, ours = forms(names), forms([plain_name(key) for key in model.state_dict()])
    if beyond_the_backbone(theirs) or beyond_the_backbone(ours):
        theirs, ours = beyond_the_backbone(theirs), beyond_the_backbone(ours)
    return 0 < len(theirs) <= 2 * len(theirs & ours)


def name_of(model: nn.Module) -> str:
    """What a system or a backbone is called in a table of layouts and in messages."""
    return str(getattr(model, "name", type(model).__name__))
