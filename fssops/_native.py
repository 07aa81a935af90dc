"""Finds and loads the native libraries, and says why when it cannot.

The libraries lie beside the package that was installed. When Python finds the source folder ``fssops/`` first (a
command typed in the repository's root), they are looked up in the installed package, and are used only if they were
built from the very sources that lie here: a hash of csrc/ is compared, so that code and library never drift apart.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch

INSTALL = "pip install -c constraints.txt ."
"""The command that mends a missing or stale build, typed in the repository's root."""

OLDEST_TORCH = (2, 11)
_PACKAGE = Path(__file__).resolve().parent


class NativeLibraryError(ImportError):
    """The native library is missing, stale or cannot be loaded; the message says why and what mends it."""


def _torch_version() -> tuple[int, int]:
    from packaging.version import Version

    version = Version(torch.__version__)
    return version.major, version.minor


def source_hash(root: Path) -> str | None:
    """Hash of the native sources under ``root``; None where there are none (an installed package)."""
    if not (root / "csrc").is_dir():
        return None
    digest = hashlib.sha256()
    paths = [*root.glob("csrc/**/*"), root / "python" / "bindings.cpp"]
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        if path.is_file() and path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _library_folders() -> list[Path]:
    """The package's own folder, then every installed fssops on the path."""
    folders = [_PACKAGE]
    for entry in [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]:
        folder = Path(entry or ".").resolve() / "fssops"
        if folder not in folders:
            folders.append(folder)
    return [folder for folder in folders if (folder / "libfssops_cpu.so").is_file()]


def _hash_of(library: ctypes.CDLL) -> str:
    function = library.fssops_source_hash
    function.restype = ctypes.c_char_p
    return str(function().decode())


@lru_cache(maxsize=1)
def load() -> Path:
    """Load the libraries once; return the folder they lie in.

    Raises:
        NativeLibraryError: with the cause and the command that mends it.
    """
    if _torch_version() < OLDEST_TORCH:
        raise NativeLibraryError(
            f"fssops needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer, got {torch.__version__}; "
            "mend it with: pip install 'torch>=2.11'"
        )
    folders = _library_folders()
    if not folders:
        raise NativeLibraryError(
            f"fssops has no native library: none beside {_PACKAGE} and none in an installed fssops; build it with: "
            f"{INSTALL} (FSSOPS_BACKEND=reference runs the slow PyTorch definitions instead)"
        )
    expected = source_hash(_PACKAGE.parent)
    found = ""
    for folder in folders:
        path = folder / "libfssops_cpu.so"
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeLibraryError(f"fssops cannot load {path}: {error}; rebuild it with: {INSTALL}") from error
        found = _hash_of(library)
        if expected is not None and found != expected:
            continue
        library.fssops_isa.restype = ctypes.c_char_p
        if library.fssops_isa() is None:
            raise NativeLibraryError(
                "FSSOPS_CPU_ISA must be plain, avx2 or avx512 and one that this processor has, got "
                f"{os.environ.get('FSSOPS_CPU_ISA')!r}; unset it to use the best there is"
            )
        torch.ops.load_library(str(path))
        cuda_path = folder / "libfssops_cuda.so"
        if torch.version.cuda is not None and cuda_path.is_file():
            if _hash_of(ctypes.CDLL(str(cuda_path))) != found:
                raise NativeLibraryError(f"{cuda_path} and {path} are of different builds; rebuild with: {INSTALL}")
            torch.ops.load_library(str(cuda_path))
        return folder
    raise NativeLibraryError(
        f"the native library in {folders[0]} was built from other sources than those in {_PACKAGE.parent / 'csrc'} "
        f"(hash {found}, here {expected}); rebuild it with: {INSTALL}"
    )


def instruction_set() -> str:
    """The instruction set that the CPU kernels use: plain, avx2 or avx512."""
    library = ctypes.CDLL(str(load() / "libfssops_cpu.so"))
    library.fssops_isa.restype = ctypes.c_char_p
    return str(library.fssops_isa().decode())


@lru_cache(maxsize=1)
def extension() -> ModuleType:
    """The pybind11 module ``fssops._C`` that belongs to the loaded libraries."""
    folder = load()
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_C{suffix}"
        if path.is_file():
            spec = importlib.util.spec_from_file_location("fssops._C", path)
            if spec is None or spec.loader is None:
                break
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise NativeLibraryError(f"{folder} has libraries but no _C module for this Python; rebuild it with: {INSTALL}")


def why_not_cuda() -> str | None:
    """Why the CUDA kernels cannot run here; None when they can."""
    folder = load()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not (folder / "libfssops_cuda.so").is_file():
        return f"fssops was built without nvcc; install a CUDA toolkit, then: {INSTALL}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None
