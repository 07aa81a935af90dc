"""What a call hands to PyTorch's dispatcher: how many operations, and whether the host waits for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
