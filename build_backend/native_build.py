"""Compiles csrc/ into libfssops_cpu and libfssops_cuda, and python/bindings.cpp into fssops._C, with ninja.

Settings, all by environment variable:
    FSSOPS_CUDA           0 builds no CUDA library, 1 demands one; unset builds it wherever nvcc is found.
    TORCH_CUDA_ARCH_LIST  architectures as for PyTorch's own extensions: "8.0;9.0a+PTX".
    CUDA_HOME             where the CUDA toolkit is; else nvcc is looked up on the path and in the usual place.
    MAX_JOBS              parallel compiler processes.
    FSSOPS_BUILD_TORCH    a folder that holds torch/; else this interpreter's site-packages.
    FSSOPS_SANITIZE       e.g. "address": adds -fsanitize=... to the CPU library.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET_TORCH = (2, 11)
"""The oldest torch that the libraries run on: what TORCH_TARGET_VERSION promises."""

OLDEST_CUDA_TOOLKIT = (12, 0)
"""The first whose nvcc compiles C++20."""

OLDEST_CUDA_ARCHITECTURE = (8, 0)
"""The first with asynchronous copies and the matrix products that the kernels use."""

DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
"""Ampere (8.6 and 8.9 run 8.0 code) and Hopper as machine code, PTX for what comes after."""

ISA_FLAGS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ],
}


@dataclass(frozen=True)
class TorchFolder:
    """A torch to compile against: its folder and its version as numbers."""

    path: Path
    version: tuple[int, int, int]


def find_torch() -> TorchFolder | None:
    """The torch of ``FSSOPS_BUILD_TORCH``, or else of sys.path (the build environment) or of this interpreter."""
    wanted = os.environ.get("FSSOPS_BUILD_TORCH")
    if wanted and not (Path(wanted) / "torch" / "version.py").is_file():
        raise SystemExit(f"fssops: FSSOPS_BUILD_TORCH must be a folder that holds torch/, got {wanted}")
    candidates = [wanted] if wanted else [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for candidate in candidates:
        if not candidate:
            continue
        folder = Path(candidate).resolve() / "torch"  # ninja runs elsewhere
        if (folder / "version.py").is_file() and (folder / "include").is_dir():
            text = (folder / "version.py").read_text()
            match = re.search(r"__version__\s*=\s*'(\d+)\.(\d+)\.(\d+)", text)
            if match is None:
                raise SystemExit(
                    f"fssops: {folder / 'version.py'} must state torch's version, got none that reads as one"
                )
            version = tuple(int(part) for part in match.groups())
            if version[:2] < TARGET_TORCH:
                raise SystemExit(
                    f"fssops: torch must be at least {TARGET_TORCH[0]}.{TARGET_TORCH[1]}, got "
                    f"{'.'.join(map(str, version))} in {folder}; upgrade it with: pip install 'torch>=2.11'"
                )
            return TorchFolder(folder, version)  # type: ignore[arg-type]
    return None


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, of the path, or of the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for home in homes:
        if home:
            nvcc = Path(home).resolve() / "bin" / "nvcc"
            if not nvcc.is_file():
                raise SystemExit(f"fssops: CUDA_HOME must be a CUDA toolkit, got {home} without bin/nvcc")
            return nvcc
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    usual = Path("/usr/local/cuda/bin/nvcc")
    return usual if usual.is_file() else None


def cuda_toolkit_version(nvcc: Path) -> tuple[int, int]:
    """(major, minor) of the toolkit."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        raise SystemExit(f"fssops: {nvcc} --version must state a release, got {text!r}")
    version = int(match.group(1)), int(match.group(2))
    if version < OLDEST_CUDA_TOOLKIT:
        raise SystemExit(f"fssops: nvcc must be of CUDA 12.0 or newer, got {match.group(1)}.{match.group(2)} in {nvcc}")
    return version


def cuda_home(nvcc: Path) -> Path:
    """The toolkit's folder, as nvcc itself knows it: the nvcc on the path may be a wrapper script elsewhere."""
    text = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    ).stderr
    match = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    if match is None:
        raise SystemExit(f"fssops: {nvcc} --dryrun must name its toolkit (TOP=...), got {text[:200]!r}; set CUDA_HOME")
    return Path(match.group(1)).resolve()


def cuda_architectures() -> list[str]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST or the default list."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
    flags = []
    for item in re.split(r"[;,\s]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
        if match is None:
            raise SystemExit(f"fssops: TORCH_CUDA_ARCH_LIST must be items like 8.0 or 9.0a+PTX, got {item!r}")
        if (int(match.group(1)), int(match.group(2))) < OLDEST_CUDA_ARCHITECTURE:
            raise SystemExit(f"fssops: TORCH_CUDA_ARCH_LIST must name architectures from 8.0 on, got {item!r}")
        number = f"{match.group(1)}{match.group(2)}{match.group(3)}"
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(4):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def source_hash(root: Path = ROOT) -> str:
    """Hash of everything the native libraries are made of, as the loader computes it."""
    found: str = runpy.run_path(str(root / "fssops" / "_source_hash.py"))["source_hash"](root)
    return found


def _quote(path: str | Path) -> str:
    """A path where ninja expects one; ninja itself quotes $in and $out for the shell."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _flags(items: Sequence[str]) -> str:
    """Arguments of a command, quoted for the shell, then for ninja."""
    return shlex.join(items).replace("$", "$$")


class NinjaFile:
    """The build description: rules are fixed, edges are added."""

    def __init__(self) -> None:
        self.lines = [
            "rule cxx",
            "  command = $compiler -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = C++ $out",
            "rule nvcc",
            # The resource report (registers, spills) is kept beside the object: tests/native/test_resources.py.
            "  command = $compiler -MD -MF $out.d --resource-usage $flags -c $in -o $out > $out.resources 2>&1; "
            "status=$$?; grep -vE 'ptxas info|bytes stack frame|^ptxas|^[[:space:]]*$$' $out.resources; exit $$status",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CUDA $out",
            "rule link",
            "  command = $compiler -shared $in -o $out $flags",
            "  description = link $out",
        ]

    def edge(self, rule: str, source: Sequence[Path], target: Path, compiler: str, flags: Sequence[str]) -> Path:
        self.lines += [
            f"build {_quote(target)}: {rule} {' '.join(_quote(s) for s in source)}",
            f"  compiler = {compiler}",
            f"  flags = {_flags(flags)}",
        ]
        return target


def build(output: Path, work: Path, *, extension_name: str, pybind11_include: str) -> list[Path]:
    """Compile everything into ``output``; return the files made. Raises SystemExit with the compiler's message."""
    torch = find_torch()
    if torch is None:
        raise SystemExit(
            "fssops: building needs torch's headers, got no torch; install it with: pip install 'torch>=2.11'"
        )
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "g++")
    csrc = ROOT / "csrc"
    hash_text = source_hash()
    isas = list(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["plain"]

    version = f"0x{TARGET_TORCH[0]:02x}{TARGET_TORCH[1]:02x}000000000000"
    # Paths in the libraries (assertions, registrations) are relative: no trace of the building machine.
    common = [
        f"-ffile-prefix-map={ROOT}=.",
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        f"-I{csrc}",
    ]
    torch_flags = [f"-isystem{torch.path / 'include'}", f"-DTORCH_TARGET_VERSION={version}", "-Wno-unused-parameter"]
    kernel_flags = [*common, "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"]
    sanitize = [f"-fsanitize={os.environ['FSSOPS_SANITIZE']}"] if os.environ.get("FSSOPS_SANITIZE") else []

    ninja = NinjaFile()
    objects_cpu: list[Path] = []
    operators = sorted(path for path in csrc.iterdir() if path.is_dir() and path.name != "common")
    identity = [f'-DFSSOPS_SOURCE_HASH="{hash_text}"']
    for source in sorted((csrc / "common").glob("*.cpp")):
        target = work / f"common_{source.stem}.o"
        # Only build_info.cpp carries the hash, so that a changed kernel recompiles one small file more.
        extra = identity if source.stem == "build_info" else []
        objects_cpu.append(ninja.edge("cxx", [source], target, compiler, [*common, *sanitize, *extra]))
    for operator in operators:
        for source in sorted(operator.glob("*_cpu.cpp")):
            for isa in isas:
                flags = [*kernel_flags, *sanitize, *ISA_FLAGS[isa], f"-DFSSOPS_ISA={isa}"]
                objects_cpu.append(ninja.edge("cxx", [source], work / f"{source.stem}_{isa}.o", compiler, flags))
        objects_cpu += [
            ninja.edge("cxx", [source], work / f"{source.stem}.o", compiler, [*common, *sanitize, *torch_flags])
            for source in sorted(operator.glob("*_torch.cpp"))
        ]
    libraries = torch.path / "lib"
    cpu_library = ninja.edge(
        "link",
        objects_cpu,
        output / "libfssops_cpu.so",
        compiler,
        [*sanitize, f"-L{libraries}", "-ltorch_cpu", "-Wl,--as-needed"],
    )
    made = [cpu_library]

    cuda = os.environ.get("FSSOPS_CUDA", "")
    if cuda not in ("", "0", "1"):
        raise SystemExit(f"fssops: FSSOPS_CUDA must be 0 or 1, got {cuda!r}")
    nvcc = None if cuda == "0" else find_nvcc()
    if cuda == "1" and nvcc is None:
        raise SystemExit("fssops: FSSOPS_CUDA=1 demands nvcc, got none; set CUDA_HOME to a CUDA toolkit")
    architectures: list[str] = []
    toolkit = ""
    if nvcc is not None:
        toolkit = ".".join(map(str, cuda_toolkit_version(nvcc)))
        architectures = cuda_architectures()
        toolkit_home = cuda_home(nvcc)
        objects_cuda: list[Path] = []
        nvcc_flags = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{csrc}", "-cudart=static"]
        nvcc_flags += ["--expt-relaxed-constexpr", *architectures]
        for operator in operators:
            objects_cuda += [
                ninja.edge("nvcc", [source], work / f"{source.stem}.cu.o", shlex.quote(str(nvcc)), nvcc_flags)
                for source in sorted(operator.glob("*_cuda.cu"))
            ]
            for source in sorted(operator.glob("*_torch_cuda.cpp")):
                flags = [*common, *torch_flags, "-DUSE_CUDA", f"-isystem{toolkit_home / 'include'}"]
                objects_cuda.append(ninja.edge("cxx", [source], work / f"{source.stem}.o", compiler, flags))
        objects_cuda.append(
            ninja.edge(
                "cxx", [csrc / "common" / "build_info.cpp"], work / "cuda_build_info.o", compiler, [*common, *identity]
            )
        )
        # The stream comes from libtorch_cuda, which a CPU-only torch lacks: an empty library of that name stands in for
        # it at link time, and torch's own, already loaded, is found by its name at run time.
        stub_source = work / "torch_cuda_stub.cpp"
        stub_source.write_text("// Stands in for libtorch_cuda at link time.\n")
        stub_object = ninja.edge("cxx", [stub_source], work / "torch_cuda_stub.o", compiler, ["-fPIC"])
        stub = ninja.edge(
            "link", [stub_object], work / "stub" / "libtorch_cuda.so", compiler, ["-Wl,-soname,libtorch_cuda.so"]
        )
        cudart = [
            f"-L{toolkit_home / folder}" for folder in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")
        ]
        cudart += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        link = ["-Wl,--no-as-needed", str(stub), f"-L{libraries}", "-ltorch_cpu", "-Wl,--as-needed", *cudart]
        link += ["-Wl,--exclude-libs,ALL"]
        cuda_library = ninja.edge("link", objects_cuda, output / "libfssops_cuda.so", compiler, link)
        ninja.lines[-3] += f" | {_quote(stub)}"  # order only: the stub is named among the flags
        made.append(cuda_library)

    info = {
        "FSSOPS_TORCH_VERSION": ".".join(map(str, torch.version)),
        "FSSOPS_CUDA_TOOLKIT": toolkit,
        "FSSOPS_CUDA_ARCHITECTURES": " ".join(re.findall(r",code=(\w+)", " ".join(architectures))),
        "FSSOPS_ISAS": " ".join(isas),
        "FSSOPS_CPU_FLAGS": " ".join(f for f in kernel_flags if not f.startswith(("-I", "-ffile"))),
        "FSSOPS_SOURCE_HASH": hash_text,
    }
    defines = [f'-D{name}="{value}"' for name, value in info.items()]
    python_include = sysconfig.get_path("include")
    bindings = ninja.edge(
        "cxx",
        [ROOT / "python" / "bindings.cpp"],
        work / "bindings.o",
        compiler,
        [*common, f"-isystem{python_include}", f"-isystem{pybind11_include}", *defines],
    )
    helpers = [  # host-side code that knows no torch
        ninja.edge("cxx", [source], work / f"{source.stem}_host.o", compiler, common)
        for source in sorted((csrc / "assignment").glob("*.cpp"))
    ]
    made.append(ninja.edge("link", [bindings, *helpers], output / extension_name, compiler, ["-lpthread"]))

    ninja_file = work / "build.ninja"
    text = "\n".join(ninja.lines) + "\n"
    if not ninja_file.is_file() or ninja_file.read_text() != text:
        ninja_file.write_text(text)
    jobs = os.environ.get("MAX_JOBS")
    if jobs is not None and not (jobs.isdigit() and int(jobs) > 0):
        raise SystemExit(f"fssops: MAX_JOBS must be a positive number, got {jobs!r}")
    command = [*_ninja_command(), "-C", str(work), "-j", jobs or str(os.cpu_count() or 1)]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit("fssops: the native build failed; the compiler's message stands above")
    return made


def _ninja_command() -> list[str]:
    try:
        import ninja
    except ModuleNotFoundError:
        found = shutil.which("ninja")
        if found is None:
            raise SystemExit("fssops: building needs ninja, got none; install it with: pip install ninja") from None
        return [found]
    return [str(Path(ninja.BIN_DIR) / "ninja")]
