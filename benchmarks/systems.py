"""Time and peak resident memory of whole systems against what is published, each in a fresh process, on the CPU.

    python benchmarks/systems.py --results FILE

Runs the measurements of bench_panet, bench_msanet, bench_mm_former and bench_mask2former (the last one against
transformers, which must be installed) and prints the table of docs/results.md. Two threads; seconds are the best of a
few runs after a first one. Some five minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bench_mask2former
import bench_mm_former
import bench_msanet
import bench_panet
from measuring import machine

Measured = dict[str, float]


def measure_all() -> dict[str, dict[str, Measured]]:
    """Work to variant to seconds and peak_mb; the first variant of each is what the others are compared with."""
    found: dict[str, dict[str, Measured]] = {}

    def add(work: str, variant: str, row: Measured) -> None:
        kept = {"seconds": row["seconds"], "peak_mb": row["peak_mb"]}
        found.setdefault(work, {})[variant] = kept
        print(f"{work:<36} {variant:<22} {kept['seconds']:8.3f} s {kept['peak_mb']:7.0f} MB", flush=True)

    for variant in bench_panet.VARIANTS:
        add("PANet-VGG16 417 px, 1-shot", variant, bench_panet.measured(variant))
    for shots in (1, 5):
        for variant in bench_msanet.VARIANTS:
            add(f"MSANet-R50 473 px, {shots}-shot", variant, bench_msanet.measured(variant, shots))
    for shots in (1, 5):
        for variant in bench_mm_former.VARIANTS:
            add(f"MM-Former-R50 480 px, {shots}-shot", variant, bench_mm_former.measured(variant, shots))
    for what, variants in (("forward", ("fssops",)), ("step", ("fssops", "fssops_recompute"))):
        for variant in ("transformers", *variants):
            add(f"Mask2Former-R50 512 px, {what}", variant, bench_mask2former.measured(variant, what))
    return found


def table(found: dict[str, dict[str, Measured]]) -> list[str]:
    """Lines of the table in docs/results.md."""
    lines = ["| work | variant | seconds | times faster | peak MB | share of the peak |", "|---|---|---|---|---|---|"]
    for work, variants in found.items():
        base = next(iter(variants.values()))
        for name, row in variants.items():
            lines.append(
                f"| {work} | {name} | {row['seconds']:.3f} | {base['seconds'] / row['seconds']:.2f} "
                f"| {row['peak_mb']:.0f} | {row['peak_mb'] / base['peak_mb']:.2f} |"
            )
    return lines


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON file to write")
    given = parser.parse_args()
    found = measure_all()
    if given.results:
        given.results.write_text(json.dumps({"machine": machine(threads=2), "systems": found}, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
