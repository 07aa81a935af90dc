"""Reading checkpoint files: every format, and everything that must be refused without running it."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fssops.weights import CheckpointError, read_weights


class Touch:
    """Pickles to a call that makes a file, as a malicious checkpoint would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pkl", ".bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    trace = tmp_path / "ran"
    weights = np.zeros(2) if suffix == ".pkl" else torch.zeros(2)
    payload: Any = {"model": {"w": weights}, "extra": Touch(trace)} if wrapped else Touch(trace)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path)
    with pytest.raises(CheckpointError, match=f"model{suffix} is refused: .*system") as error:
        read_weights(path)
    assert "executed" in str(error.value) or "executes" in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nlist\n(I0\ntS'b'\ntR.",
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'x'\ntR.",
        b"cnumpy\nndarray\n((I1\ntS'O'\ntR.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"c__builtin__\nbytes\n(I99\ntR.",
        b"P1\n.",
    ],
    ids=[
        "eval",
        "numpy.load",
        "list as array",
        "getattr",
        "array call",
        "object dtype",
        "codec",
        "bytes",
        "persistent id",
    ],
)
def test_a_pickle_may_name_nothing_but_plain_arrays_and_containers(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(code)
    with pytest.raises(CheckpointError, match="is refused"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "half": np.ones((2, 1, 2), np.float16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    value = {"model": OrderedDict(arrays), "__author__": "x", "score": np.float64(0.5), "list": [1, (2.0, None)]}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    state = read_weights(tmp_path / "m.pkl").state
    assert list(state) == list(arrays)
    for name, array in arrays.items():
        assert state[name].shape == array.shape
        assert np.array_equal(state[name].numpy(), array)


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": np.array([{}], dtype=object)}}, protocol=2))
    with pytest.raises(CheckpointError, match="must hold plain numbers"):
        read_weights(tmp_path / "m.pkl")


def test_a_pickle_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"]q\x00h\x00a.")
    with pytest.raises(CheckpointError, match="RecursionError"):
        read_weights(tmp_path / "m.pkl")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named_with_what_to_do(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"w": torch.randn(500)}, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"w": np.random.default_rng(0).normal(size=500)}}))
    else:
        save_file({"w": torch.randn(500)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=rf"model{suffix} is (truncated|empty).*copy it again"):
        read_weights(path)


def test_a_text_file_with_a_checkpoints_name_is_refused(tmp_path: Path) -> None:
    for suffix in (".pth", ".pkl", ".safetensors"):
        (tmp_path / f"page{suffix}").write_text("<html>404 not found</html>" * 50)
        with pytest.raises(CheckpointError, match=f"page{suffix}"):
            read_weights(tmp_path / f"page{suffix}")


def test_missing_unknown_and_empty_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_weights(tmp_path / "nothing.pth")
    (tmp_path / "weights.h5").write_text("x")
    with pytest.raises(CheckpointError, match=r"weights\.h5 must end in \.pth"):
        read_weights(tmp_path / "weights.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"folder .* must hold model\.safetensors"):
        read_weights(tmp_path / "folder")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    with pytest.raises(CheckpointError, match="must hold tensors by name, got epoch"):
        read_weights(tmp_path / "no_tensors.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="must hold a state dict, got list"):
        read_weights(tmp_path / "list.pth")


def test_wrappers_and_prefixes_are_taken_off_and_other_entries_kept_aside() -> None:
    inner = {"module._orig_mod.w": torch.ones(2), "module._orig_mod.b": np.zeros(3, np.float32)}
    checkpoint = read_weights({"model": {"state_dict": inner}, "epoch": 4})
    assert sorted(checkpoint.state) == ["b", "w"]
    mixed = read_weights({"module.w": torch.ones(2), "w": torch.ones(1), "note": "text"})
    assert sorted(mixed.state) == ["module.w", "w"]
    assert mixed.skipped == ["note"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", b"[]", "config.json must hold a JSON object, got list"),
        ("config.json", b"\xff{}", "config.json must be JSON, got .*utf-8"),
        ("model.safetensors.index.json", b"[1]", "index.json must hold a JSON object, got list"),
        ("model.safetensors.index.json", b"{}", "index.json must map names to shards under 'weight_map', got None"),
        ("model.safetensors.index.json", b'{"weight_map": ["a"]}', r"under 'weight_map', got \['a'\]"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "under 'weight_map', got {'a': 3}"),
    ],
)
def test_folders_whose_json_says_something_else_are_told(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    (tmp_path / file).write_bytes(content)
    if file == "config.json":
        save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=told):
        read_weights(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_containers_that_hold_themselves_are_refused(tmp_path: Path, suffix: str) -> None:
    ring: dict[str, Any] = {"w": np.zeros(1) if suffix == ".pkl" else torch.zeros(1)}
    ring["model"] = ring
    path = tmp_path / f"ring{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(ring))
    else:
        torch.save(ring, path)
    with pytest.raises(CheckpointError, match=f"ring{suffix} is .*ecursion"):
        read_weights(path)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta")],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_that_no_weight_can_be_set_from_are_named(value: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match="w must be a dense tensor of real numbers, got torch"):
        read_weights({"v": torch.zeros(1), "w": value})
