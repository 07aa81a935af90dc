"""``python -m fssops.doctor``: what was built, what runs here, whether it computes right, and what mends it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fssops._version import VERSION
from fssops.command_line import Parser, console, print_table, run_verb

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = (
    "torch", "numpy", "scipy", "pillow", "pycocotools", "safetensors", "lightning-fabric", "rich", "matplotlib",
    "tensorboard", "pydantic", "packaging",
)  # fmt: skip
TOLERANCE = 1e-4
"""Largest relative error of a kernel against the definition, float32."""


@dataclass
class Check:
    """One operator on one device: whether it can run, its error against the definition, its time."""

    operator: str
    device: str
    runs: bool
    reason: str = ""
    error: float | None = None
    milliseconds: float | None = None

    @property
    def wrong(self) -> bool:
        """Ran, and gave another result than the definition."""
        return self.error is not None and not self.error < TOLERANCE


@dataclass
class Report:
    """State of the installation."""

    versions: dict[str, str]
    build: dict[str, str] = field(default_factory=dict)
    library: str = ""
    instruction_set: str = ""
    backend: str = "native"
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What is wrong, each with the command that mends it."""


class _Numbers:
    """Draws the inputs of the self-checks, the same on every device."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return self._torch.randn(*shape, generator=self._generator).to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        return self._torch.rand(*shape, generator=self._generator).to(self._device)

    def mask(self, *shape: int, share: float) -> Tensor:
        return self.uniform(*shape) < share


OPERATORS: dict[str, Callable[[_Numbers], dict[str, Any]]] = {
    "cosine_correlation": lambda draw: {
        "query": draw.normal(1, 256, 30, 30),
        "support": draw.normal(1, 1, 256, 30, 30),
        "masks": draw.mask(1, 1, 30, 30, share=0.2).float(),
    },
    "cosine_similarity_to_prototypes": lambda draw: {
        "features": draw.normal(1, 256, 53, 53),
        "prototypes": draw.normal(1, 2, 256),
        "scale": 20.0,
    },
    "masked_attention": lambda draw: {
        "query": draw.normal(1, 8, 100, 32),
        "key": draw.normal(1, 8, 1024, 32),
        "value": draw.normal(1, 8, 1024, 32),
        "mask": draw.mask(1, 100, 1024, share=0.7),
    },
    "masked_average_pooling": lambda draw: {
        "features": draw.normal(1, 256, 60, 60),
        "masks": draw.mask(1, 8, 240, 240, share=0.5).float(),
        "eps": 1e-5,
        "resize": "bilinear",
    },
    "ms_deform_attn": lambda draw: {
        "value": draw.normal(1, 16 * 16 + 32 * 32, 8, 32),
        "spatial_shapes": [(16, 16), (32, 32)],
        "sampling_locations": draw.uniform(1, 500, 8, 2, 4, 2),
        "attention_weights": draw.uniform(1, 500, 8, 2, 4),
    },
    "point_mask_loss": lambda draw: {
        "logits": draw.normal(8, 64, 64),
        "targets": draw.mask(8, 256, 256, share=0.5),
        "points": draw.uniform(8, 2000, 2),
        "num_masks": 8.0,
    },
}
"""Inputs of a self-check for each operator, with which native code and definition must agree."""


def _check(operator: str, device: str) -> Check:
    import torch

    from fssops import ops

    def run(backend: str) -> Tensor:
        result = getattr(ops, operator)(**inputs, backend=backend)
        return torch.stack(result) if isinstance(result, tuple) else result

    try:
        inputs = OPERATORS[operator](_Numbers(device))
        native, expected = run("native"), run("reference")
        error = float((native.double() - expected.double()).norm() / expected.double().norm())
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run("native")
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return Check(operator, device, True, error=error, milliseconds=1e3 * min(times))
    except Exception as error:  # whatever a broken installation raises is what the doctor is asked to report
        return Check(operator, device, False, reason=f"{type(error).__name__}: {error}")


def examine() -> Report:
    """Look at the installation; never raises for a broken one."""
    import torch

    from fssops import _native

    versions = {"fssops": VERSION, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    versions["torch CUDA"] = torch.version.cuda or "none"
    report = Report(versions)
    report.problems += [
        f"{name} is missing; install it with: pip install {name}" for name in PACKAGES if versions[name] == "missing"
    ]
    report.backend = os.environ.get("FSSOPS_BACKEND") or "native"
    if report.backend not in ("native", "reference"):
        report.problems.append(f"FSSOPS_BACKEND must be native or reference, got {report.backend!r}; unset it")
        return report
    try:
        report.library = str(_native.load())
        report.build = dict(_native.extension().build_info())
        report.instruction_set = _native.instruction_set()
    except _native.NativeLibraryError as error:
        report.problems.append(str(error))
        reason = "no native library, see below"
        report.checks = [Check(op, device, False, reason) for op in OPERATORS for device in ("cpu", "cuda")]
        return report
    if report.backend == "reference":
        reason = "FSSOPS_BACKEND=reference runs the PyTorch definitions"
        report.checks = [Check(op, device, False, reason) for op in OPERATORS for device in ("cpu", "cuda")]
        return report
    no_cuda = _native.why_not_cuda()
    for operator in OPERATORS:
        report.checks.append(_check(operator, "cpu"))
        report.checks.append(
            _check(operator, "cuda") if no_cuda is None else Check(operator, "cuda", False, reason=no_cuda)
        )
    for check in report.checks:
        if check.wrong:
            report.problems.append(
                f"{check.operator} on {check.device} is off by {check.error:.1e}; rebuild with: {_native.INSTALL}"
            )
        elif not check.runs and (check.device == "cpu" or no_cuda is None):
            report.problems.append(
                f"{check.operator} on {check.device}: {check.reason}; rebuild with: {_native.INSTALL}"
            )
    if torch.version.cuda is not None and torch.cuda.is_available() and no_cuda is not None:
        report.problems.append(f"there is a GPU that fssops cannot use: {no_cuda}")
    return report


def _print(report: Report) -> None:
    print_table(list(report.versions.items()), title="Versions")
    build = {"library": report.library, "instruction set in use": report.instruction_set}
    for name, value in report.build.items():
        build["torch compiled against" if name == "torch" else name.replace("_", " ")] = value
    print_table([(name, value or "none") for name, value in build.items()], title="Native build")
    rows = [
        (
            check.operator,
            check.device,
            "yes" if check.runs else "no",
            "" if check.error is None else f"{check.error:.1e}",
            "" if check.milliseconds is None else f"{check.milliseconds:.2f}",
            check.reason,
        )
        for check in report.checks
    ]
    print_table(rows, ("operator", "device", "runs", "error", "ms", "why not"), title="Operators")
    output = console()
    if report.problems:
        output.print("Something is wrong:", style="bold red")
        for problem in report.problems:
            output.print(f"  - {problem}", soft_wrap=True)
    else:
        output.print("All is well.", style="bold green")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the doctor; 1 when something is wrong."""
    parser = Parser("doctor", "Say what was built, what runs here, whether it computes right, and what mends it.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")
    options = parser.parse_args(arguments)
    report = examine()
    if options.json or report.versions["rich"] == "missing":  # the tables are rich's
        print(json.dumps(asdict(report), indent=1))
    else:
        _print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    run_verb("doctor", main)
