"""How many operations a prediction of each system hands to PyTorch's dispatcher, without views.

    python benchmarks/dispatched_operations.py [--results FILE]

Models of the published sizes with random weights; float32, then bfloat16 autocast entered for each prediction. The
second prediction is counted, since the first fills caches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from measuring import machine

from fssops.models import list_models
from fssops.testing.dispatched import dispatched, one_prediction


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON file to write")
    given = parser.parse_args()
    found = {}
    print("| system | float32 | bfloat16 autocast | reads by the host |\n|---|---|---|---|")
    for name in list_models():
        if name == "insid3":
            continue  # its count goes with the clusters that it finds
        torch.manual_seed(0)
        run = one_prediction(name)
        plain, autocast = dispatched(run), dispatched(run, torch.bfloat16)
        reads = plain.host_reads
        found[name] = {"float32": plain.total, "bfloat16": autocast.total, "host_reads": reads}
        print(f"| {name} | {plain.total} | {autocast.total} | {sum(reads.values())} |", flush=True)
    if given.results:
        given.results.write_text(json.dumps({"machine": machine(), "operations": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
