"""Where a training step goes, for every system on the small packs of real images; and what waits for data.

    python benchmarks/step_profile.py --data ../shared/data [--results FOLDER] [--systems panet ...]

Of each system: seconds a step and the share of it that waits for data with one loader process and with none, peak
memory, and from PyTorch's profiler the parts of a step and its most expensive operators. Random weights; the recipes
are those of ``benchmarks/real_images``. Writes ``step_profile.json`` and the table ``step_profile.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PACKS = HERE / "real_images"
SYSTEMS: dict[str, tuple[str, str, list[str]]] = {
    "panet": (str(PACKS / "panet_voc_mini.toml"), "voc_mini", []),
    "panet coco": (str(PACKS / "panet_coco_mini.toml"), "coco_mini", []),
    "msanet": (str(PACKS / "msanet_voc_mini.toml"), "voc_mini", []),
    "mm_former": (str(PACKS / "mm_former_coco_mini.toml"), "coco_mini", []),
    "mask2former": ("mask2former_camvid", "camvid", []),
    "mask2former coco": (str(PACKS / "mask2former_coco_mini.toml"), "coco_mini", []),
    "maskformer": ("mask2former_camvid", "camvid", ["model.name=maskformer"]),
    "mp_former": ("mask2former_camvid", "camvid", ["model.name=mp_former"]),
    "per_pixel_baseline": ("mask2former_camvid", "camvid", ["model.name=per_pixel_baseline"]),
    "mask2former_vis": (str(PACKS / "mask2former_vis_davis_mini.toml"), "davis_mini", []),
}
"""Row -> recipe, pack, overrides. Options that a model does not have are dropped."""

PARTS = ("wait for data", "losses", "backward", "clip", "update")


def settings_of(row: str, data: Path, overrides: Sequence[str]) -> Any:
    """The recipe of a row, with what its model does not know left out."""
    from dataclasses import fields

    from fssops.engine.settings import apply_overrides
    from fssops.models import MODELS
    from fssops.recipes import read_named_recipe
    from fssops.tasks import settings_from_tables

    recipe, pack, own = SYSTEMS[row]
    common = [f"data.root={json.dumps(str(data / pack))}", "engine.tensorboard=false", "engine.log_every=1"]
    common += ["engine.validate_every=0", "engine.best_metric=loss", "engine.best_mode=min", "engine.save_every=100000"]
    tables = apply_overrides(read_named_recipe(recipe), [*common, *own, *overrides])
    known = {field.name for field in fields(MODELS[tables["model"]["name"]].config_class())}
    tables["model"] = {key: value for key, value in tables["model"].items() if key in known | {"name"}}
    return settings_from_tables(tables, row)


def run(row: str, data: Path, steps: int, workers: int, profiled: bool) -> dict[str, Any]:
    """Train some steps in this process and say where the time went; the first two steps are not counted."""
    from fssops.engine.launch import build_fabric
    from fssops.engine.metrics_log import read_metrics
    from fssops.engine.random_state import seed_everything
    from fssops.engine.run_folder import RunFolder
    from fssops.engine.trainer import Trainer
    from fssops.tasks import task_of
    from fssops.tasks.trained_models import build_model

    settings = settings_of(row, data, [f"schedule.steps={steps}", f"engine.workers={workers}"])
    fabric, task = build_fabric(settings.engine), task_of(settings)
    fabric.launch()
    seed_everything(0)
    model = build_model(settings)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        folder.create()
        trainer = Trainer(settings, fabric, model, task.training_data()[0], task.collate, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) if profiled else nullcontext()
        with watch as found:
            trainer.fit()
        records = read_metrics(folder.metrics)[2:]
    seconds = sum(record["step_seconds"] for record in records)
    result: dict[str, Any] = {
        "batch": settings.engine.batch_size,
        "seconds a step": round(seconds / len(records), 4),
        "share waiting for data": round(sum(r["step_seconds"] * r["data_wait"] for r in records) / seconds, 4),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "of it before training": before // 1024,
    }
    if profiled:
        events = found.key_averages()  # type: ignore[union-attr]
        parts = {e.key.removeprefix("fssops: "): e.cpu_time_total for e in events if e.key.startswith("fssops: ")}
        whole = sum(parts.values())
        result["parts"] = {part: round(parts.get(part, 0.0) / whole, 4) for part in PARTS}
        own = sorted((e for e in events if not e.key.startswith("fssops: ")), key=lambda e: -e.self_cpu_time_total)
        result["operators"] = {e.key: round(e.self_cpu_time_total / whole, 4) for e in own[:8]}
    return result


def _child(pipe: Any, arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        pipe.send(run(*arguments))
    except (ValueError, RuntimeError, OSError) as error:
        pipe.send({"error": str(error)})


def alone(arguments: tuple[Any, ...], threads: int) -> dict[str, Any]:
    """:func:`run` in a process of its own, whose peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, arguments, threads))
    process.start()
    found: dict[str, Any] = ours.recv()
    process.join()
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| system | batch | s a step | waits, 1 loader | waits, none | losses | backward | clip, update | peak MB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        ahead, none, profile = row["one loader"], row["no loader"], row["profile"]
        if any("error" in part for part in (ahead, none, profile)):
            continue
        busy = 1 - profile["parts"]["wait for data"]
        shares = [profile["parts"][part] / busy for part in PARTS]
        cells = [name, ahead["batch"], f"{ahead['seconds a step']:.3f}"]
        cells += [f"{100 * part['share waiting for data']:.1f} %" for part in (ahead, none)]
        cells += [f"{100 * share:.0f} %" for share in (shares[1], shares[2], shares[3] + shares[4])]
        lines.append("| " + " | ".join(map(str, [*cells, profile["peak MB"]])) + " |")
    lines += ["", "Most expensive operators (share of a step, own time):", ""]
    for name, row in rows.items():
        found = row["profile"].get("operators", {})
        lines.append(
            f"- {name}: " + ", ".join(f"`{key}` {100 * value:.0f} %" for key, value in list(found.items())[:5])
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    for row in options.systems:
        rows[row] = {
            "one loader": alone((row, options.data, options.steps, 1, False), options.threads),
            "no loader": alone((row, options.data, options.steps, 0, False), options.threads),
            "profile": alone((row, options.data, 4, 0, True), options.threads),
        }
        print(row, json.dumps(rows[row]), flush=True)
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    machine |= {"cores": os.cpu_count(), "threads": options.threads, "steps": options.steps}
    print(table(rows))
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "step_profile.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
        (options.results / "step_profile.md").write_text(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
