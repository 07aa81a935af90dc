"""Kill training at random moments, resume, and compare the final weights with those of an undisturbed run, bit by bit.

    python benchmarks/random_kills.py --kills 100 --results benchmarks/results/FOLDER/random_kills.json

Each attempt is the verb itself (``fssops.train``) in a process of its own, forked from one that has imported
everything, and is ended by SIGKILL: at a random moment, or as soon as a temporary file of a checkpoint is there.
After every kill the checkpoint that is on disk must pass its checksum.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fssops.command_line import exit_code_of
from fssops.engine.checkpoints import newest_good_checkpoint, read_checkpoint, verify_checkpoint
from fssops.train import main as train

_COMMON = [
    "engine.accelerator=cpu",
    "engine.batch_size=2",
    "engine.save_every=1",
    "engine.log_every=1",
    "engine.validate_every=0",
    "engine.best_metric=loss",
    "engine.best_mode=min",
    "engine.tensorboard=false",
]
SYSTEMS = {
    "panet_generated": [
        "schedule.steps=30",
        "model.backbone_width=16",
        "data.size=[48,48]",
        "data.options={size=48,images_per_class=6}",
    ],
    "mask2former_generated": [
        "schedule.steps=12",
        "model.num_queries=8",
        "model.channels=32",
        "model.mask_channels=32",
        "model.encoder_layers=1",
        "model.encoder_hidden=32",
        "model.decoder_layers=1",
        "model.decoder_hidden=32",
        "model.train_points=128",
        "data.options={size=48,images=6}",
    ],
}


def start(recipe: str, folder: Path, workers: int) -> int:
    """Fork a process that trains into ``folder``, or goes on there; its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(folder.parent / f"{folder.name}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        going_on = (folder / "settings.json").exists()
        arguments = ["--resume", str(folder)] if going_on else [recipe, "--out", str(folder)]
        overrides = [*_COMMON, *SYSTEMS[recipe], f"engine.workers={workers}"]
        sets = [part for override in overrides for part in ("--set", override)]
        code = exit_code_of("train", train, [*arguments, "--no-eval", *sets])
        sys.stdout.flush()
    os._exit(code)


def kill(child: int) -> None:
    """End the process and the loader processes it has started, without asking."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def ended(child: int) -> int | None:
    """Exit code of a process that has ended; None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def disturbed_run(recipe: str, folder: Path, seconds: float, rng: random.Random, limit: int) -> Counter[str]:
    """Start, kill and resume until a run gets through; what the kills met."""
    met: Counter[str] = Counter()
    while True:
        child = start(recipe, folder, rng.randrange(2))
        begun, writing = time.monotonic(), rng.random() < 0.5
        patience = rng.uniform(0.0, seconds) if sum(met.values()) < limit else float("inf")
        code = None
        while code is None and time.monotonic() - begun < patience:
            if writing and time.monotonic() - begun > patience / 2 and list(folder.glob("checkpoints/.*.tmp")):
                break
            time.sleep(0.0005)
            code = ended(child)
        if code is not None:
            if code:
                raise SystemExit(f"random_kills: {recipe} must go on after a kill, got exit code {code}; {folder}.log")
            return met
        kill(child)
        last = folder / "checkpoints" / "last.pt"
        if list(folder.glob("checkpoints/.*.tmp")):
            met["while a checkpoint was written"] += 1
        elif last.exists():
            met["between checkpoints"] += 1
        else:
            met["before the first checkpoint"] += 1
        if last.exists():
            verify_checkpoint(last)
            newest_good_checkpoint(last.parent)


def same_bits(first: Any, second: Any) -> bool:
    """Whether nested states are equal, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def tried(recipe: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill a recipe's training ``kills`` times or a few more, over as many runs as it takes."""
    rng, met, runs, differing = random.Random(seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="fssops-kills-") as place:
        whole = Path(place) / "whole"
        begun = time.monotonic()
        child = start(recipe, whole, 0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit((whole.parent / "whole.log").read_text())
        seconds = time.monotonic() - begun
        wanted = read_checkpoint(whole / "checkpoints" / "last.pt")
        while sum(met.values()) < kills:
            folder = Path(place) / f"run{runs}"
            met += disturbed_run(recipe, folder, seconds, rng, limit=min(8, kills - sum(met.values())))
            found = read_checkpoint(folder / "checkpoints" / "last.pt")
            keys = ("model", "optimizer", "step", "best", "random")
            differing += not all(same_bits(wanted[key], found[key]) for key in keys)
            steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
            differing += steps != list(range(1, wanted["step"] + 1))
            runs += 1
    return {
        "recipe": recipe,
        "kills": sum(met.values()),
        **met,
        "runs resumed to their end": runs,
        "differing": differing,
    }


def main() -> int:
    """Run and report; the exit code says whether any run differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [tried(recipe, options.kills, options.seed) for recipe in options.recipes]
    text = json.dumps({"torch": torch.__version__, "seed": options.seed, "tried": found}, indent=1)
    print(text)
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(text + "\n")
    return int(any(row["differing"] for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
