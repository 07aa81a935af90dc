"""What a call hands to PyTorch's dispatcher: how many operations, and whether the host waits for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fssops.models import MODELS, create_model
from fssops.structures import FewShotBatch, ImageBatch

SIDE = 64

HOST_READS = frozenset(("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"))
"""Operations whose result, or its size, the host must know: on a GPU it waits for all that was launched before."""


class DispatchedOperations(TorchDispatchMode):
    """Counts the operations that are dispatched while it is entered; views, which run nothing, are left out.

    Attributes:
        counts: operations by name, such as "aten::convolution".
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    @property
    def host_reads(self) -> dict[str, int]:
        """Those of :data:`HOST_READS`."""
        return {name: count for name, count in self.counts.items() if name in HOST_READS}


def dispatched(run: Callable[[], Any], dtype: torch.dtype | None = None) -> DispatchedOperations:
    """What a call without gradients dispatches on the CPU, after another of its kind, which fills caches.

    Args:
        run: the call.
        dtype: of an autocast that each call enters; None: float32.
    """
    with torch.no_grad():
        for _ in range(2):
            operations = DispatchedOperations()
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None), operations:
                run()
    return operations


def one_prediction(name: str) -> Callable[[], Any]:
    """A call that predicts with a model of a system of the published size and random weights.

    It is of an episode with one support, of an image or of a clip of two frames, 64 pixels wide: the operations are as
    many for any size.
    """
    model: Any = create_model(name).eval()
    task, image = MODELS[name].task, torch.randn(1, 3, SIDE, SIDE)
    if task.startswith("few-shot"):
        mask = torch.zeros(1, 1, 1, SIDE, SIDE)
        mask[..., 10:30, 15:45] = 1
        labels = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.int64)
        batch = FewShotBatch(
            image[None, None], mask, 1 - mask, image[None], labels, torch.ones(1, 1, dtype=torch.int64)
        )
        return lambda: model(batch)
    if name in ("pspnet", "mm_former_segmenter"):
        return lambda: model(image)
    if name == "per_pixel_baseline":
        return lambda: model(ImageBatch([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)]))
    if task == "video":
        return lambda: model.predict(image.expand(2, -1, -1, -1), None, auxiliary=False, frames=2)
    return lambda: model.predict(image, None, auxiliary=False)
