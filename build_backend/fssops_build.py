"""The PEP 517 backend: setuptools, plus the question which torch to compile against.

pip builds in an environment of its own, with nothing of the target environment on its path. Compiling needs torch's
headers and import libraries only, so where the target environment has a torch, its folder is used as it stands (looked
up through ``FSSOPS_BUILD_TORCH`` or the interpreter's own site-packages) and nothing is downloaded. Where it has none,
one is asked for: the version of constraints.txt, which is the tested one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta as _setuptools

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "build_backend"))

from native_build import find_torch  # noqa: E402


def _native_requirements() -> list[str]:
    needs = ["ninja", "pybind11>=2.12"]
    if find_torch() is None:
        pinned = re.search(r"^torch==\S+", (_ROOT / "constraints.txt").read_text(), re.MULTILINE)
        needs.append(pinned.group(0) if pinned else "torch>=2.11")
    return needs


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_native_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_native_requirements()]


get_requires_for_build_sdist = _setuptools.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = _setuptools.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _setuptools.prepare_metadata_for_build_editable
build_wheel = _setuptools.build_wheel
build_editable = _setuptools.build_editable
build_sdist = _setuptools.build_sdist
