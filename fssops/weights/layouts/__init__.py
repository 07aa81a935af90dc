"""How published checkpoints name their tensors: one file a system, and one each for backbones and transformers.

A file has a tuple ``LAYOUTS`` and is found by being in this folder, so a system's weights are added by its file alone.
"""

from __future__ import annotations

import importlib
import pkgutil

from fssops.models import MODELS
from fssops.weights.layout import Layout


def _of_all_files() -> tuple[Layout, ...]:
    files = sorted(info.name for info in pkgutil.iter_modules(__path__))
    layouts = [layout for name in files for layout in importlib.import_module(f"{__name__}.{name}").LAYOUTS]
    return tuple(sorted(layouts, key=lambda layout: layout.model not in MODELS))


LAYOUTS: tuple[Layout, ...] = _of_all_files()
"""Every layout. The first that recognises a checkpoint is taken; systems come first, since they hold a backbone too."""


def layouts_of(*models: str) -> list[Layout]:
    """The layouts of the named systems and backbones, or all, in the order of the table."""
    return [layout for layout in LAYOUTS if not models or any(layout.fits(model) for model in models)]
