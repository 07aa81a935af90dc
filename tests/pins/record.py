"""Write the expectations of the pins anew, from what the package does now.

    python tests/pins/record.py names settings recipes episode_lists class_lists items results earlier_runs
    python tests/pins/record.py all          those and the ones of real images (FSSOPS_DATA, else ../shared/data)
    python tests/pins/record.py archives panet msanet ...    train earlier runs anew, then record earlier_runs

Only run this where a change of what is pinned is MEANT, name nothing but what that change concerns, and say in the
commit which expectation changes and why: numbers, item streams, names, JSON keys and runs made before belong to users.
A pin that fails in a change that should leave them alone has found a mistake; recording it anew hides that.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import surfaces
import test_pinned_earlier_runs as earlier
import test_pinned_episode_lists as lists
import test_pinned_items as items
import test_pinned_names as names
import test_pinned_results as results
import torch
from earlier_runs import FOLDER, RUNS, EarlierRun
from fingerprints import EXPECTED
from PIL import Image

import fssops

DATA = Path(os.environ.get("FSSOPS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def write(name: str, content: Any) -> None:
    """Write an expectation, a line for each entry of the first two levels."""
    text = json.dumps(content, indent=1, sort_keys=True)
    (EXPECTED / f"{name}.json").write_text(text + "\n")
    print(f"{name}.json: {len(text) / 1000:.0f} kB")


def record_names() -> None:
    write(
        "names",
        {
            "operators": sorted(surfaces.operator_names()),
            "models": sorted(fssops.list_models()),
            "options": {command: names.options_of(command) for command in names.COMMANDS},
            "python": names.python_names(),
        },
    )


def record_settings() -> None:
    found = {model: names.settings_of(model) for model in sorted(fssops.list_models())}
    write("settings", shared_and_alone(found))


def shared_and_alone(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows of every model: what all of them share once, and what each has besides."""
    first, *others = rows.values()
    shared = {key: value for key, value in first.items() if all(row.get(key, "") == value for row in others)}
    return {"every model": shared, **{m: {k: v for k, v in row.items() if k not in shared} for m, row in rows.items()}}


def record_choices() -> None:
    write("choices", shared_and_alone({model: surfaces.choices(model) for model in sorted(fssops.list_models())}))


def record_recipes() -> None:
    found = {}
    for recipe in surfaces.recipe_names():
        resolved = surfaces.resolved_recipe(recipe)
        found[recipe] = names.tables_of(resolved, names.pinned_settings(resolved["model"]["name"]))
    write("recipes", found)


def record_episode_lists() -> None:
    content = {"generated": {arguments: lists.episode_list(arguments) for arguments in lists.GENERATED}}
    for pack in lists.PACKS:
        content[pack] = {arguments: lists.episode_list(arguments, DATA / pack) for arguments in lists.REAL}
    write("episode_lists", content)


def record_class_lists() -> None:
    packs = {pack: lists.class_list(DATA / pack) for pack in (*lists.PACKS, "camvid")}
    write("class_lists", {"generated": lists.class_list(), **packs})


def record_items() -> None:
    training = {name: items.training_stream(case) for name, case in items.TRAINING.items()}
    evaluation = {name: items.evaluation_stream(case) for name, case in items.ITEMS.items()}
    write("items", {"training": training, "evaluation": evaluation})


def record_items_of_real_images() -> None:
    training = {name: items.training_stream(case, str(DATA)) for name, case in items.REAL_TRAINING.items()}
    evaluation = {name: items.evaluation_stream(case, str(DATA)) for name, case in items.REAL_ITEMS.items()}
    write("items_of_real_images", {"training": training, "evaluation": evaluation})


def record_results() -> None:
    write("results", {recipe: results.train(recipe) for recipe in results.RECIPES})


def record_earlier_runs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: earlier.observed(name, Path(folder) / name) for name in earlier.KINDS}
    write("json_keys", {name: row.pop("keys") for name, row in found.items()})
    write("earlier_runs", found)


RECORDERS: Mapping[str, Callable[[], None]] = {
    name.removeprefix("record_"): function for name, function in list(globals().items()) if name.startswith("record_")
}


# -- archives of earlier runs ------------------------------------------------------------------------------------

LIVE_CHANNELS = {64: 4, 128: 6, 256: 8, 512: 8}
"""Width of a stage of ResNet-18 -> channels of it that are not 0 in a sparse backbone."""


def make_archive(name: str) -> None:
    """Train a run of :data:`RUNS` and pack it."""
    spec = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        run, pictures = Path(folder) / "run", Path(folder) / "pictures"
        print(train(spec, run), flush=True)
        for file in [*run.rglob("*.png"), *run.rglob("run.lock")]:
            file.unlink()
        for stage in [run / spec.stage, run] if spec.stage else [run]:
            rewrite(stage, shorten_numbers)
            if name == "msanet":
                rewrite(stage, favour_base_classes)
        draw_pictures(name, pictures)
        pack(name, run, pictures)


def pack(name: str, run: Path, pictures: Path) -> None:
    """Write an archive."""
    target = FOLDER / f"{name}.tar.xz"
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(target, "w:xz", preset=9) as archive:
        archive.add(run, "run", filter=without_owner)
        archive.add(pictures, "pictures", filter=without_owner)
    print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


def train(spec: EarlierRun, run: Path) -> str:
    """Train it; the lines that tell how it went."""
    steps = 1 if spec.sparse else spec.steps
    arguments = surfaces.arguments_of([*spec.overrides, f"schedule.steps={steps}"])
    told = surfaces.succeed("train", spec.recipe, "--out", run, *arguments, *(["--no-eval"] if spec.sparse else []))
    if spec.sparse:
        rewrite(run, make_sparse)
        told = surfaces.succeed("train", "--resume", run, "--set", f"schedule.steps={spec.steps}")
    return "\n".join(line for line in told.splitlines() if line.startswith("trained"))


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the newest checkpoint of a run holds, and leave no other."""
    state = surfaces.read_checkpoint(run)
    change(state)
    shutil.rmtree(run / "checkpoints")
    surfaces.write_checkpoint(run, state)


def make_sparse(state: dict[str, Any]) -> None:
    """Set all but some channels of a backbone to 0, and what reads them."""
    optimised = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    for name, weight in [*state["model"].items(), *(("", value) for value in optimised)]:
        if weight.dim() != 4:
            continue
        if name.startswith("backbone."):
            weight[LIVE_CHANNELS[weight.shape[0]] :] = 0
        if weight.shape[1] in LIVE_CHANNELS:
            weight[:, LIVE_CHANNELS[weight.shape[1]] :] = 0


def shorten_numbers(state: dict[str, Any]) -> None:
    """Round weights to 4 binary places behind the first one and what the optimiser remembers to 2."""
    for value in state["model"].values():
        if value.is_floating_point():
            value.copy_(rounded(value, 4))
    for entry in state["optimizer"]["state"].values():
        for name, value in entry.items():
            if name != "step":
                value.copy_(rounded(value, 2))


def favour_base_classes(state: dict[str, Any]) -> None:
    """Lower the background's score of a base learner, which after so short a training sees nothing else."""
    for name in ("head.classifier.bias", "base_learner.head.classifier.bias"):
        if name in state["model"]:
            state["model"][name][0] -= 2.5


def rounded(values: torch.Tensor, places: int) -> torch.Tensor:
    """Round float32 to a number of binary places of its significand."""
    dropped = 23 - places
    bits = values.contiguous().view(torch.int32)
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(torch.float32)


def draw_pictures(name: str, folder: Path) -> None:
    """Save what prediction is asked about, in few colours so that it is small."""
    for path, picture in surfaces.pictures_for(name).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse = picture if path.endswith("mask.png") else picture // 16 * 16 + 8
        Image.fromarray(np.asarray(coarse, dtype=np.uint8)).save(target, optimize=True)


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made a file and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main(arguments: list[str]) -> None:
    """Record what is named."""
    if arguments[:1] == ["archives"]:
        for name in arguments[1:]:
            make_archive(name)
        arguments = ["earlier_runs"]
    chosen = list(RECORDERS) if arguments == ["all"] else arguments
    if not chosen or set(chosen) - set(RECORDERS):
        raise SystemExit(__doc__)
    for name in chosen:
        RECORDERS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
