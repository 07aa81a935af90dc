"""A folder a run: its files, and a lock so that two runs never write into one."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from lightning_fabric import Fabric

from fssops._version import VERSION
from fssops.engine.checkpoints import remove_leftovers, write_text_atomically
from fssops.engine.launch import run_on_first
from fssops.engine.toml_text import to_toml

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
"""By it a folder is known as a run's."""


class RunFolderError(RuntimeError):
    """The run folder cannot be used; the message names the folder and the cause."""

    exit_code = 2


class RunFolder:
    """Paths of a run and the lock on its folder.

    Attributes:
        path: the folder.
        took_over: a sentence when the lock of a run that has ended without releasing it was taken over.
    """

    _held: ClassVar[set[Path]] = set()  # POSIX record locks do not exclude a second run within one process

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.took_over = ""
        self._descriptor: int | None = None
        self._made: list[Path] = []

    @property
    def checkpoints(self) -> Path:
        """Folder of ``last.pt`` and ``best.pt``."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def settings(self) -> Path:
        """The resolved settings as JSON; ``settings.toml`` beside it holds the same as a recipe."""
        return self.path / SETTINGS_FILE

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Create the folder and hold it for this process; if no step is made in it, it is removed afterwards.

        Raises:
            RunFolderError: it cannot be written, or another run works in it.
        """
        self.create()
        self.lock()
        if self.took_over:
            logger.warning("note: %s", self.took_over)
        try:
            yield self
        finally:
            self.unlock()
            self.remove_if_nothing_happened()

    def create(self) -> None:
        """Create the folder and see that it can be written.

        Raises:
            RunFolderError: it is a file, read-only, or the disk is full.
        """
        self._made = missing_folders(self.path)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise RunFolderError(
                f"run folder: {self.path} must be a writable folder, got {error.strerror or error}"
            ) from None

    def lock(self) -> None:
        """Take the folder for this process; the system frees it when the process ends, however it ends.

        Raises:
            RunFolderError: another run works in it; the message names host and process.
        """
        path = self.path / "run.lock"
        key = path.resolve()
        if key in self._held:
            raise RunFolderError(f"run folder: {self.path} must be free, got a run of this process in it")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunFolderError(
                f"run folder: {self.path} must be a writable folder, got {error.strerror or error}"
            ) from None
        earlier = _read_owner(descriptor)
        try:
            # A record lock, not flock: loader processes forked later must not keep it after a killed trainer.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise RunFolderError(
                f"run folder: {self.path} must be free, got a run in it: process {earlier.get('pid', '?')} on "
                f"{earlier.get('host', '?')} since {earlier.get('since', '?')}"
            ) from None
        if earlier:
            self.took_over = (
                f"the run of process {earlier.get('pid', '?')} on {earlier.get('host', '?')} has ended without "
                "releasing the folder; going on"
            )
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        self._descriptor = descriptor
        self._held.add(key)
        remove_leftovers(self.checkpoints)
        remove_leftovers(self.path)

    def unlock(self) -> None:
        """Release the folder; does nothing when it is not held."""
        if self._descriptor is None:
            return
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None
        self._held.discard((self.path / "run.lock").resolve())

    def remove_if_nothing_happened(self) -> None:
        """Remove a folder that :meth:`create` made and in which no step was made, with parents made for it alone.

        A mistake in the settings should leave nothing behind.
        """
        if self.path not in self._made or not all(_is_preparation(path) for path in self.path.rglob("*")):
            return
        shutil.rmtree(self.path)
        remove_empty(self._made[1:])

    def save_settings(self, tables: Mapping[str, Any]) -> None:
        """Write the resolved settings (JSON and TOML) and the versions they were resolved with."""
        write_text_atomically(self.settings, json.dumps(tables, indent=2) + "\n")
        write_text_atomically(self.path / "settings.toml", to_toml(tables))
        write_text_atomically(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")

    def load_settings(self) -> dict[str, Any]:
        """Read the settings of an earlier run.

        Raises:
            RunFolderError: the folder holds none.
        """
        try:
            tables = json.loads(self.settings.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(
                f"run folder: {self.path} must hold {SETTINGS_FILE}, got {error.strerror or error}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"run folder: {self.settings} must be JSON, got {error}") from None
        if not isinstance(tables, dict):
            raise RunFolderError(f"run folder: {self.settings} must hold tables, got {type(tables).__name__}")
        return tables


@contextmanager
def locked_run(fabric: Fabric, choose: Callable[[], Path]) -> Iterator[RunFolder]:
    """The run folder that the first process chooses, creates and holds; every process must enter.

    Args:
        fabric: launched.
        choose: gives the folder; called on the first process only, and what it raises is raised on all.

    Raises:
        RunFolderError: as of :meth:`RunFolder.locked`; on the other processes a RuntimeError with its message.
    """
    with ExitStack() as held:
        yield RunFolder(run_on_first(fabric, lambda: held.enter_context(RunFolder(choose()).locked()).path))


def missing_folders(path: Path) -> list[Path]:
    """The folder and those above it that are not there yet, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, until one holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _is_preparation(path: Path) -> bool:
    """Whether a run has this before its first step: settings, and logs that are still empty."""
    if path.name == "metrics.jsonl":
        return path.stat().st_size == 0
    prepared = {"classes.json", "facts.json", "run.lock", SETTINGS_FILE, "settings.toml", "versions.json"}
    prepared |= {"recipe.toml"}  # and lists of a split, beside it
    return (
        path.is_dir()
        or path.name in prepared
        or path.parent.name == "splits"
        or path.name.startswith("events.out.tfevents")
    )


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    result = {"python": platform.python_version(), "platform": platform.platform(), "fssops": VERSION}
    for package in ("torch", "numpy", "pillow", "lightning-fabric", "pydantic"):
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            result[package] = "not installed"
    return result


def new_run_path(root: Path, name: str) -> Path:
    """Return a folder name under ``root`` that is not taken: ``<name>-<time>``, with a number where needed."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = root / stem, 1
    while path.exists():
        number += 1
        path = root / f"{stem}-{number}"
    return path


def latest_run(root: Path, name: str) -> Path:
    """Return the run folder of a recipe, named by :func:`new_run_path`, with the newest checkpoint.

    Raises:
        RunFolderError: there is none.
    """
    newest: dict[Path, int] = {}
    for folder in root.glob(f"{name}-*"):
        # What follows the name must be a time: the recipe r is not the recipe r-large.
        if re.fullmatch(r"\d{8}-\d{6}(-\d+)?", folder.name[len(name) + 1 :]):
            # Those one level deeper are of a first stage.
            checkpoints = [*folder.glob("checkpoints/*.pt"), *folder.glob("*/checkpoints/*.pt")]
            if checkpoints:
                newest[folder] = max(path.stat().st_mtime_ns for path in checkpoints)
    if not newest:
        raise RunFolderError(f"--resume: {root} must hold a run of {name} with a checkpoint, got none")
    return max(newest, key=lambda folder: newest[folder])


def _read_owner(descriptor: int) -> dict[str, Any]:
    text = os.pread(descriptor, 4096, 0).decode("utf-8", "replace")
    try:
        owner = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError:
        return {"pid": "unknown"}
    return owner if isinstance(owner, dict) else {"pid": "unknown"}
