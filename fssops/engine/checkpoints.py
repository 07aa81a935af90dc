"""Checkpoints that are never half-written and never execute code.

A checkpoint is what ``torch.save`` writes, so ``torch.load(path, weights_only=True)`` reads it anywhere. Its SHA-256
stands in the comment of the zip archive, hence a file vouches for itself and no second file can fall out of step.
Writing goes to a temporary file that is synced and then renamed over the old one; the one before stays as
``<name>.previous.pt`` until the next.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fssops.engine.archives import check_stored

FORMAT = 1
"""Version of the layout of the state dictionary; raised when an older reader could not understand a newer file."""

_COMMENT = b"fssops sha256 "
_COMMENT_SIZE = len(_COMMENT) + 64
_END_RECORD_SIZE = 22  # zip end-of-central-directory record without comment; its last two bytes count the comment
_CHUNK = 1 << 20
_UNREADABLE = (
    *(RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError),
    *(TypeError, LookupError, AttributeError, AssertionError),
)
"""What torch's reader raises of a file that was made up; a right checksum is easily given to one."""


class RunCheckpointError(RuntimeError):
    """A checkpoint is missing or must not be trusted; the message names file and cause."""

    exit_code = 2


class CheckpointWriteError(RunCheckpointError):
    """A checkpoint could not be written: full disk, read-only folder; the earlier one is intact."""

    exit_code = 1


class _RememberingFile:
    """A file that remembers its first ``OSError``, which torch's archive writer would turn into a vague one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return write_bytes(self.file, data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_bytes(file: BinaryIO, data: Any) -> int:
    """Write all of ``data``; the one place where checkpoint bytes reach the disk."""
    return file.write(data)


def write_checkpoint(path: Path, state: dict[str, Any], *, spare: bool = True) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) to ``path`` atomically.

    At every moment ``path`` holds either the earlier whole checkpoint or the new one.

    Args:
        path: the file.
        state: what to keep.
        spare: keep the earlier checkpoint beside the new one.

    Raises:
        CheckpointWriteError: the disk is full, the folder read-only, ...; the earlier checkpoint is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w+b") as file:
            _serialise(state, file)
            file.flush()
            os.fsync(file.fileno())
        if spare:
            _link_previous(path)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointWriteError(
            f"checkpoint: {path} must be writable, got {error.strerror or error}; the earlier checkpoint is intact"
        ) from error
    finally:
        _remove_quietly(temporary)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Make ``target`` a second name of a finished checkpoint, atomically and as a rule without copying bytes.

    Raises:
        CheckpointWriteError: the disk is full, the folder read-only, ...; an earlier ``target`` is intact.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _remove_quietly(temporary)
        try:
            # Sound because checkpoints are replaced by renaming, never written in place.
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointWriteError(f"checkpoint: {target} must be writable, got {error.strerror or error}") from error
    finally:
        _remove_quietly(temporary)


def read_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint after verifying its checksum; nothing in the file is executed.

    Raises:
        RunCheckpointError: the file is missing, truncated, altered, of a newer format, or no checkpoint of fssops.
    """
    verify_checkpoint(path)
    try:
        check_stored(path)
        state = torch.load(path, map_location=map_location, weights_only=True)
    except _UNREADABLE as error:
        raise RunCheckpointError(
            f"checkpoint: {path} must hold tensors and plain values only, got: {_brief(error)}"
        ) from None
    if not isinstance(state, dict) or "format" not in state:
        raise RunCheckpointError(f"checkpoint: {path} must be a checkpoint of fssops, got no field 'format'")
    if not isinstance(state["format"], int) or state["format"] > FORMAT:
        raise RunCheckpointError(
            f"checkpoint: {path} must have format {FORMAT} or older, got {state['format']}; update fssops to read it"
        )
    return state


def verify_checkpoint(path: Path) -> None:
    """Check the SHA-256 that a checkpoint carries.

    Raises:
        RunCheckpointError: naming what is wrong with the file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            if size < _COMMENT_SIZE + _END_RECORD_SIZE:
                raise RunCheckpointError(f"checkpoint: {path} must be whole, got {size} bytes (truncated)")
            file.seek(size - _COMMENT_SIZE)
            comment = file.read()
            if not comment.startswith(_COMMENT):
                raise RunCheckpointError(
                    f"checkpoint: {path} must end in its checksum, got none: truncated, or not written by fssops"
                )
            if _digest(file, size - _COMMENT_SIZE) != comment[len(_COMMENT) :].decode("ascii", "replace"):
                raise RunCheckpointError(f"checkpoint: {path} must match its checksum, got other bytes: damaged")
    except OSError as error:
        raise RunCheckpointError(f"checkpoint: {path} must be a readable file, got {error.strerror or error}") from None


def carries_checksum(path: Path) -> bool:
    """Whether a file ends, or before it was cut ended, as a checkpoint of fssops does; it may be damaged."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 2 * _COMMENT_SIZE, 0))
        return _COMMENT in file.read()


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the newest one of this name is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


_NAMES = ("last.pt", "last.previous.pt", "best.pt")


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds any checkpoint, good or bad."""
    return any((folder / name).exists() for name in _NAMES)


def newest_good_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Find the newest checkpoint that passes its checksum.

    Args:
        folder: holds ``last.pt``, ``last.previous.pt``, ``best.pt``, which are tried in this order.

    Returns:
        its path, its contents, and a line for each newer file that had to be passed over.

    Raises:
        RunCheckpointError: there is none; the message tells what was wrong with each.
    """
    problems: list[str] = []
    for name in _NAMES:
        path = folder / name
        if not path.exists():
            continue
        try:
            return path, read_checkpoint(path), problems
        except RunCheckpointError as error:
            problems.append(str(error))
    reasons = "; ".join(problems) or "no checkpoint file"
    raise RunCheckpointError(f"checkpoint: {folder} must hold a checkpoint, got {reasons}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed."""
    for leftover in folder.glob(".*.tmp"):
        _remove_quietly(leftover)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small text file so that it is never seen half-written.

    Raises:
        OSError: the folder is read-only, the disk full, ...
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write_bytes(file, text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        _remove_quietly(temporary)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _serialise(state: dict[str, Any], file: BinaryIO) -> None:
    remembering = _RememberingFile(file)
    try:
        torch.save({"format": FORMAT, **state}, remembering)  # type: ignore[arg-type]
    except RuntimeError:
        if remembering.error is not None:
            raise remembering.error from None
        raise
    size = file.tell()
    digest = _digest(file, size, plain=True)
    file.seek(size - 2)
    write_bytes(file, _COMMENT_SIZE.to_bytes(2, "little"))
    file.seek(size)
    write_bytes(file, _COMMENT + digest.encode("ascii"))


def _digest(file: BinaryIO, size: int, plain: bool = False) -> str:
    """SHA-256 of the first ``size`` bytes with the comment's length taken as 0, i.e. of what torch wrote."""
    digest = hashlib.sha256()
    file.seek(0)
    left = size - 2
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")
    if plain:
        file.seek(size)
    return digest.hexdigest()


def _link_previous(path: Path) -> None:
    if not path.exists():
        return
    spare = path.with_name(f".{path.name}.{os.getpid()}.link.tmp")
    _remove_quietly(spare)
    try:
        os.link(path, spare)
        os.replace(spare, previous_path(path))
    except OSError:
        # No hard links here: the rename alone still never leaves a gap, only the spare copy is missing.
        _remove_quietly(spare)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # A read-only folder: whatever made it so is reported by the write itself.
        return


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
