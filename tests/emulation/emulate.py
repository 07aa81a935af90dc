"""Compiles an operator's CUDA sources with g++ under cuda_emulation.h and loads the result.

Each operator has ``<op>_emulated.cpp`` here: extern "C" functions that fill the operator's argument struct from plain
arguments and call its forward_cuda / backward_cuda, so that launch shapes are tested as well as kernels.

FSSOPS_EMULATION_SANITIZE=address,undefined compiles with these sanitizers; =thread runs the threads of a block as real
ones under ThreadSanitizer. Python must then be started with the sanitizer's library preloaded (see CONTRIBUTING.md,
"Testing without a GPU").
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""How launchers are told a dtype (csrc/common/check_cuda.h: float_dtype_index)."""


def _sources(op: str) -> list[Path]:
    launchers = [ROOT / "csrc" / op / f"{op}_cuda.cu"] if (ROOT / "csrc" / op).is_dir() else []
    return [*launchers, HERE / f"{op}_emulated.cpp"]


def emulated(op: str) -> ctypes.CDLL:
    """The library of ``op``'s kernels for this machine's CPU; compiled once per content of its sources."""
    sanitize = os.environ.get("FSSOPS_EMULATION_SANITIZE", "")
    digest = hashlib.sha256(sanitize.encode())
    headers = [*(ROOT / "csrc" / "common").glob("*"), *(ROOT / "csrc" / op).glob("*"), *HERE.glob("cuda_*.h")]
    for path in sorted({*headers, *_sources(op)}):
        if path.suffix in (".h", ".cuh", ".cu", ".cpp"):
            digest.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"fssops-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{op}-{digest.hexdigest()[:16]}.so"
    if not library.is_file():
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        command += ["-Wno-unknown-pragmas", "-Wno-narrowing", "-DFSSOPS_EMULATION", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
        command += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []
        command += ["-DFSSOPS_EMULATION_THREADS"] if sanitize == "thread" else []
        command += ["-x", "c++", *map(str, _sources(op)), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"compiling the emulated {op} failed:\n{done.stderr}")
        partial.replace(library)
    return ctypes.CDLL(str(library))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's memory; null for None. The tensor must outlive the call."""
    if tensor is None:
        return ctypes.c_void_p(None)
    return ctypes.c_void_p(tensor.data_ptr())


def guarded_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for an output, filled with NaN so that an element that is not written shows."""
    return torch.full(shape, float("nan"), dtype=dtype)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value - expected‖ / ‖expected‖ in float64."""
    difference = (value.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(np.finfo(np.float64).tiny))
