"""Print the table of operators in docs/results.md from the results of ``pytest benchmarks --results FILE``.

python benchmarks/table.py benchmarks/results/cpu_2026-11-20  (a folder, or a file as benchmarks/on_gpu.sh leaves it)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def rows_of(file: Path) -> list[str]:
    """A row a group in which both the composition and fssops were measured, by the device's time alone."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for entry in json.loads(file.read_text())["measurements"]:
        groups.setdefault(entry["group"], {})[entry["implementation"]] = entry
    rows = []
    for group, found in groups.items():
        found = {name: entry for name, entry in found.items() if entry.get("without_host", True)}
        if not {"composition", "fssops"} <= found.keys():
            continue
        ours, theirs = found["fssops"], found["composition"]
        others = {name: entry for name, entry in found.items() if name not in ("composition", "fssops")}
        times = [f"{name} {entry['seconds'] / ours['seconds']:.1f}" for name, entry in sorted(others.items())]
        rows.append(
            f"| {group} | {1e3 * theirs['seconds']:.2f} ms | {1e3 * ours['seconds']:.2f} ms "
            f"| {theirs['seconds'] / ours['seconds']:.1f} | {', '.join(times)} "
            f"| {theirs['peak_bytes'] / 1e6:.1f} to {ours['peak_bytes'] / 1e6:.1f} MB |"
        )
    return rows


def print_kernels(kernels: list[dict[str, Any]]) -> None:
    """The table of ``kernel_profile.py``, where there is one."""
    if not kernels:
        return
    print("\n| kernel | us | blocks x threads | registers | shared memory | occupancy |\n|---|---|---|---|---|---|")
    for k in kernels:
        shape = f"{k['blocks']} x {k['threads']}"
        numbers = f"{k['registers']} | {k['shared_bytes']} B | {k['occupancy_percent']} %"
        print(f"| {k['name']} | {k['microseconds']:.1f} | {shape} | {numbers} |")


def main() -> None:
    """Print one table of all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="*", default=None, metavar="TEXT", help="groups that contain one of these")
    given = parser.parse_args()
    print("| work | composition | fssops | times faster | than others | peak memory |")
    print("|---|---|---|---|---|---|")
    for file in sorted(given.results.glob("*.json")) if given.results.is_dir() else [given.results]:
        content = json.loads(file.read_text())
        if "group" not in (content.get("measurements") or [{}])[0]:
            continue
        for row in rows_of(file):
            if given.only is None or any(text in row for text in given.only):
                print(row)
        print_kernels(content.get("kernels", []))


if __name__ == "__main__":
    main()
