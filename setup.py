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
        self._replace_libraries(target.parent, staged)

    def copy_extensions_to_source(self) -> None:
        # In-place and editable builds: setuptools copies the extension module alone, the libraries belong beside it.
        super().copy_extensions_to_source()
        built = Path(self.build_lib).resolve() / "fssops"
        self._replace_libraries(native_build.ROOT / "fssops", list(built.glob("libfssops_*.so")))

    def _replace_libraries(self, folder: Path, made: list[Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("libfssops_*.so"):  # of an older build, which may have made one more
            left.unlink()
        for path in made:
            # Removed first: a running process may have the old library mapped.
            (folder / path.name).unlink(missing_ok=True)
            self.copy_file(str(path), str(folder / path.name))

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("fssops._C")).parent
        return [*super().get_outputs(), *(str(path) for path in folder.glob("libfssops_*.so"))]


if not sysconfig.get_platform().startswith("linux"):
    raise SystemExit("fssops: the native build must run on Linux, got " + sysconfig.get_platform())

setup(ext_modules=[Extension("fssops._C", sources=["python/bindings.cpp"])], cmdclass={"build_ext": NativeBuild})
