"""Fixtures shared by all tests: where the real data and the parity cases are, if they are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test fetches anything but from a server of its own

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"no folder {path}; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The packs of small real data (``FSSOPS_DATA``, else ../shared/data)."""
    return _folder("FSSOPS_DATA", "data")


@pytest.fixture(scope="session")
def oracle_root() -> Path:
    """The parity cases (``FSSOPS_ORACLES``, else ../shared/oracles)."""
    return _folder("FSSOPS_ORACLES", "oracles")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


def pytest_configure() -> None:
    """Several workers (``-n``) share the cores: more threads than cores would spin for each other.

    float32 is float32, on a GPU too: TF32 keeps 10 bits, and comparisons of systems would fail by them.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start
        torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)  # before groups are read
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests, by name, where no GPU is; keep tests of many processes in one worker, not beside each other."""
    for item in items:
        if item.path.stem.endswith("many_processes"):
            item.add_marker(pytest.mark.xdist_group("many processes"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; the kernel itself runs in tests/emulation"))
