"""MP-Former against Mask2Former: the same generated data, seeds and steps, curves side by side.

    python benchmarks/mp_former_against_mask2former.py --out runs/comparison [--steps 300] [--seeds 1234 1235]

Trains the recipes ``mp_former_generated`` and ``mask2former_generated``, which differ in the model alone, once a seed,
with validation on the way; and MP-Former without piloted queries, which is Mask2Former without positions of queries, to
tell the two changes apart. Writes ``comparison.json`` (machine, settings, curves, final scores, means over the seeds)
and ``comparison.png``. The training loss shown is that of the normal queries, which all have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import machine

from fssops import train
from fssops.engine.metrics_log import read_metrics
from fssops.tasks import load_task

SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "mask2former": ("mask2former_generated", []),
    "mp_former, not piloted": ("mp_former_generated", ["model.pilot_groups=0"]),
    "mp_former": ("mp_former_generated", []),
}
"""What is compared: recipe and what it is run with beside the others' overrides."""
VALIDATED = {
    "PQ": "val/pq",
    "mIoU": "val/miou",
    "layer agreement": "val/layer_agreement",
    "query utilisation": "val/query_utilisation",
}
COLOURS = {"mask2former": "#1d78d8", "mp_former, not piloted": "#8a8f98", "mp_former": "#e63946"}


def overrides(seed: int, options: argparse.Namespace) -> list[str]:
    """What all recipes are run with."""
    return [
        f"engine.seed={seed}",
        f"schedule.steps={options.steps}",
        f"engine.validate_every={options.validate_every}",
        "engine.log_every=10",
        f"engine.save_every={options.steps}",
        "engine.tensorboard=false",
        "engine.workers=0",
        "engine.best_metric=loss",
        "engine.best_mode=min",
        "eval.baseline=false",
        "eval.pictures=0",
        "eval.layer_measures=true",
        *options.overrides,
    ]


def check_alike(sets: Sequence[str]) -> None:
    """Refuse recipes that differ in more than the model.

    Raises:
        ValueError: names the table.
    """
    first, *others = [load_task(recipe, [*sets, *own]).settings.as_tables() for recipe, own in SYSTEMS.values()]
    for name, table in first.items():
        for other in others:
            if name not in ("name", "description", "model") and other[name] != table:
                raise ValueError(f"recipes: [{name}] must be the same for all, got {table} and {other[name]}")


def trained(system: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one system with one seed and return its curves and final scores.

    Raises:
        RuntimeError: training failed.
    """
    recipe, own = SYSTEMS[system]
    folder = options.out / f"{system.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    if not (folder / "result.json").exists():
        sets = [part for override in [*overrides(seed, options), *own] for part in ("--set", override)]
        code = train.main([recipe, "--out", str(folder), *sets])
        if code:
            raise RuntimeError(f"{system}, seed {seed}: training must end with 0, got {code}")
    records = read_metrics(folder / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    scores = [record for record in records if "val/pq" in record]
    result = json.loads((folder / "result.json").read_text())
    return {
        "system": system,
        "seed": seed,
        "loss": [[r["step"], round(normal_loss(r), 4)] for r in steps],
        "step_seconds": round(statistics.median(r["step_seconds"] for r in steps), 4),
        **{name: [[r["step"], round(r[key], 5)] for r in scores] for name, key in VALIDATED.items()},
        "final": {name: round(value, 5) for name, value in result["scores"].items()},
        "layers": result["trained"]["layers"],
    }


def normal_loss(record: dict[str, Any]) -> float:
    """Sum of the loss terms of the normal queries."""
    return float(sum(value for name, value in record.items() if name.startswith("loss_") and "_dn" not in name))


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of the final scores, and MP-Former's gain over Mask2Former seed by seed."""
    means: dict[str, Any] = {}
    for name in ("PQ", "mIoU", "AP", "layer agreement", "query utilisation"):
        values = {s: [run["final"][name] for run in runs if run["system"] == s] for s in SYSTEMS}
        gains = [b - a for a, b in zip(values["mask2former"], values["mp_former"], strict=True)]
        means[name] = {
            **{system: round(statistics.fmean(found), 5) for system, found in values.items()},
            "gain of each seed": [round(gain, 5) for gain in gains],
        }
    return means


def draw(runs: Sequence[dict[str, Any]], target: Path, title: str) -> None:
    """Curves side by side: thin lines a seed, a thick one their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = ["loss", *VALIDATED]
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for axis, name in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for system in SYSTEMS:
            curves = [run[name] for run in runs if run["system"] == system]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=COLOURS[system], linewidth=0.7, alpha=0.45)
            steps = [step for step, _ in curves[0]]
            mean = [statistics.fmean(curve[place][1] for curve in curves) for place in range(len(steps))]
            marker = "" if name == "loss" else "o"
            axis.plot(steps, mean, color=COLOURS[system], linewidth=2, marker=marker, markersize=3, label=system)
        axis.set_title("training loss of the normal queries" if name == "loss" else f"{name}, validation", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=7)
    figure.savefig(target, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; finished ones are not run again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--validate-every", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--note", default="", help="said in the JSON, e.g. whether the machine was busy")
    options = parser.parse_args(arguments)
    check_alike(overrides(options.seeds[0], options))
    runs = [trained(system, seed, options) for seed in options.seeds for system in SYSTEMS]
    body = {
        "machine": machine(),
        "note": options.note,
        "settings": {"steps": options.steps, "seeds": options.seeds, "overrides": options.overrides},
        "means": summary(runs),
        "runs": runs,
    }
    (options.out / "comparison.json").write_text(json.dumps(body, indent=1) + "\n")
    title = f"generated scenes, {options.steps} steps, seeds {', '.join(map(str, options.seeds))}"
    draw(runs, options.out / "comparison.png", title)
    print(json.dumps(body["means"], indent=1))
    print(f"written: {options.out}/ (comparison.json, comparison.png)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
