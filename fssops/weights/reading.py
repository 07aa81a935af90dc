"""Reading checkpoint files and folders: tensors only, whatever the format.

====================  =======================================================================================
``.pth .pt .ckpt``    ``torch.load(weights_only=True)``; plain numpy scalars beside the tensors are let through
``.pkl``              detectron2's pickled numpy arrays, by :mod:`fssops.weights.restricted_pickle`
``.safetensors``      with its metadata
a folder              transformers' layout: ``config.json`` beside ``model.safetensors``, its shards with their index,
                      or ``pytorch_model.bin``
====================  =======================================================================================
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fssops.engine.archives import ArchiveBombError, check_stored
from fssops.weights import restricted_pickle

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params")
PREFIXES = ("module.", "_orig_mod.")
MEND = "; download or copy it again"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is of another model, or does not fit."""


@dataclass
class Checkpoint:
    """What a file or folder holds.

    Attributes:
        state: name to tensor (CPU), without wrappers and without a common ``module.``.
        source: the path, or "state dict", for messages.
        format: "torch", "pickle", "safetensors" or "memory".
        config: the ``config.json`` of a transformers folder.
        metadata: of a safetensors file.
        skipped: names of entries that are not tensors.
    """

    state: dict[str, Tensor]
    source: str
    format: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def read_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: a file, a folder in transformers' layout, or a state dict that is already in memory.

    Raises:
        FileNotFoundError: there is no such path.
        CheckpointError: the file is truncated, of no known format, or holds something other than tensors and plain
            containers (which is refused without executing any of it).
    """
    if isinstance(source, Mapping):
        return _unwrapped(source, "state dict", "memory")
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"load_weights: path must exist, got {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"load_weights: {path} is empty (0 bytes){MEND}")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        checkpoint = _unwrapped(state, str(path), "safetensors")
        checkpoint.metadata = metadata
        return checkpoint
    if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        return _unwrapped(_read_pickle(path), str(path), "pickle")
    if path.suffix in (*TORCH_SUFFIXES, ".pkl"):
        try:
            check_stored(path)
        except ArchiveBombError as error:
            raise CheckpointError(f"load_weights: {error}") from None
        return _unwrapped(_read_torch(path), str(path), "torch")
    known = ", ".join((*TORCH_SUFFIXES, ".pkl", ".safetensors"))
    raise CheckpointError(
        f"load_weights: {path} must end in {known} or be a folder, got {path.suffix or 'no ending'!r}"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"load_weights: {path} is truncated or not a safetensors file ({error}){MEND}") from None


def _read_pickle(path: Path) -> Any:
    try:
        return restricted_pickle.load_arrays(path.read_bytes())
    except restricted_pickle.ForbiddenPickleError as error:
        raise CheckpointError(
            f"load_weights: {path} is refused: {error}; only numpy arrays in dictionaries and lists are read from "
            "pickles, and nothing in the file was executed. Ask its author for a safetensors file"
        ) from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"load_weights: {path} is truncated or not a pickle ({error}){MEND}") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"load_weights: {path} is refused: {type(error).__name__} while reading") from None


def _read_torch(path: Path) -> Any:
    # Trainers often keep a best score beside the tensors, which numpy makes a scalar type of its own.
    stand_ins = [
        (value, f"{module}.{name}") for (module, name), value in restricted_pickle.ALLOWED.items() if "numpy" in module
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            return restricted_pickle.plain(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported class" in reason or "GLOBAL" in reason:
            name = reason.split("GLOBAL ", 1)[-1].split(" ", 1)[0] if "GLOBAL " in reason else "a foreign class"
            raise CheckpointError(
                f"load_weights: {path} is refused: it asks for {name}, which is neither a tensor nor a container, and "
                "fssops never executes what a checkpoint holds. Save its state dict alone, or as safetensors, with "
                "the code that wrote it"
            ) from None
        raise CheckpointError(f"load_weights: {path} is truncated or not a checkpoint{MEND}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"load_weights: {path} is truncated or not a checkpoint ({first}){MEND}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """What a JSON file says, which must be an object.

    Raises:
        OSError: it cannot be read.
        CheckpointError: it is no JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError too
        raise CheckpointError(f"load_weights: {path} must be JSON, got {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"load_weights: {path} must hold a JSON object, got {type(found).__name__}")
    return found


def _read_folder(path: Path) -> Checkpoint:
    config = read_json_object(path / "config.json") if (path / "config.json").exists() else {}
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        checkpoint = read_weights(path / "model.safetensors")
    elif index.exists():
        checkpoint = _read_shards(path, index)
    elif (path / "pytorch_model.bin").exists():
        checkpoint = read_weights(path / "pytorch_model.bin")
    else:
        raise CheckpointError(
            f"load_weights: folder {path} must hold model.safetensors, model.safetensors.index.json with its shards, "
            f"or pytorch_model.bin, got {sorted(p.name for p in path.iterdir())[:10]}"
        )
    checkpoint.source, checkpoint.config = str(path), config
    return checkpoint


def _read_shards(path: Path, index: Path) -> Checkpoint:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"load_weights: {index} must map names to shards under 'weight_map', got {places!r:.60}")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"load_weights: {index} must name shards in its own folder, got {shard!r}")
        if not (path / shard).exists():
            raise CheckpointError(f"load_weights: shard {path / shard} named by {index.name} is missing{MEND}")
        state.update(_read_safetensors(path / shard)[0])
    absent = sorted(set(places) - set(state))
    if absent:
        raise CheckpointError(f"load_weights: {path} lacks tensors that {index.name} lists, e.g. {absent[0]}{MEND}")
    return _unwrapped(state, str(path), "safetensors")


def _unwrapped(loaded: Any, source: str, kind: str) -> Checkpoint:
    """Find the state dict in what a trainer saved, and strip what wrappers put before its names."""
    while isinstance(loaded, Mapping):
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"load_weights: {source} must hold a state dict, got {type(loaded).__name__}")
    state: dict[str, Tensor] = {}
    skipped: list[str] = []
    for key, value in loaded.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        if isinstance(key, str) and isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
                raise CheckpointError(
                    f"load_weights: {source}: {key} must be a dense tensor of real numbers, got {value.dtype}"
                    f" {value.layout} on {value.device}"
                )
            state[key] = value.detach()
        else:
            skipped.append(str(key))
    if not state:
        found = ", ".join(str(key) for key in list(loaded)[:6]) or "nothing"
        raise CheckpointError(f"load_weights: {source} must hold tensors by name, got {found}")
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                stripped = True
    return Checkpoint(state=state, source=source, format=kind, skipped=skipped)
