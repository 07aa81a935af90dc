"""What a GPU, its driver and the toolkit must be, said in one line; and how the CUDA library finds its device."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fssops import _native

ROOT = Path(__file__).resolve().parents[2]
needs_sources = pytest.mark.skipif(not (ROOT / "build_backend").is_dir(), reason="needs the source tree")


def _native_build() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "build_backend" / "native_build.py"))


@needs_sources
@pytest.mark.parametrize("wanted", ["7.5;8.6", "8.0 7.0+PTX", "6.1"])
def test_build_refuses_old_architectures_in_one_line(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(SystemExit, match=r"^fssops: TORCH_CUDA_ARCH_LIST must name architectures from 8\.0 on, got '"):
        _native_build()["cuda_architectures"]()


@needs_sources
def test_build_takes_architectures_from_8_0_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;12.0a+PTX")
    assert _native_build()["cuda_architectures"]() == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120a,code=sm_120a",
        "-gencode=arch=compute_120a,code=compute_120a",
    ]


@needs_sources
def test_build_refuses_an_old_toolkit(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    nvcc.chmod(0o755)
    with pytest.raises(SystemExit, match=r"nvcc must be of CUDA 12\.0 or newer, got 11\.8"):
        _native_build()["cuda_toolkit_version"](nvcc)


DEFAULT = "sm_80 sm_90 compute_90"


@pytest.mark.parametrize(
    ("capability", "driver", "toolkit", "architectures", "reason"),
    [
        ((8, 0), (13, 0), "13.0", DEFAULT, None),
        ((8, 9), (13, 0), "13.0", DEFAULT, None),
        ((9, 0), (12, 2), "12.8", DEFAULT, None),  # a driver of the same major version will do for machine code
        ((10, 0), (13, 1), "13.0", DEFAULT, None),
        ((9, 0), (13, 0), "13.0", "sm_90a", None),
        ((12, 1), (13, 0), "13.0", "sm_120f", None),
        ((7, 5), (13, 0), "13.0", DEFAULT, "the GPU must be of compute capability 8.0 or newer, got 7.5"),
        (
            (9, 0), (12, 8), "13.0", DEFAULT,
            "the driver must know CUDA 13, with which fssops was built, got one for CUDA 12.8; update the driver, or",
        ),
        ((12, 0), (13, 0), "13.0", "sm_80 sm_90", "fssops was built for sm_80 sm_90, got a GPU of compute capability"),
        ((8, 0), (13, 0), "13.0", "sm_86", "rebuild it with: TORCH_CUDA_ARCH_LIST=8.0 pip install"),
        ((9, 1), (13, 0), "13.0", "sm_90a", "fssops was built for sm_90a, got a GPU of compute capability 9.1"),
        ((10, 0), (12, 8), "12.9", DEFAULT, "fssops was built for"),  # it cannot compile a newer toolkit's PTX
        ((12, 0), (13, 0), "13.0", "compute_90a", "fssops was built for compute_90a"),
    ],
)  # fmt: skip
def test_gpu_that_cannot_run_the_kernels_is_told_why(
    capability: tuple[int, int], driver: tuple[int, int], toolkit: str, architectures: str, reason: str | None
) -> None:
    said = _native.why_not_gpu(capability, driver, toolkit, architectures)
    assert said is None if reason is None else reason in (said or "")


def test_the_doctors_question_asks_driver_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libfssops_cuda.so").touch()
    monkeypatch.setattr(_native, "load", lambda: tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(_native, "_driver_version", lambda: (12, 8))
    info = {"cuda_toolkit": "13.0", "cuda_architectures": DEFAULT}
    monkeypatch.setattr(_native, "extension", lambda: type("module", (), {"build_info": staticmethod(lambda: info)}))
    assert "the driver must know CUDA 13" in (_native.why_not_cuda() or "")
    info["cuda_toolkit"] = "12.8"
    assert _native.why_not_cuda() is None


STREAM_OF_DEVICE = """
#include <cstdio>
#include "common/check_cuda.h"
static int chosen = -1;
extern "C" cudaError_t cudaSetDevice(int device) {
  if (device == 7) return cudaErrorInvalidDevice;
  chosen = device;
  return cudaSuccess;
}
extern "C" const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<intptr_t>(100 * chosen + device));
  return 0;
}
int main() {
  std::printf("%d\\n", static_cast<int>(reinterpret_cast<intptr_t>(fssops::current_stream(3))));
  try {
    fssops::current_stream(7);
  } catch (const std::exception& error) {
    std::printf("%s\\n", error.what());
  }
}
"""


@needs_sources
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_launches_go_to_the_device_of_the_tensors(tmp_path: Path) -> None:
    build = _native_build()
    nvcc = build["find_nvcc"]()
    if nvcc is None:
        pytest.skip("needs a CUDA toolkit")
    (tmp_path / "main.cpp").write_text(STREAM_OF_DEVICE)
    torch_folder = Path(torch.__file__).parent
    command = ["g++", "-std=c++20", "-w", "-O0", f"-I{ROOT / 'csrc'}", f"-isystem{torch_folder / 'include'}"]
    command += [
        f"-isystem{build['cuda_home'](nvcc) / 'include'}",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    command += [
        str(tmp_path / "main.cpp"),
        "-o",
        str(tmp_path / "main"),
        f"-L{torch_folder / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    command += [f"-Wl,-rpath,{torch_folder / 'lib'}"]
    subprocess.run(command, check=True)
    said = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["303", "fssops: using CUDA device 7 failed: invalid device ordinal"]
