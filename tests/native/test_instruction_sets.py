"""Every CPU kernel is compiled once per instruction set; each set must give the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fssops import _native

ROOT = Path(__file__).resolve().parents[2]
SETS = _native.extension().build_info()["instruction_sets"].split()


def _run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FSSOPS_CPU_ISA": isa}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


def _skip_if_missing(isa: str) -> None:
    if _run(isa, "-c", "from fssops import _native; _native.load()").returncode != 0:
        pytest.skip(f"this processor has no {isa}")


@pytest.mark.slow
@pytest.mark.parametrize("isa", SETS)
def test_operators_equal_their_definitions(isa: str) -> None:
    _skip_if_missing(isa)
    done = _run(isa, "-m", "pytest", "-q", "-x", "-m", "every_isa and not gpu", "-p", "no:cacheprovider", "tests/ops")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("isa", SETS)
def test_variable_forces_the_set(isa: str) -> None:
    _skip_if_missing(isa)
    done = _run(isa, "-c", "from fssops import _native; print(_native.instruction_set())")
    assert done.stdout.strip() == isa, done.stderr


def test_unknown_set_is_refused_with_the_choices() -> None:
    done = _run("sse9", "-c", "import fssops.ops")
    assert done.returncode != 0
    assert "FSSOPS_CPU_ISA must be plain, avx2 or avx512 and one that this processor has, got 'sse9'" in done.stderr
