"""``python -m fssops.doctor``: what was built, what runs here, whether it computes right, and what mends it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from fssops import __version__, _native

PACKAGES = (
    "torch", "numpy", "scipy", "pillow", "pycocotools", "safetensors", "lightning", "rich", "matplotlib", "tensorboard",
    "pydantic", "packaging",
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
    """Everything the doctor found."""

    versions: dict[str, str]
    build: dict[str, str] = field(default_factory=dict)
    library: str = ""
    instruction_set: str = ""
    backend: str = "native"
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What is wrong, each with the command that mends it."""


def _masked_average_pooling(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, 60, 60, generator=generator).to(device)
    masks = (torch.rand(1, 8, 240, 240, generator=generator) > 0.5).float().to(device)
    return ops.masked_average_pooling(features, masks, eps=1e-5, resize="bilinear", backend=backend)


def _masked_attention(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, 100, 32, generator=generator).to(device)
    key, value = (torch.randn(1, 8, 1024, 32, generator=generator).to(device) for _ in range(2))
    closed = (torch.rand(1, 100, 1024, generator=generator) > 0.3).to(device)
    return ops.masked_attention(query, key, value, closed, backend=backend)


def _ms_deform_attn(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (32, 32)]
    value = torch.randn(1, 16 * 16 + 32 * 32, 8, 32, generator=generator).to(device)
    locations = torch.rand(1, 500, 8, 2, 4, 2, generator=generator).to(device)
    weights = torch.rand(1, 500, 8, 2, 4, generator=generator).to(device)
    return ops.ms_deform_attn(value, shapes, locations, weights, backend=backend)


def _cosine_correlation(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 256, 30, 30, generator=generator).to(device)
    support = torch.randn(1, 1, 256, 30, 30, generator=generator).to(device)
    masks = (torch.rand(1, 1, 30, 30, generator=generator) > 0.8).float().to(device)
    return ops.cosine_correlation(query, support, masks, backend=backend)


def _point_mask_loss(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 64, 64, generator=generator).to(device)
    targets = (torch.rand(8, 256, 256, generator=generator) > 0.5).to(device)
    points = torch.rand(8, 2000, 2, generator=generator).to(device)
    return torch.stack(ops.point_mask_loss(logits, targets, points, 8.0, backend=backend))


def _cosine_similarity_to_prototypes(device: str, backend: str) -> Tensor:
    from fssops import ops

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, 53, 53, generator=generator).to(device)
    prototypes = torch.randn(1, 2, 256, generator=generator).to(device)
    return ops.cosine_similarity_to_prototypes(features, prototypes, scale=20.0, backend=backend)


OPERATORS: dict[str, Callable[[str, str], Tensor]] = {
    "cosine_correlation": _cosine_correlation,
    "cosine_similarity_to_prototypes": _cosine_similarity_to_prototypes,
    "masked_attention": _masked_attention,
    "masked_average_pooling": _masked_average_pooling,
    "ms_deform_attn": _ms_deform_attn,
    "point_mask_loss": _point_mask_loss,
}
"""A numeric self-check per operator: (device, backend) to a result; native and reference must agree."""


def _check(operator: str, device: str) -> Check:
    work = OPERATORS[operator]
    try:
        got = work(device, "native")
        expected = work(device, "reference")
        error = float((got.double() - expected.double()).norm() / expected.double().norm())
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work(device, "native")
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return Check(operator, device, True, error=error, milliseconds=1e3 * min(times))
    except Exception as error:  # whatever a broken installation raises is what the doctor is asked to report
        return Check(operator, device, False, reason=f"{type(error).__name__}: {error}")


def examine() -> Report:
    """Look at the installation; never raises for a broken one."""
    versions = {"fssops": __version__, "python": platform.python_version(), "platform": platform.platform()}
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
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Versions", show_header=False, title_justify="left")
    for name, value in report.versions.items():
        table.add_row(name, value)
    console.print(table)
    table = Table(title="Native build", show_header=False, title_justify="left")
    table.add_row("library", report.library or "none")
    table.add_row("instruction set in use", report.instruction_set or "none")
    for name, value in report.build.items():
        table.add_row("torch compiled against" if name == "torch" else name.replace("_", " "), value or "none")
    console.print(table)
    table = Table(title="Operators", title_justify="left")
    for column in ("operator", "device", "runs", "error", "ms", "why not"):
        table.add_column(column)
    for check in report.checks:
        table.add_row(
            check.operator,
            check.device,
            "yes" if check.runs else "no",
            "" if check.error is None else f"{check.error:.1e}",
            "" if check.milliseconds is None else f"{check.milliseconds:.2f}",
            check.reason,
        )
    console.print(table)
    if report.problems:
        console.print("[bold red]Something is wrong:[/bold red]")
        for problem in report.problems:
            console.print(f"  - {problem}", markup=False, soft_wrap=True)
    else:
        console.print("[bold green]All is well.[/bold green]")


def main(arguments: list[str] | None = None) -> int:
    """Run the doctor; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m fssops.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")
    options = parser.parse_args(arguments)
    report = examine()
    if options.json or report.versions["rich"] == "missing":  # the tables are rich's
        data: dict[str, Any] = asdict(report)
        print(json.dumps(data, indent=1))
    else:
        _print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
