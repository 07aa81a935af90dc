"""How far an evaluation has come, on disk: interrupted, it goes on where it was, with any number of processes."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fssops.engine.checkpoints import CheckpointWriteError, RunCheckpointError, read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

FOLDER = "progress"
"""Where the files lie, within the folder of the results."""

_FORM = 2
"""Of what the files hold: those of another form are not found."""


class EvaluationProgress:
    """Shares items among processes, and keeps on disk what was counted of them.

    Every process writes ``<name>-<fingerprint>-<generation>-<rank>.pt``: the items it has finished and the states that
    hold their counts. A later start reads the newest generation; its first process writes all of it as a file of the
    next generation before anyone goes on. So nothing is counted twice, whenever the job is killed. The files stay until
    :func:`discard_progress`: of several evaluations the finished ones need not be made again.

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
        self.done: frozenset[int] = frozenset()
        self.states: list[Any] = []
        self._earlier_items: list[int] = []
        self._items: list[int] = []
        self._state: Callable[[], Any] | None = None
        self._generation = 1
        self._due = time.monotonic() + every
        if self.folder is None:
            return
        text = json.dumps([_FORM, decisive], sort_keys=True, default=str)
        self._stem = f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        generation, items = self._read(self.folder) if fabric.is_global_zero else (0, [])
        if fabric.world_size > 1:
            generation, items = fabric.broadcast((generation, items))
        self.done, self._generation = frozenset(items), generation + 1
        if fabric.is_global_zero:
            self._earlier_items = items
        if self.done:
            if fabric.is_global_zero:
                self._try_to_write()
                logger.warning("%s: %d counted before an interruption; going on", name, len(self.done))
            fabric.barrier()

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
        self._items.append(item)
        self._state = state
        now = time.monotonic()
        if now >= self._due:
            self._try_to_write()
            self._due = time.monotonic() + max(self.every, 20 * (time.monotonic() - now))

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None and self._items:
            self._try_to_write()

    def _read(self, folder: Path) -> tuple[int, list[int]]:
        """The newest generation and the items finished in it, whose states are taken over."""
        files = self._files(folder)
        newest = max(files, default=0)
        items: list[int] = []
        for path in sorted(files.get(newest, [])):
            try:
                progress = read_checkpoint(path)
            except RunCheckpointError:
                continue  # its items are counted again
            items += progress["done"]
            self.states += progress["states"]
        return newest, items

    def _files(self, folder: Path) -> dict[int, list[Path]]:
        """The files of this evaluation by their generation."""
        files: dict[int, list[Path]] = {}
        for path in folder.glob(f"{self._stem}-*-*.pt"):
            generation = path.stem.split("-")[-2]
            if generation.isdigit():
                files.setdefault(int(generation), []).append(path)
        return files

    def _try_to_write(self) -> None:
        """Write; an evaluation does not end because its progress cannot be kept."""
        try:
            self._write()
        except CheckpointWriteError as error:
            logger.warning("%s: progress is no longer kept: %s", self.name, error)
            self.folder = None

    def _write(self) -> None:
        assert self.folder is not None
        path = self.folder / f"{self._stem}-{self._generation}-{self.fabric.global_rank}.pt"
        states = [*self.states, *([] if self._state is None else [self._state()])]
        content = {"kind": "progress", "done": [*self._earlier_items, *self._items], "states": states}
        write_checkpoint(path, content, spare=False)
        if self.fabric.is_global_zero:
            for generation, paths in self._files(self.folder).items():
                for old in paths if generation < self._generation else []:
                    old.unlink(missing_ok=True)


def discard_progress(folder: Path, fabric: Fabric) -> None:
    """Remove the progress of a folder, when its results are written; every process must call."""
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
