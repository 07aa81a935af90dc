"""Hands the native build (build_backend/native_build.py) to setuptools; everything else stands in pyproject.toml."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_backend"))
import native_build


class NativeBuild(build_ext):
    """Builds both libraries beside fssops._C, wherever setuptools wants that: wheel, editable or in-place build."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = native_build.ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        staged = native_build.build(
            work / "lib", work, extension_name=target.name, pybind11_include=pybind11.get_include()
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in staged:
            # Removed first: a running process may have the old library mapped.
            (target.parent / path.name).unlink(missing_ok=True)
            self.copy_file(str(path), str(target.parent / path.name))

    def copy_extensions_to_source(self) -> None:
        # In-place and editable builds: setuptools copies the extension module alone, the libraries belong beside it.
        super().copy_extensions_to_source()
        built = Path(self.build_lib).resolve() / "fssops"
        for path in built.glob("libfssops_*.so"):
            target = native_build.ROOT / "fssops" / path.name
            target.unlink(missing_ok=True)
            self.copy_file(str(path), str(target))

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("fssops._C")).parent
        return [*super().get_outputs(), *(str(path) for path in folder.glob("libfssops_*.so"))]


if sysconfig.get_platform().startswith("win"):
    raise SystemExit("fssops: the native build supports Linux and macOS, got " + sysconfig.get_platform())

setup(ext_modules=[Extension("fssops._C", sources=["python/bindings.cpp"])], cmdclass={"build_ext": NativeBuild})
