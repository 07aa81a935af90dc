"""Where the host's time of an operator call goes, on tensors so small that the kernel has nothing to do.

    python benchmarks/host_cost.py [--results FILE]

For each operator: the public call, the operator as PyTorch dispatches it, and the same below autograd, which is what is
left where nothing asks for a gradient; microseconds, the least of many interleaved rounds, which is what other work on
the machine disturbs least. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from fssops import ops

ROUNDS, CALLS = 60, 200


def calls() -> dict[str, dict[str, Callable[[], Any]]]:
    """Operator to what is timed of it."""
    query = torch.randn(1, 1, 1, 4)
    mask = ops.pack_attention_mask(torch.zeros(1, 1, 1, dtype=torch.bool))
    value, centre = torch.randn(1, 1, 1, 4), torch.rand(1, 1, 1, 2)
    offsets, logits = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    maps, masks, prototypes = torch.randn(1, 4, 1, 1), torch.ones(1, 1, 1, 1), torch.randn(1, 1, 4)
    native = torch.ops.fssops

    def rows(public: Callable[[], Any], operator: Any, *arguments: Any) -> dict[str, Callable[[], Any]]:
        def below() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.default(*arguments)

        return {"public": public, "dispatched": lambda: operator.default(*arguments), "below autograd": below}

    return {
        "masked_attention": rows(
            lambda: ops.masked_attention(query, query, query, mask),
            *(native.masked_attention, query, query, query, mask.bits, 0.5),
        ),
        "ms_deform_attn_fused": rows(
            lambda: ops.ms_deform_attn_fused(value, [(1, 1)], centre, offsets, logits),
            *(native.ms_deform_attn_fused, value, [1, 1], [0], centre, offsets, logits),
        ),
        "masked_average_pooling": rows(
            lambda: ops.masked_average_pooling(maps, masks, eps=0.0),
            *(native.masked_average_pooling, maps, masks, 0.0, 0),
        ),
        "cosine_similarity_to_prototypes": rows(
            lambda: ops.cosine_similarity_to_prototypes(maps, prototypes),
            *(native.cosine_similarity_to_prototypes, maps, prototypes, 1.0, 1e-8),
        ),
    }


def measure(timed: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds of each; their rounds alternate."""
    least = dict.fromkeys(timed, float("inf"))
    for _ in range(ROUNDS):
        for name, run in timed.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                run()
            least[name] = min(least[name], (time.perf_counter() - started) / CALLS * 1e6)
    return least


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with torch.no_grad():
        for operator, timed in calls().items():
            found[operator] = measure(timed)
            print(f"{operator:<34}" + "".join(f"{name} {us:5.1f} us   " for name, us in found[operator].items()))
    if given.results:
        given.results.write_text(json.dumps({"machine": machine(), "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
