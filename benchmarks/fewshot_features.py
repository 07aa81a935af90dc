"""Backbone passes of 5-shot evaluation, 1,000 episodes x 5 runs, with features kept and without.

    python benchmarks/fewshot_features.py --data ../shared/data/voc_mini [--results FILE]

Pascal-5i fold 0 of a small pack, random weights (they do not matter here), images at a reduced size. Without kept
features every image asked for is a pass. That the results are the same to the last bit with all features in memory,
with most of them on disk, and with none kept, is checked on fewer episodes, which also gives the times.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from fssops.engine.launch import build_fabric
from fssops.engine.random_state import seed_everything
from fssops.evaluation.results import FewShotResult
from fssops.tasks import settings_from_tables, task_of
from fssops.tasks.trained_models import build_model

SYSTEMS: dict[str, dict[str, Any]] = {
    "panet": {"backbone": "vgg16"},
    "msanet": {"backbone": "resnet50", "shots": 5},
}


def evaluate(system: str, data: Path, size: int, **rules: Any) -> FewShotResult:
    """Score a system with random weights; the protocol compares at the size of the network."""
    tables = {
        "name": system,
        "model": {"name": system, **SYSTEMS[system]},
        "data": {
            "source": "voc",
            "root": str(data),
            "split": "train",
            "folds": "pascal5i",
            "definition": "msanet",
            "size": [size, size],
            "geometry": "letterbox" if system == "msanet" else "square",
            "shots": 5,
            "too_few": "skip",
        },
        "engine": {"accelerator": "cpu"},
        "eval": {"protocol": "panet", "split": "val", "shots": 5, **rules},
    }
    settings = settings_from_tables(tables, "fewshot_features")
    task, fabric = task_of(settings), build_fabric(settings.engine)
    fabric.launch()
    seed_everything(0)
    result = task.evaluate(build_model(settings).eval(), fabric, system, title="").result
    assert isinstance(result, FewShotResult)
    return result


def scores(result: FewShotResult) -> str:
    """Everything that was measured, to the last digit; NaN equals NaN."""
    measured = result.few_shot
    return json.dumps([measured.class_iou, measured.binary_iou, measured.episode_iou])


def main() -> int:
    """Measure and report; the exit code says whether results differed or too little was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=97)
    parser.add_argument("--few", type=int, default=20, help="episodes of a run in the comparison")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, failed = [], False
    for system in options.systems:
        few = {"runs": 5, "episodes": options.few}
        seconds: dict[str, float] = {}
        compared: dict[str, FewShotResult] = {}
        for name, rules in {
            "none kept": {"cache_mb": 0},
            "in memory": {"cache_mb": 2048},
            "3 MB in memory, the rest on disk": {"cache_mb": 3, "cache_disk_mb": 2048},
        }.items():
            started = time.perf_counter()
            compared[name] = evaluate(system, options.data, options.size, **few, **rules)
            seconds[name] = round(time.perf_counter() - started, 2)
        same = all(scores(result) == scores(compared["none kept"]) for result in compared.values())
        whole = evaluate(system, options.data, options.size)
        rows.append(
            {
                "system": system,
                "model": SYSTEMS[system],
                "size": options.size,
                "setting": whole.setting(),
                "images asked for": whole.computed.images,
                "passes": whole.computed.passes,
                "times fewer": round(whole.computed.images / whole.computed.passes, 1),
                "seconds": whole.seconds,
                "comparison": {"episodes": f"5 x {options.few}", "same bits": same, "seconds": seconds}
                | {"passes": {name: result.computed.passes for name, result in compared.items()}},
            }
        )
        failed |= not same or whole.computed.images < 10 * whole.computed.passes
    text = json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1)
    print(text)
    if options.results:
        options.results.write_text(text + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
