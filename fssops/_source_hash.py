"""The hash that says which native sources a library was built from.

The build and the loader must agree on it, and the build runs where the package cannot be imported (it needs torch): so
this file imports nothing but the standard library, and the build runs it by its path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_hash(root: Path) -> str:
    """Hash of everything that the native libraries are made of, in the repository at ``root``."""
    digest = hashlib.sha256()
    paths = [*root.glob("csrc/**/*"), root / "python" / "bindings.cpp"]
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        if path.is_file() and path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
