"""The table of layouts: how checkpoints name their tensors, and how those names become ours.

A system's file (``fssops/weights/<system>.py``) holds a tuple ``LAYOUTS``; its line in :data:`LAYOUT_MODULES` is all
the registration there is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of one network.

    Attributes:
        name: for readers and reports, e.g. "authors (kaixin96/PANet)".
        model: the ``name`` attribute of the module class that the names belong to: a system ("panet") or a backbone
            ("resnet"). A backbone's layout fills ``model.backbone`` of any system that has such a backbone.
        recognise: whether a set of keys is of this layout. Keys come without wrappers and without ``module.``.
        convert: the tensors under our names, for a module of that class; it may reshape, split, join or drop.
            Names it does not know it passes on unchanged, so that the report shows them as unexpected.
        also: further systems whose tensors bear the same names.
        ignore: regular expressions (``re.search`` on the checkpoint's names) of entries that are known not to matter,
            e.g. a classifier: they are listed apart in the report.
    """

    name: str
    model: str
    recognise: Callable[[Collection[str]], bool]
    convert: Callable[[State, nn.Module], dict[str, Tensor]]
    ignore: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def fits(self, model: str) -> bool:
        """Whether the names are those of a system or backbone."""
        return model == self.model or model in self.also


LAYOUT_MODULES: tuple[str, ...] = (
    "fssops.weights.panet",
    "fssops.weights.msanet",
    "fssops.weights.mm_former",
    "fssops.weights.mask_classification",
    "fssops.weights.transformers_names",
    "fssops.weights.swin",
    "fssops.weights.backbones",
)
"""Files with a tuple ``LAYOUTS``. The first layout that recognises a checkpoint is taken, so systems come first."""


def layouts_of(*models: str) -> list[Layout]:
    """The layouts of the named modules, or all layouts, in the order of the table."""
    found: list[Layout] = []
    for module in LAYOUT_MODULES:
        found.extend(importlib.import_module(module).LAYOUTS)
    return [layout for layout in found if not models or any(layout.fits(model) for model in models)]
