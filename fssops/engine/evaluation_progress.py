"""How far an evaluation has come, on disk: interrupted, it goes on where it was, with any number of processes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fssops.engine.checkpoints import CheckpointError, CheckpointWriteError, read_checkpoint, write_checkpoint

FOLDER = "progress"
"""Where the files lie, within the folder of the results."""


class EvaluationProgress:
    """Shares items among processes, and keeps on disk what was counted of them.

    Every process writes ``<name>-<fingerprint>-<generation>-<rank>.pt``: the items it has finished and the states that
    hold their counts. A later start reads the newest generation; its first process writes all that was found as a file
    of the next generation before anyone goes on. So nothing is counted twice, whenever the job is killed. The files
    stay until :func:`discard_progress`: of several evaluations the finished ones need not be made again.

    Args:
        folder: of the results; None keeps nothing.
        name: of what is evaluated, for the file names.
        decisive: everything that decides the counts (settings, weights, lists); other values do not find these files.
        fabric: launched; every process must make this object, with the same arguments.
        every: seconds between two writes, at least; writing never takes more than a twentieth of the time.

    Attributes:
        done: items that an earlier start has finished.
        states: what ``counted`` was given for them; on the first process only, empty on the others.
    """

    def __init__(
        self, folder: Path | None, name: str, decisive: Mapping[str, Any], fabric: Fabric, *, every: float = 30.0
    ) -> None:
        self.fabric, self.every, self.name = fabric, every, name.replace(" ", "-").replace("/", "-")
        self.folder = None if folder is None else folder / FOLDER
        self._kept: list[dict[str, Any]] = []
        self._carried: list[Tensor] = []
        self.done: frozenset[int] = frozenset()
        self._generation = 1
        self._own: list[int] = []
        self._state: Callable[[], Any] | None = None
        self._earlier: list[int] = []
        self._due = time.monotonic() + every
        if self.folder is None:
            return
        text = json.dumps(decisive, sort_keys=True, default=str)
        self._stem = f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        found: tuple[int, list[int]] = (0, [])
        if fabric.is_global_zero:
            found = self._read(self.folder)
        if fabric.world_size > 1:
            found = fabric.broadcast(found)
        generation, self._earlier = found
        self.done, self._generation = frozenset(self._earlier), generation + 1
        if self.done:
            if fabric.is_global_zero:
                self._try_to_write()
                print(f"{name}: {len(self.done)} counted before an interruption; going on", file=sys.stderr)
            fabric.barrier()
        if not fabric.is_global_zero:
            self._earlier = []

    @property
    def states(self) -> list[Any]:
        """See the class."""
        return [kept["state"] for kept in self._kept]

    def carry(self, counts: Sequence[Tensor]) -> None:
        """Keep further counts, which are added to in place: those of an earlier start are added to them now."""
        self._carried = list(counts)
        for kept in self._kept:
            for own, earlier in zip(self._carried, kept["carried"], strict=True):
                own += earlier.to(own.device)

    def mine(self, items: Iterable[int]) -> list[int]:
        """This process's share of the items that are left: every one belongs to exactly one process."""
        left = [item for item in items if item not in self.done]
        return left[self.fabric.global_rank :: self.fabric.world_size]

    def counted(self, item: int, state: Callable[[], Any]) -> None:
        """Note that an item is finished; ``state`` gives tensors and plain values that hold its counts, and all before.

        ``state`` is called now and then only; it must not hold what :attr:`states` holds.
        """
        if self.folder is None:
            return
        self._own.append(item)
        self._state = state
        now = time.monotonic()
        if now >= self._due:
            self._try_to_write()
            self._due = time.monotonic() + max(self.every, 20 * (time.monotonic() - now))

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None and self._own:
            self._try_to_write()

    def _read(self, folder: Path) -> tuple[int, list[int]]:
        files: dict[int, list[Path]] = {}
        for path in folder.glob(f"{self._stem}-*-*.pt"):
            generation = path.stem.split("-")[-2]
            if generation.isdigit():
                files.setdefault(int(generation), []).append(path)
        done: list[int] = []
        for path in sorted(files.get(max(files, default=0), [])):
            try:
                kept = read_checkpoint(path)
            except CheckpointError:
                continue  # its items are counted again
            done += kept["done"]
            self._kept += kept["states"]
        return max(files, default=0), done

    def _try_to_write(self) -> None:
        """Write; an evaluation does not end because its progress cannot be kept."""
        try:
            self._write()
        except CheckpointWriteError as error:
            print(f"{self.name}: progress is no longer kept: {error}", file=sys.stderr)
            self.folder = None

    def _write(self) -> None:
        assert self.folder is not None
        path = self.folder / f"{self._stem}-{self._generation}-{self.fabric.global_rank}.pt"
        states = list(self._kept)
        if self._state is not None:
            earlier = [kept["carried"] for kept in self._kept]
            carried = [own.cpu() - sum(parts) for own, *parts in zip(self._carried, *earlier, strict=True)]
            states.append({"state": self._state(), "carried": carried})
        write_checkpoint(
            path, {"kind": "progress", "done": [*self._earlier, *self._own], "states": states}, spare=False
        )
        if self.fabric.is_global_zero:
            for old in self.folder.glob(f"{self._stem}-*-*.pt"):
                generation = old.stem.split("-")[-2]
                if generation.isdigit() and int(generation) < self._generation:
                    old.unlink(missing_ok=True)


def discard_progress(folder: Path, fabric: Fabric) -> None:
    """Remove what was kept, when the results are written; every process must call."""
    if fabric.world_size > 1:
        fabric.barrier()
    if fabric.is_global_zero:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Digest of a state dict: names, shapes and bytes."""
    value = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        value.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        value.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def without(tables: Mapping[str, Any], *dotted: str) -> dict[str, Any]:
    """Settings without the keys that do not decide what is counted."""
    return {
        table: {key: value for key, value in values.items() if f"{table}.{key}" not in dotted and table not in dotted}
        if isinstance(values, Mapping)
        else values
        for table, values in tables.items()
        if table not in dotted
    }
