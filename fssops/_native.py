"""Finds and loads the native libraries, and says why when it cannot.

The libraries lie beside the package that was installed. When Python finds the source folder ``fssops/`` first (a
command typed in the repository's root), they are looked up in the installed package, and are used only if they were
built from the very sources that lie here: a hash of csrc/ is compared, so that code and library never drift apart.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch

from fssops._source_hash import source_hash

INSTALL = "pip install -c constraints.txt ."
"""The command that mends a missing or stale build, typed in the repository's root."""

OLDEST_TORCH = (2, 11)
OLDEST_GPU = (8, 0)
_PACKAGE = Path(__file__).resolve().parent


class NativeLibraryError(ImportError):
    """The native library is missing, stale or cannot be loaded; the message says why and what mends it."""


def _torch_version() -> tuple[int, int]:
    from packaging.version import Version

    version = Version(torch.__version__)
    return version.major, version.minor


def _library_folders() -> list[Path]:
    """The package's own folder, then every installed fssops on the path."""
    folders = [_PACKAGE]
    for entry in [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]:
        folder = Path(entry or ".").resolve() / "fssops"
        if folder not in folders:
            folders.append(folder)
    return [folder for folder in folders if (folder / "libfssops_cpu.so").is_file()]


def _built_from(path: Path) -> str | None:
    """The hash of the sources that a library was built from; None in a file that states none.

    Read from the file: opening a library registers its operators with torch, and those of another could not be then.
    """
    stated = re.search(rb"fssops-source-hash:([0-9a-f]{16})", path.read_bytes())
    return None if stated is None else stated[1].decode()


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        raise NativeLibraryError(f"fssops cannot load {path}: {error}; rebuild it with: {INSTALL}") from error
    return library


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
    # An installed package has no sources to compare with.
    expected = source_hash(_PACKAGE.parent) if (_PACKAGE.parent / "csrc").is_dir() else None
    others = []
    for folder in folders:
        path, cuda_path = folder / "libfssops_cpu.so", folder / "libfssops_cuda.so"
        built_from = _built_from(path)
        if expected is not None and built_from != expected:
            others.append(f"{folder} ({built_from or 'no hash'})")
            continue
        with_cuda = torch.version.cuda is not None and cuda_path.is_file()
        if with_cuda and _built_from(cuda_path) != built_from:
            raise NativeLibraryError(f"{cuda_path} and {path} are of different builds; rebuild with: {INSTALL}")
        library = _open(path)
        library.fssops_isa.restype = ctypes.c_char_p
        if library.fssops_isa() is None:
            raise NativeLibraryError(
                "FSSOPS_CPU_ISA must be plain, avx2 or avx512 and one that this processor has, got "
                f"{os.environ.get('FSSOPS_CPU_ISA')!r}; unset it to use the best there is"
            )
        if with_cuda:
            _open(cuda_path)
        return folder
    raise NativeLibraryError(
        f"the native library in {', '.join(others)} was built from other sources than those in "
        f"{_PACKAGE.parent / 'csrc'} ({expected}); rebuild it with: {INSTALL}"
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
            try:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            except ImportError as error:
                raise NativeLibraryError(f"fssops cannot load {path}: {error}; rebuild it with: {INSTALL}") from error
            return module
    raise NativeLibraryError(f"{folder} has libraries but no _C module for this Python; rebuild it with: {INSTALL}")


def _driver_version() -> tuple[int, int]:
    """The newest CUDA that the driver knows."""
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _has_code(architectures: str, capability: tuple[int, int], with_ptx: bool) -> bool:
    """Whether code built for "sm_80 sm_90a compute_90" runs on a GPU of this compute capability."""
    for kind, digits, suffix in re.findall(r"(sm|compute)_(\d+)([af]?)", architectures):
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute":
            runs = with_ptx and (built == capability if suffix else built <= capability)
        else:
            runs = built == capability or (suffix != "a" and built[0] == capability[0] and built[1] < capability[1])
        if runs:
            return True
    return False


def why_not_gpu(capability: tuple[int, int], driver: tuple[int, int], toolkit: str, architectures: str) -> str | None:
    """Why a GPU cannot run the CUDA kernels; None when it can.

    Args:
        capability: compute capability of the GPU.
        driver: the newest CUDA that the driver knows.
        toolkit: version of the toolkit that the kernels were built with, whose runtime is linked into the library.
        architectures: what they were built for, such as "sm_80 sm_90 compute_90".
    """
    gpu = "{}.{}".format(*capability)
    built_with = int(toolkit.split(".")[0]), int(toolkit.split(".")[1])
    if capability < OLDEST_GPU:
        return f"the GPU must be of compute capability 8.0 or newer, got {gpu}"
    if driver[0] < built_with[0]:
        return (
            f"the driver must know CUDA {built_with[0]}, with which fssops was built, got one for CUDA {driver[0]}."
            f"{driver[1]}; update the driver, or with a CUDA {driver[0]} toolkit: {INSTALL}"
        )
    if not _has_code(architectures, capability, with_ptx=driver >= built_with):
        return (
            f"fssops was built for {architectures}, got a GPU of compute capability {gpu}; rebuild it with: "
            f"TORCH_CUDA_ARCH_LIST={gpu} {INSTALL}"
        )
    return None


def why_not_cuda() -> str | None:
    """Why the CUDA kernels cannot run here; None when they can."""
    folder = load()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not (folder / "libfssops_cuda.so").is_file():
        return f"fssops was built without nvcc; install a CUDA toolkit, then: {INSTALL}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    built = extension().build_info()
    return why_not_gpu(
        torch.cuda.get_device_capability(), _driver_version(), built["cuda_toolkit"], built["cuda_architectures"]
    )
