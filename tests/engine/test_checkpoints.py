"""Checkpoints: never half-written, verified when read, and free of code."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fssops.engine import checkpoints
from fssops.engine.checkpoints import (
    RunCheckpointError,
    copy_checkpoint,
    newest_good_checkpoint,
    previous_path,
    read_checkpoint,
    write_checkpoint,
)


def state(step: int, size: int = 1000) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.full((size,), float(step))}, "note": "ü", "list": [1, 2.5, None]}


def test_checkpoint_returns_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", state(3))
    read = read_checkpoint(tmp_path / "last.pt")
    assert read["step"] == 3
    assert read["list"] == [1, 2.5, None]
    assert torch.equal(read["model"]["weight"], torch.full((1000,), 3.0))


def test_plain_torch_load_reads_it_without_code(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", state(3))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert torch.load(tmp_path / "last.pt", weights_only=True, mmap=True)["step"] == 3


def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, state(1, 50))
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(good), (60,), generator=generator).tolist():
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(RunCheckpointError, match=r"last\.pt must"):
            read_checkpoint(path)
    path.write_bytes(good)
    assert read_checkpoint(path)["step"] == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, state(1))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RunCheckpointError, match="truncated"):
        read_checkpoint(path)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunCheckpointError, match=r"none\.pt must be a readable file, got No such file"):
        read_checkpoint(tmp_path / "none.pt")


def test_newest_good_checkpoint_passes_over_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "last.pt", state(step))
    assert newest_good_checkpoint(tmp_path)[1]["step"] == 2
    (tmp_path / "last.pt").write_bytes(b"damaged")
    path, found, problems = newest_good_checkpoint(tmp_path)
    assert (path.name, found["step"], len(problems)) == ("last.previous.pt", 1, 1)
    previous_path(tmp_path / "last.pt").unlink()
    with pytest.raises(RunCheckpointError, match="must hold a checkpoint"):
        newest_good_checkpoint(tmp_path)


def test_copy_is_independent_of_later_writes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pt", state(1))
    copy_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt")
    write_checkpoint(tmp_path / "last.pt", state(2))
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 1


@pytest.mark.parametrize("after", [0, 1000, 3000])
def test_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    write_checkpoint(tmp_path / "last.pt", state(1))
    written = 0

    def full(file: Any, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file.write(data)

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(RunCheckpointError, match=r"No space left on device; the earlier checkpoint is intact"):
        write_checkpoint(tmp_path / "last.pt", state(2))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_really_full_device_is_reported(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w+b", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        checkpoints._serialise(state(1), full)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo executed > executed",))


@pytest.mark.parametrize("wrapped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    if wrapped:
        write_checkpoint(path, {"model": Malicious()})  # with a right checksum
    else:
        path.write_bytes(pickle.dumps(Malicious()) + b" " * 200)
    with pytest.raises(RunCheckpointError, match=r"last\.pt must"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [EOFError(), KeyError(7), IndexError("pop from empty list"), AssertionError()])
def test_whatever_torch_says_of_a_made_up_file_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_checkpoint(tmp_path / "a.pt", state(1))

    def load(*_: Any, **__: Any) -> None:
        raise error  # all of these were met with changed bytes under a right checksum

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RunCheckpointError, match=r"a\.pt must hold tensors and plain values only, got: \S"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("number", [99, "x"])
def test_newer_format_is_refused(tmp_path: Path, number: Any) -> None:
    write_checkpoint(tmp_path / "a.pt", {"format": number})
    with pytest.raises(RunCheckpointError, match=f"must have format 1 or older, got {number}"):
        read_checkpoint(tmp_path / "a.pt")
