"""Reading checkpoint files and folders: tensors only, whatever the format.

====================  =======================================================================================
``.pth .pt .ckpt``    ``torch.load(weights_only=True)``; plain numpy scalars beside the tensors are let through.
                      A checkpoint of a run is compared with the checksum that it carries
``.pkl``              detectron2's pickled numpy arrays, by :mod:`fssops.weights.restricted_pickle`
``.safetensors``      with its metadata
a run's folder        its newest checkpoint that is whole
any other folder      ours (``save_pretrained``) or transformers': ``model.safetensors`` or ``pytorch_model.bin``, whole
                      or in shards with their index, and ``config.json``
====================  =======================================================================================
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fssops.engine.archives import ArchiveBombError, check_stored
from fssops.engine.checkpoints import (
    RunCheckpointError,
    carries_checksum,
    has_checkpoint,
    newest_good_checkpoint,
    read_checkpoint,
)
from fssops.weights import restricted_pickle
from fssops.weights.finding import SUFFIXES, TORCH_SUFFIXES, WHOLE_FILES, find_weights

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema"),
)
"""What trainers call the state dict in what they save; the first that is there is read."""
PREFIXES = ("module.", "model.", "net.", "network.", "_forward_module.", "ema_model.", "model_ema.", "ema.")
"""What wrappers put before all names of a model: data parallelism, averages of weights, Lightning, DeepSpeed."""
_INNER_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
"""What ``torch.compile``, FSDP and activation checkpointing put into names wherever they wrap a part."""
_COUNTERS = ("n_averaged",)
"""What wrappers keep beside a model: how many steps ``torch.optim.swa_utils`` has averaged."""
DESCRIPTION = {
    "model": "fssops_model",
    "options": "fssops_config",
    "classes": "fssops_classes",
    "preprocessing": "fssops_preprocessing",
}
"""What weights of ours say of their model, in ``config.json`` or in the file's metadata: field of Checkpoint -> key."""
MEND = "; if it is damaged, download or copy it again"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is of another model, or does not fit."""


@dataclass
class Checkpoint:
    """What a file or folder holds.

    Attributes:
        state: name to tensor (CPU), without what wrappers put around the tensors and before all names.
        source: the path of the file or folder that was read, or "state dict", for messages.
        config: the ``config.json`` of a transformers folder.
        settings: of the run that wrote it, as tables of a recipe; empty where it is of no run.
        step: of that run.
        model: name of the model that it says it is of; empty where it does not.
        options: of that model.
        classes: of that model, in the form of a run's ``classes.json``; empty where they are not known.
        preprocessing: tables of a recipe that say how images enter that model; empty where it is not known.
        skipped: names of entries that are not tensors of the model.
        passed_over: a line for each newer checkpoint of a run's folder that could not be read.
    """

    state: dict[str, Tensor]
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def describe(self, table: Mapping[str, Any], where: Path) -> None:
        """Take over what ``config.json`` or a file's metadata of ours (:data:`DESCRIPTION`) say of the model.

        Raises:
            CheckpointError: an entry is of another form.
        """
        for entry, key in DESCRIPTION.items():
            value, kind = table.get(key, getattr(self, entry)), type(getattr(self, entry))
            if kind is dict and isinstance(value, str):  # metadata are texts
                value = _json_value(value)
            if not isinstance(value, kind):
                rule = "a JSON object" if kind is dict else "a name"
                raise CheckpointError(f"weights: {where}: {key} must be {rule}, got {table[key]!r:.60}")
            setattr(self, entry, value)

    def described_model(self) -> tuple[str, dict[str, Any]]:
        """Name and options, for :func:`fssops.create_model`, of the model that a run, fssops or transformers wrote.

        Raises:
            ValueError: it does not say which; or transformers' model is none of ours.
        """
        if self.config:
            from fssops.weights.transformers_folder import options_of

            return options_of(self.config)
        if not self.model:
            raise ValueError(f"weights: {self.source} must say which model it is of, got tensors alone")
        return self.model, self.options


def read_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint; nothing that it holds is executed.

    Args:
        source: a file, the folder of a run, a folder in transformers' layout or in ours, a name, address or repository
            as :func:`fssops.weights.find_weights` takes them, or a state dict that is already in memory, bare or within
            what a trainer saves with it.

    Raises:
        FileNotFoundError: nothing is called so.
        UnavailableWeightsError: it cannot be fetched.
        CheckpointError: the file is truncated or damaged, of no known format, or holds something other than tensors
            and plain containers.
    """
    if isinstance(source, Mapping):
        return _unwrapped(source, "state dict")
    path = find_weights(source).path
    if path.is_dir():
        return _read_folder(path)
    if path.stat().st_size == 0:
        raise CheckpointError(f"weights: {path} is empty (0 bytes){MEND}")
    content, metadata = _read_file(path)
    checkpoint = _unwrapped(content, str(path))
    if "fssops_model" in metadata:
        checkpoint.describe(metadata, path)
    return checkpoint


def _read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """What a file holds, and a safetensors file's metadata."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        return _read_pickle(path), {}
    if path.suffix not in (*TORCH_SUFFIXES, ".pkl"):
        raise CheckpointError(
            f"weights: {path} must end in {', '.join(SUFFIXES)} or be a folder, got {path.suffix or 'no ending'!r}"
        )
    try:
        check_stored(path)
        if carries_checksum(path):
            return read_checkpoint(path), {}
    except ArchiveBombError as error:
        raise CheckpointError(f"weights: {error}") from None
    except RunCheckpointError as error:
        raise CheckpointError(str(error)) from None
    return _read_torch(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"weights: {path} is truncated or not a safetensors file ({error}){MEND}") from None


def _read_pickle(path: Path) -> Any:
    try:
        return restricted_pickle.load_arrays(path.read_bytes())
    except restricted_pickle.ForbiddenPickleError as error:
        raise CheckpointError(
            f"weights: {path} is refused: {error}; only numpy arrays in dictionaries and lists are read from "
            "pickles, and nothing in the file was executed. Ask its author for a safetensors file"
        ) from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"weights: {path} is truncated or not a pickle ({error}){MEND}") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"weights: {path} is refused: {type(error).__name__} while reading") from None


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
                f"weights: {path} is refused: it asks for {name}, which is neither a tensor nor a container, and "
                "fssops never executes what a checkpoint holds. Save its state dict alone, or as safetensors, with "
                "the code that wrote it"
            ) from None
        raise CheckpointError(f"weights: {path} is truncated or not a checkpoint{MEND}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"weights: {path} is truncated or not a checkpoint ({first}){MEND}") from None


def _json_value(text: str) -> Any:
    """What a JSON text says; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError too
        raise CheckpointError(f"weights: {path} must be JSON, got {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"weights: {path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_folder(path: Path) -> Checkpoint:
    for folder in (path / "checkpoints", path):
        if has_checkpoint(folder):
            try:
                newest, state, passed_over = newest_good_checkpoint(folder)
            except RunCheckpointError as error:
                raise CheckpointError(str(error)) from None
            checkpoint = _unwrapped(state, str(newest))
            checkpoint.passed_over = passed_over
            return checkpoint
    config = _read_json(path / "config.json") if (path / "config.json").exists() else {}
    file = next((path / name for name in WHOLE_FILES if (path / name).exists()), None)
    if file is None:
        hint = " (consolidate a DeepSpeed checkpoint with its zero_to_fp32.py)" if (path / "latest").exists() else ""
        raise CheckpointError(
            f"weights: folder {path} must hold model.safetensors or pytorch_model.bin, whole or as an index with its "
            "shards, or be of a run, with checkpoints/, got "
            f"{sorted(entry.name for entry in path.iterdir())[:10]}{hint}"
        )
    checkpoint = _read_shards(file) if file.suffix == ".json" else read_weights(file)
    checkpoint.source = str(path)
    if "fssops_model" in config:
        checkpoint.describe(config, path / "config.json")
    else:
        checkpoint.config = config
        if config and (path / "preprocessor_config.json").exists():
            from fssops.weights.transformers_folder import preprocessing_of

            try:
                checkpoint.preprocessing = preprocessing_of(_read_json(path / "preprocessor_config.json"))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"weights: {path}: {error}") from None
    return checkpoint


def _read_shards(index: Path) -> Checkpoint:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"weights: {index} must map names to shards under 'weight_map', got {places!r:.60}")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"weights: {index} must name shards in its own folder, got {shard!r}")
        if not (index.parent / shard).exists():
            raise CheckpointError(f"weights: shard {index.parent / shard} named by {index.name} is missing{MEND}")
        content, _ = _read_file(index.parent / shard)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"weights: shard {index.parent / shard} must hold tensors by name")
        state.update(content)
    absent = sorted(set(places) - set(state))
    if absent:
        raise CheckpointError(f"weights: {index.parent} lacks tensors that {index.name} lists, e.g. {absent[0]}{MEND}")
    return _unwrapped(state, str(index.parent))


def _unwrapped(content: Any, source: str) -> Checkpoint:
    """The state dict in what a trainer saved, and what a run of ours says beside it."""
    skipped: list[str] = []
    settings: dict[str, Any] = {}
    step: Any = 0
    while isinstance(content, Mapping):
        if isinstance(content.get("settings"), str):
            said = _json_value(content["settings"])
            settings, step = said if isinstance(said, dict) else {}, content.get("step")
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        skipped += inner[1:]
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"weights: {source} must hold a state dict, got {type(content).__name__}")
    state, counters = _without_common_prefix(_tensors(content, source, skipped))
    options = dict(settings["model"]) if isinstance(settings.get("model"), dict) else {}
    for of_training in ("weights", "new_classes"):
        options.pop(of_training, None)
    return Checkpoint(
        state,
        source,
        settings=settings,
        step=step if isinstance(step, int) else 0,
        model=str(options.pop("name", "")),
        options=options,
        skipped=skipped + counters,
    )


def _tensors(content: Mapping[Any, Any], source: str, skipped: list[str]) -> dict[str, Tensor]:
    """The tensors of a state dict, without what wraps parts in their names; other entries go to ``skipped``."""
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            skipped.append(str(key))
            continue
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            raise CheckpointError(
                f"weights: {source}: {key} must be a dense tensor of real numbers, got {value.dtype}"
                f" {value.layout} on {value.device}"
            )
        name = _INNER_WRAPPERS.sub("", key)
        if name in state:
            raise CheckpointError(f"weights: {source} must hold each tensor once, got {name} again as {key}")
        state[name] = value.detach()
    if not state:
        keys = ", ".join(str(key) for key in list(content)[:6]) or "nothing"
        raise CheckpointError(f"weights: {source} must hold tensors by name, got {keys}")
    return state


def _without_common_prefix(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names without what wrappers put before all of them, and the names of the wrappers' counters."""
    names = [name for name in state if name not in _COUNTERS]
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            inner, counters = _without_common_prefix({name[len(prefix) :]: state[name] for name in names})
            return inner, [name for name in state if name in _COUNTERS] + counters
    return state, []
