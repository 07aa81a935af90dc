"""Plain, wheel, sdist and editable installs work, also with the repository's root as the working folder.

In the root, ``python -m fssops...`` finds the source folder before the installed package; the loader then takes the
installed libraries if they were built from these very sources, and refuses them otherwise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TORCH_FOLDER = Path(torch.__file__).resolve().parents[1]
PROBE = (
    "import torch, fssops; from fssops import ops, _native;"
    "print(fssops.__file__, _native.load(), sep='|');"
    "assert ops.masked_average_pooling(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), eps=0.).item() == 1"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def _run(python: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FSSOPS_", "PYTHONPATH", "PIP_CONSTRAINT"))}
    # No CUDA: this test is about packaging. The torch of the running tests is compiled against, none is downloaded.
    environment.update(FSSOPS_CUDA="0", FSSOPS_BUILD_TORCH=str(TORCH_FOLDER))
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


def _ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a user has it, without anything built."""
    target = tmp_path_factory.mktemp("checkout") / "fssops source"  # a blank, as in "My Projects"
    ignore = shutil.ignore_patterns(
        "*.so", "build", "dist", "*.egg-info", "__pycache__", ".git", "runs", ".*cache", "shared"
    )
    shutil.copytree(ROOT, target, ignore=ignore)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """The wheel, by pip's isolated build."""
    _ok(_run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", ".", cwd=checkout))
    (made,) = (checkout / "dist").glob("fssops-*.whl")
    return made


def _environment(folder: Path) -> Path:
    """A virtual environment that sees this one's packages, but no fssops of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = Path(_ok(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)))
    others = folder / "packages"
    others.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "fssops" not in package.name:
            (others / package.name).symlink_to(package)
    (site / "others.pth").write_text(f"{others}\n")
    return python


def _probe(python: Path, cwd: Path) -> tuple[Path, Path]:
    module, libraries = _ok(_run(python, "-c", PROBE, cwd=cwd)).split("|")
    return Path(module), Path(libraries)


def test_wheel_holds_libraries_recipes_and_types_but_no_sources(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fssops/libfssops_cpu.so", "fssops/py.typed", "fssops/recipes/panet_generated.toml"} <= names
    assert any(name.startswith("fssops/_C.") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]
    assert "none-any" not in wheel.name, "a wheel with libraries is for one platform"


def test_a_library_that_an_older_build_left_beside_the_sources_stays_out_of_the_wheel(
    checkout: Path, tmp_path: Path
) -> None:
    left = checkout / "fssops" / "libfssops_cuda.so"
    left.write_bytes(b"of other sources; this build makes no CUDA library")
    try:
        _ok(_run(sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path / "lib"), cwd=checkout))
    finally:
        left.unlink()
    assert (tmp_path / "lib" / "fssops" / "py.typed").is_file()
    assert not (tmp_path / "lib" / "fssops" / left.name).exists()


def test_installed_wheel_runs_elsewhere_and_in_the_root(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "environment")
    _ok(_run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), cwd=tmp_path))
    module, libraries = _probe(python, tmp_path)
    assert module.parent == libraries
    assert checkout not in module.parents
    in_root, libraries_in_root = _probe(python, checkout)
    assert in_root.parent == checkout / "fssops", "the root's own source folder comes first"
    assert libraries_in_root == libraries, "with the installed libraries"
    assert _ok(_run(python.parent / "fssops", "--version", cwd=tmp_path)).startswith("fssops ")


def test_root_refuses_libraries_of_other_sources(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "environment")
    _ok(_run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), cwd=tmp_path))
    edited = tmp_path / "edited"
    shutil.copytree(checkout, edited, ignore=shutil.ignore_patterns("build", "dist", "*.so"))
    with (edited / "csrc" / "common" / "isa.h").open("a") as file:
        file.write("// edited after installing\n")
    done = _run(python, "-c", PROBE, cwd=edited)
    assert done.returncode != 0
    assert "was built from other sources" in done.stderr


def test_editable_install_puts_the_libraries_beside_the_sources(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    # After the wheel, in the same tree: ninja finds everything compiled.
    python = _environment(tmp_path / "environment")
    left = checkout / "fssops" / "libfssops_cuda.so"
    left.write_bytes(b"of an older build, with CUDA")
    _ok(_run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", ".", cwd=checkout))
    try:
        for cwd in (tmp_path, checkout):
            module, libraries = _probe(python, cwd)
            assert module.parent == checkout / "fssops"
            assert libraries == checkout / "fssops"
        assert not left.exists()
    finally:
        for built in (checkout / "fssops").glob("*.so"):
            built.unlink()


def test_sdist_holds_what_building_needs(checkout: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'build_backend'); import fssops_build; print(fssops_build.build_sdist('dist'))"
    )
    name = _ok(_run(sys.executable, "-c", code, cwd=checkout)).splitlines()[-1]
    with tarfile.open(checkout / "dist" / name) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"setup.py", "constraints.txt", "build_backend/native_build.py", "csrc/common/simd.h", "LICENSE"} <= names
    assert {"python/bindings.cpp", "csrc/masked_average_pooling/masked_average_pooling_cuda.cuh"} <= names


def test_folder_without_torch_is_refused_rather_than_another_torch_taken(checkout: Path, tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'build_backend'); import native_build; print(native_build.find_torch())"
    environment = {**os.environ, "FSSOPS_BUILD_TORCH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=checkout
    )
    assert done.returncode != 0
    assert f"FSSOPS_BUILD_TORCH must be a folder that holds torch/, got {tmp_path}" in done.stderr


def test_failing_compiler_fails_the_install_and_shows_its_message(checkout: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkout, broken, ignore=shutil.ignore_patterns("build", "dist", "*.so"))
    (broken / "csrc" / "common" / "isa.cpp").write_text('#error "planted fault"\n')
    done = _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", "dist", ".", cwd=broken)
    assert done.returncode != 0
    assert "planted fault" in done.stdout + done.stderr
    assert "the native build failed" in done.stdout + done.stderr
    assert not list((broken / "dist").glob("*.whl"))
