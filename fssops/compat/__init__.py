"""Stand-ins for the extensions that published code imports, on this package's operators.

Importing this package changes nothing. One import replaces the authors' extension of multi-scale deformable attention::

    import fssops.compat.MultiScaleDeformableAttention   # before the code that imports the extension

after which ``import MultiScaleDeformableAttention as MSDA``, as Deformable DETR, Mask2Former, DINO and GroundingDINO
have it, gives :mod:`fssops.compat.MultiScaleDeformableAttention`, on CPU and CUDA. :func:`install` does the same as a
call. Code that can be edited may as well say ``from fssops.compat import MultiScaleDeformableAttention as MSDA``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["install"]


def install() -> ModuleType:
    """Make ``import MultiScaleDeformableAttention`` give the stand-in, and return it.

    A module of that name that was imported before is replaced for imports to come; code that holds it keeps it.
    """
    module = importlib.import_module("fssops.compat.MultiScaleDeformableAttention")
    module.register()
    return module
