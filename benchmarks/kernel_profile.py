"""Where the device's time goes in five operators: every kernel of ours, its shape, what it takes of a multiprocessor.

python benchmarks/kernel_profile.py --results FILE     (needs a GPU; adds the table "kernels" to FILE)

Times are medians of 20 calls under torch.profiler, with whatever is in the caches; benchmarks flush them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fssops import ops

CALLS = 20


def works(device: torch.device) -> dict[str, Callable[[], Any]]:
    """The five, at the sizes of a 512 x 512 image (Mask2Former) and of a 473 x 473 episode (MSANet)."""
    half: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    query, key, value = (torch.randn(1, 8, n, 32, **half) for n in (100, 16_384, 16_384))
    embeddings, features = torch.randn(1, 100, 256, **half), torch.randn(1, 256, 16_384, **half)
    mask = ops.attention_mask_from_embeddings(embeddings, features)
    shapes = [(16, 16), (32, 32), (64, 64)]
    tokens = sum(h * w for h, w in shapes)
    values = torch.randn(1, tokens, 8, 32, device=device)
    locations = torch.rand(1, tokens, 8, 3, 4, 2, device=device)
    weights = torch.rand(1, tokens, 8, 3, 4, device=device)
    query_map, support = torch.randn(1, 1024, 60, 60, **half), torch.randn(1, 1, 1024, 60, 60, **half)
    kept = (torch.rand(1, 1, 60, 60, device=device) < 0.15).float()
    logits, targets = torch.randn(20, 128, 128, device=device), torch.rand(20, 512, 512, device=device) < 0.5
    points = torch.rand(20, 12_544, 2, device=device)
    return {
        "masked_attention": lambda: ops.masked_attention(query, key, value, mask),
        "attention_mask_from_embeddings": lambda: ops.attention_mask_from_embeddings(embeddings, features),
        "ms_deform_attn": lambda: ops.ms_deform_attn(values, shapes, locations, weights),
        "cosine_correlation": lambda: ops.cosine_correlation(query_map, support, kept),
        "point_mask_loss": lambda: ops.point_mask_loss(logits, targets, points, num_masks=20.0),
    }


def profile(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """A row for each of our kernels that a call launches."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return kernel_rows(events)


def kernel_rows(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a trace's events."""
    launches: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "kernel" and "fssops" in event["name"]:
            launches.setdefault(event["name"], []).append(event)
    rows = []
    for name, found in launches.items():
        facts = found[0]["args"]
        short = re.sub(r"fssops::|void |\(.*", "", name)
        rows.append(
            {
                "name": short,
                "microseconds": statistics.median(event["dur"] for event in found),
                "launches_a_call": len(found) / CALLS,
                "blocks": torch.Size(facts["grid"]).numel(),
                "threads": torch.Size(facts["block"]).numel(),
                "registers": facts["registers per thread"],
                "shared_bytes": facts["shared memory"],
                "occupancy_percent": facts["est. achieved occupancy %"],
            }
        )
    return rows


def main() -> None:
    """Profile all and add the rows to the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    content = json.loads(given.results.read_text()) if given.results.is_file() else {}
    with torch.inference_mode():
        content["kernels"] = [row for call in works(torch.device("cuda")).values() for row in profile(call)]
    given.results.write_text(json.dumps(content, indent=1) + "\n")
    for row in content["kernels"]:
        print(f"{row['name']:80} {row['microseconds']:9.1f} us")


if __name__ == "__main__":
    main()
