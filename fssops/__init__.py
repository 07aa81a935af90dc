"""fssops: mask segmentation on C++/CUDA operators of its own.

``import fssops`` is cheap: models, data and engine are imported when they are first asked for. It prints nothing:
messages go to the logger ``fssops``, which the verbs show.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from fssops._version import VERSION as __version__

if TYPE_CHECKING:
    from fssops.api import evaluate, load, train
    from fssops.engine.callbacks import Callback
    from fssops.fixed_class_predictors import UniversalPredictor, VideoPredictor
    from fssops.models import create_model, list_models
    from fssops.predictor import FewShotPredictor
    from fssops.runs import Run, Scores
    from fssops.weights import LoadReport, from_pretrained, load_weights, save_pretrained

__all__ = [
    "Callback",
    "FewShotPredictor",
    "LoadReport",
    "Run",
    "Scores",
    "UniversalPredictor",
    "VideoPredictor",
    "__version__",
    "create_model",
    "evaluate",
    "from_pretrained",
    "list_models",
    "load",
    "load_weights",
    "save_pretrained",
    "train",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_LAZY = {
    "create_model": "fssops.models",
    "list_models": "fssops.models",
    "load": "fssops.api",
    "train": "fssops.train",  # modules that can be called, see command_line.CallableVerb
    "evaluate": "fssops.evaluate",
    "Run": "fssops.runs",
    "Scores": "fssops.runs",
    "Callback": "fssops.engine.callbacks",
    "UniversalPredictor": "fssops.fixed_class_predictors",
    "VideoPredictor": "fssops.fixed_class_predictors",
    "load_weights": "fssops.weights",
    "save_pretrained": "fssops.weights",
    "from_pretrained": "fssops.weights",
    "LoadReport": "fssops.weights",
    "FewShotPredictor": "fssops.predictor",
    "ops": "fssops.ops",
    "reference": "fssops.reference",
    "structures": "fssops.structures",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fssops' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name] == f"fssops.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
