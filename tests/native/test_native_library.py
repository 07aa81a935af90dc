"""A missing, stale or foreign native library gives one clear error; the definitions are run on purpose only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fssops import _native

PACKAGE = Path(_native.__file__).resolve().parent


def _python(code: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FSSOPS_BACKEND", "FSSOPS_CPU_ISA")}
    environment.update(PYTHONPATH=str(path), **variables)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=path
    )


@pytest.fixture
def bare_copy(tmp_path: Path) -> Path:
    """The Python files alone, as in a checkout that was never built; installed copies are hidden by the test's code."""
    shutil.copytree(PACKAGE, tmp_path / "fssops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


# torch and numpy come from the same site-packages as an installed fssops, so that is hidden from the loader alone.
HIDE_INSTALLED = """\
from fssops import _native
_native._library_folders = lambda: [f for f in [_native._PACKAGE] if (f / "libfssops_cpu.so").is_file()]
"""


def test_missing_library_names_cause_and_mend(bare_copy: Path) -> None:
    done = _python(HIDE_INSTALLED + "import fssops.ops", bare_copy)
    assert done.returncode != 0
    assert "NativeLibraryError: fssops has no native library" in done.stderr
    assert "build it with: pip install -c constraints.txt ." in done.stderr


def test_import_fssops_alone_needs_no_library(bare_copy: Path) -> None:
    done = _python(HIDE_INSTALLED + "import fssops; print(fssops.__version__)", bare_copy)
    assert done.returncode == 0, done.stderr


def test_reference_backend_runs_without_library(bare_copy: Path) -> None:
    code = (
        "import torch; from fssops import ops\n"
        "print(ops.masked_average_pooling(torch.ones(1, 2, 3, 3), torch.ones(1, 1, 3, 3), eps=0.0).tolist())"
    )
    done = _python(HIDE_INSTALLED + code, bare_copy, FSSOPS_BACKEND="reference")
    assert done.stdout.strip() == "[[[1.0, 1.0]]]", done.stderr


def test_unknown_backend_is_refused(bare_copy: Path) -> None:
    done = _python("import fssops.ops", bare_copy, FSSOPS_BACKEND="fast")
    assert "FSSOPS_BACKEND must be one of native, reference, got 'fast'" in done.stderr


def test_library_of_other_sources_is_refused(bare_copy: Path) -> None:
    libraries = _native.load()
    shutil.copy(libraries / "libfssops_cpu.so", bare_copy / "fssops")
    (bare_copy / "csrc").mkdir()
    (bare_copy / "csrc" / "changed.cpp").write_text("// not what the library was built from\n")
    (bare_copy / "python").mkdir()
    done = _python(HIDE_INSTALLED + "import fssops.ops", bare_copy)
    assert done.returncode != 0
    assert "was built from other sources" in done.stderr
    assert "rebuild it with: pip install -c constraints.txt ." in done.stderr


def test_library_of_other_sources_leaves_the_way_to_the_right_one_free(bare_copy: Path) -> None:
    # A stale build beside the sources, and an installed package that fits them.
    root = PACKAGE.parent
    if not (root / "csrc").is_dir():
        pytest.skip("no sources beside the package")
    for folder in ("csrc", "python"):
        shutil.copytree(root / folder, bare_copy / folder)
    installed = bare_copy / "elsewhere" / "fssops"
    shutil.copytree(_native.load(), installed, ignore=shutil.ignore_patterns("__pycache__"))
    stale = (installed / "libfssops_cpu.so").read_bytes().replace(_native.source_hash(root).encode(), b"0" * 16)
    (bare_copy / "fssops" / "libfssops_cpu.so").write_bytes(stale)
    code = "import sys; sys.path.insert(1, 'elsewhere'); from fssops import _native, ops; print(_native.load())"
    done = _python(code, bare_copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed)


def test_broken_library_is_named(bare_copy: Path) -> None:
    (bare_copy / "fssops" / "libfssops_cpu.so").write_bytes(b"not a library")
    done = _python(HIDE_INSTALLED + "import fssops.ops", bare_copy)
    assert done.returncode != 0
    assert "fssops cannot load" in done.stderr
    assert "libfssops_cpu.so" in done.stderr


def test_kernel_that_runs_out_of_memory_says_so(tmp_path: Path) -> None:
    code = (
        "import resource, torch; from fssops import ops\n"
        "logits = torch.zeros(1, 1, 2, 2); ops.attention_mask_from_logits(logits, (4, 4))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "ops.attention_mask_from_logits(logits, (32767, 32767))"  # the resized logits of a mask are 4 GB
    )
    done = _python(code, PACKAGE.parent)
    assert done.returncode != 0
    assert "fssops: out of memory: a CPU kernel asked for 4" in done.stderr


def test_source_hash_is_the_builds_own() -> None:
    root = PACKAGE.parent
    if not (root / "csrc").is_dir():
        pytest.skip("no sources beside the package")
    assert _native.extension().build_info()["source_hash"] == _native.source_hash(root)


def test_build_information_is_complete() -> None:
    info = _native.extension().build_info()
    assert set(info) == {
        "torch",
        "cuda_toolkit",
        "cuda_architectures",
        "instruction_sets",
        "cpu_flags",
        "source_hash",
        "compiler",
    }
    assert info["torch"]
    assert "plain" in info["instruction_sets"].split()
