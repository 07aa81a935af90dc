"""What the compiler made of the hottest CUDA kernels, for 9.0: the instructions that they are built on, none that they
must not have, and no more instructions a matrix product than now.

Needs cuobjdump and nvdisasm: of the CUDA toolkit, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = {path.name.split("_cuda.")[0]: path for path in sorted(ROOT.glob("build/native-*/*_cuda.cu.o"))}
HALF = "INS_(6bf16_t|6half_t)E"
SPILLS = ("STL", "LDL")

KERNELS = [
    # operator, kernel (a pattern of its mangled name), instructions that it must have, that it must not have, and how
    # many instructions there are at most for one of the first. HMMA is the matrix product, LDSM ldmatrix, LDGSTS
    # cp.async.
    ("masked_attention", f"forward_half_kernel{HALF}Li32E", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 66),
    ("masked_attention", f"grad_query_half_kernel{HALF}Li32E", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 45),
    ("masked_attention", f"grad_key_half_kernel{HALF}Li32E", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 61),
    ("masked_attention", f"project_half_kernel{HALF}", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 49),
    ("cosine_correlation", f"16correlate_kernel{HALF}fLb0E", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 127),
    ("cosine_correlation", f"11topk_kernel{HALF}", ("HMMA", "LDSM", "LDGSTS"), SPILLS, 54),
    ("cosine_correlation", "16correlate_kernelIffLb0E", ("FFMA", "LDGSTS"), (*SPILLS, "DFMA"), 4),
]


def _tools() -> str | None:
    """A path on which cuobjdump and nvdisasm are."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    folders += map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return path if shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path) else None


@pytest.fixture(scope="module")
def machine_code() -> dict[str, dict[str, Counter[str]]]:
    """operator -> mangled kernel -> how often each instruction is in it."""
    path = _tools()
    if path is None:
        pytest.skip("needs cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    if not OBJECTS:
        pytest.skip("this tree was built without nvcc, or elsewhere")
    found = {}
    for operator in {kernel[0] for kernel in KERNELS}:
        command = [shutil.which("cuobjdump", path=path) or "", "-sass", "-arch", "sm_90", str(OBJECTS[operator])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
        found[operator] = {
            part.split("\n", 1)[0]: Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", part))
            for part in re.split(r"\n\s*Function : ", done.stdout)[1:]
        }
    return found


@pytest.mark.parametrize(("operator", "name", "wanted", "unwanted", "most"), KERNELS, ids=lambda v: str(v)[:40])
def test_hot_kernels_are_made_of_what_they_are_built_on(
    machine_code: dict[str, dict[str, Counter[str]]],
    operator: str,
    name: str,
    wanted: tuple[str, ...],
    unwanted: tuple[str, ...],
    most: int,
) -> None:
    kernels = {kernel: code for kernel, code in machine_code[operator].items() if re.search(name, kernel)}
    if not kernels:
        pytest.skip("this tree was not built for 9.0")
    for kernel, code in kernels.items():
        assert all(code[instruction] > 0 for instruction in wanted), (kernel, code)
        assert not any(code[instruction] for instruction in unwanted), (kernel, code)
        assert code.total() <= most * code[wanted[0]], (kernel, code)
