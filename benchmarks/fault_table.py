"""Provoke every fault that training and evaluation claim to survive, several times, and write what happened as a table.

    python benchmarks/fault_table.py [--times 5] [--kills RANDOM_KILLS.json] [--results FOLDER]

Each try is the verb itself on a tiny recipe over generated images, in a process of its own (forked from one that has
imported everything). A try counts as passed where everything that its row says has come true. ``--kills`` adds what
``random_kills.py`` has measured. Writes ``fault_table.json`` and ``fault_table.md``.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_kills import kill, same_bits

from fssops.command_line import exit_code_of
from fssops.data.generated_textures import GeneratedTextures
from fssops.engine import checkpoints
from fssops.engine.checkpoints import newest_good_checkpoint, read_checkpoint
from fssops.engine.evaluation_progress import EvaluationProgress
from fssops.engine.progress import ProgressBar
from fssops.evaluate import main as evaluate
from fssops.train import main as train

TINY = [
    "model.backbone_width=8",
    "data.size=[48,48]",
    "data.options={size=48,images_per_class=6}",
    "schedule.steps=12",
    "engine.accelerator=cpu",
    "engine.batch_size=2",
    "engine.workers=0",
    "engine.save_every=1",
    "engine.log_every=1",
    "engine.validate_every=0",
    "engine.best_metric=loss",
    "engine.best_mode=min",
    "engine.tensorboard=false",
    "eval.episodes=40",
    "eval.runs=1",
    "eval.pictures=0",
    "eval.baseline=false",
]


def sets(*overrides: str) -> list[str]:
    """Overrides as arguments of a verb."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]


class Process:
    """A verb in a forked process.

    Args:
        main: the verb's.
        arguments: its.
        before: run in the new process first; breaks something.
    """

    def __init__(
        self, main: Callable[..., int], arguments: list[str], before: Callable[[], None] | None = None
    ) -> None:
        handle, self._log = tempfile.mkstemp()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if before is not None:
                before()
            code = exit_code_of("verb", main, arguments)
            os._exit(code)
        os.close(handle)

    def wait(self) -> tuple[int, str]:
        """Its exit code (minus the signal that ended it), and what it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        text = Path(self._log).read_text()
        Path(self._log).unlink()
        return code, text


def last(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return folder / "checkpoints" / "last.pt"


def equal(first: Path, second: Path) -> bool:
    """Whether two runs ended in the same bits."""
    states = [read_checkpoint(last(folder)) for folder in (first, second)]
    return all(same_bits(states[0][key], states[1][key]) for key in ("model", "optimizer", "step"))


class Bench:
    """A folder with an undisturbed run, and one try of each fault."""

    def __init__(self, place: Path) -> None:
        self.place, self.whole = place, place / "whole"
        code, text = Process(train, ["--out", str(self.whole), "--no-eval", *sets()]).wait()
        if code:
            raise SystemExit(text)

    def resumed_equals(self, folder: Path) -> bool:
        """Resume a run to its end; whether it ended as the undisturbed one."""
        code, _ = Process(train, ["--resume", str(folder), "--no-eval"]).wait()
        return code == 0 and equal(self.whole, folder)

    def killed_evaluation(self, folder: Path, rng: random.Random) -> bool:
        """kill -9 of an evaluation, then the same command again."""
        wanted = folder.with_name("whole_evaluation")
        if not wanted.exists() and Process(evaluate, [str(self.whole), "--out", str(wanted)]).wait()[0]:
            return False
        moment = rng.randrange(5, 35)

        def die() -> None:
            advance, begin = ProgressBar.advance, EvaluationProgress.__init__

            def counting(bar: ProgressBar, count: int = 1) -> None:
                advance(bar, count)
                if bar.done == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            def eager(progress: EvaluationProgress, *arguments: Any, **options: Any) -> None:
                begin(progress, *arguments, every=0.0, **options)

            ProgressBar.advance = counting  # type: ignore[method-assign]
            EvaluationProgress.__init__ = eager  # type: ignore[method-assign]

        arguments = [str(self.whole), "--out", str(folder)]
        died, _ = Process(evaluate, arguments, die).wait()
        code, text = Process(evaluate, arguments).wait()
        found = [json.loads((f / "results.json").read_text())["folds"][0]["episode_iou"] for f in (wanted, folder)]
        return died == -9 and code == 0 and "counted before an interruption" in text and found[0] == found[1]

    def full_disk(self, folder: Path, rng: random.Random) -> bool:
        """ENOSPC from a random byte of a random checkpoint on."""
        step, left = rng.randrange(2, 11), rng.randrange(200_000)

        def fill() -> None:
            write, serialise, state = checkpoints.write_bytes, checkpoints._serialise, {"step": 0, "written": 0}

            def noted(content: dict[str, Any], file: Any) -> None:
                state["step"] = content["step"]
                serialise(content, file)

            def until_full(file: Any, data: Any) -> int:
                state["written"] += len(data) if state["step"] > step else 0
                if state["written"] > left:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(file, data)

            checkpoints._serialise, checkpoints.write_bytes = noted, until_full

        code, text = Process(train, ["--out", str(folder), "--no-eval", *sets()], fill).wait()
        kept = newest_good_checkpoint(folder / "checkpoints")[1]["step"]
        told = "No space left on device; the earlier checkpoint is intact" in " ".join(text.split())
        return code == 1 and told and kept >= step and self.resumed_equals(folder)

    def read_only(self, folder: Path, rng: random.Random) -> bool:
        """A folder that cannot be written."""
        file = folder.with_suffix(".file")
        file.write_text("")
        code, text = Process(train, ["--out", str(file / "run"), "--no-eval", *sets()]).wait()
        return code == 2 and "must be a writable folder" in text

    def two_runs(self, folder: Path, rng: random.Random) -> bool:
        """A second run in the folder of a running one."""
        first = Process(train, ["--out", str(folder), "--no-eval", *sets("schedule.steps=100000")])
        wait_for(last(folder))
        code, text = Process(train, ["--resume", str(folder), "--no-eval"]).wait()
        kill(first.pid)
        return code == 2 and "must be free, got a run in it: process" in text

    def unreadable(self, folder: Path, rng: random.Random, skip: bool) -> bool:
        """An image that cannot be read in the middle of training."""
        nth = rng.randrange(5, 20)

        def spoil() -> None:
            image, calls = GeneratedTextures.image, [0]

            def broken(source: GeneratedTextures, name: str) -> Any:
                calls[0] += 1
                if calls[0] == nth:
                    raise OSError(f"{name}: image must decode completely, got a broken or truncated file")
                return image(source, name)

            GeneratedTextures.image = broken  # type: ignore[method-assign]

        setting = [f"engine.on_unreadable={'skip' if skip else 'stop'}"]
        code, text = Process(train, ["--out", str(folder), "--no-eval", *sets(*setting)], spoil).wait()
        named = "image must decode completely" in text
        if skip:
            return code == 0 and named and "skipped item" in text
        return code == 1 and named and self.resumed_equals(folder)

    def lost_worker(self, folder: Path, rng: random.Random) -> bool:
        """kill -9 of a loader process."""
        process = Process(
            train, ["--out", str(folder), "--no-eval", *sets("engine.workers=1", "schedule.steps=100000")]
        )
        wait_for(last(folder))
        time.sleep(rng.uniform(0, 0.2))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        code, text = process.wait()
        kept = newest_good_checkpoint(folder / "checkpoints")[1]["step"]
        return bool(children) and code == 1 and "loader processes must keep running" in text and kept >= 1

    def clock(self, folder: Path, rng: random.Random) -> bool:
        """A wall clock that jumps back and forth by years."""
        jumps = random.Random(rng.random())

        def jump() -> None:
            now = time.time
            time.time = lambda: now() + jumps.uniform(-1e8, 1e8)

        code, _ = Process(train, ["--out", str(folder), "--no-eval", *sets()], jump).wait()
        for path in (folder / "checkpoints").iterdir():
            moment = jumps.uniform(0, 2e9)
            os.utime(path, (moment, moment))
        return code == 0 and equal(self.whole, folder) and self.resumed_equals(folder)

    def stopped(self, folder: Path, rng: random.Random) -> bool:
        """SIGTERM at a random moment."""
        process = Process(train, ["--out", str(folder), "--no-eval", *sets()])
        wait_for(last(folder))
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGTERM)
        code, text = process.wait()
        if code == 0:  # it was through before
            return equal(self.whole, folder)
        return code == 130 and "Continue with: python -m fssops.train --resume" in text and self.resumed_equals(folder)

    def damaged(self, folder: Path, rng: random.Random) -> bool:
        """A bit of the newest checkpoint flips."""
        shutil.copytree(self.whole, folder)
        data = bytearray(last(folder).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        last(folder).write_bytes(data)
        code, text = Process(train, ["--resume", str(folder), "--no-eval"]).wait()
        return (
            code == 0 and "passed over" in text and "last.previous.pt at step 11" in text and equal(self.whole, folder)
        )

    def nan(self, folder: Path, rng: random.Random) -> bool:
        """A learning rate that makes NaN."""
        setting = sets("optim.lr=1e30", "optim.clip_norm=0", f"engine.seed={rng.randrange(1000)}")
        code, text = Process(train, ["--out", str(folder), "--no-eval", *setting]).wait()
        kept = list(folder.glob("nonfinite_step*.pt"))
        if code != 1 or not kept or "first bad module" not in text or "images: train-" not in text:
            return False
        code, text = Process(train, ["--replay", str(kept[0])]).wait()
        return code == 1 and "first bad module" in text

    def malicious(self, folder: Path, rng: random.Random) -> bool:
        """A checkpoint that would run a command."""
        trace = folder.with_suffix(".ran")
        shutil.copytree(self.whole, folder)
        for path in (folder / "checkpoints").iterdir():
            path.write_bytes(pickle.dumps(_Command(str(trace))) + bytes(rng.randrange(100, 1000)))
        code, _ = Process(train, ["--resume", str(folder), "--no-eval"]).wait()
        return code == 2 and not trace.exists()


class _Command:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"fault_table: {path} must appear, got nothing in {seconds:.0f} s")
        time.sleep(0.005)


FAULTS: list[tuple[str, str, Callable[..., bool]]] = [
    ("SIGTERM, Ctrl-C", "the step is finished and saved; resumed, the same bits", Bench.stopped),
    ("newest checkpoint damaged (a flipped bit)", "passed over and told; resumed from the one before", Bench.damaged),
    ("disk full while a checkpoint is written", "stops, told; the earlier one intact; same bits", Bench.full_disk),
    ("read-only folder", "refused in one line before anything is made", Bench.read_only),
    ("two runs in one folder", "the second is refused and told which process holds it", Bench.two_runs),
    (
        "unreadable image, `engine.on_unreadable=stop`",
        "stops, the file named; resumed, the same bits",
        lambda bench, folder, rng: bench.unreadable(folder, rng, False),
    ),
    (
        "unreadable image, `engine.on_unreadable=skip`",
        "replaced by the next one, the file named",
        lambda bench, folder, rng: bench.unreadable(folder, rng, True),
    ),
    ("loader process killed", "stops at once, told what to do; checkpoint intact", Bench.lost_worker),
    ("clock jumps, wrong file times", "the same bits; nothing goes by the clock", Bench.clock),
    ("evaluation killed (kill -9)", "the same command goes on; results equal", Bench.killed_evaluation),
    ("NaN in training", "stops; tensor, layer, images named; kept, and replayed", Bench.nan),
    ("malicious checkpoint", "refused; nothing in it is executed", Bench.malicious),
]


def kill_rows(path: Path) -> list[dict[str, Any]]:
    """Rows from what ``random_kills.py`` has measured."""
    tried = json.loads(path.read_text())["tried"]
    rows = []
    for name in ("between checkpoints", "while a checkpoint was written", "before the first checkpoint"):
        count = sum(row.get(name, 0) for row in tried)
        differing = sum(row["differing"] for row in tried)
        told = "the newest checkpoint is whole; resumed, the same bits in the end"
        rows.append(
            {"fault": f"kill -9 {name}", "outcome": told, "tries": count, "passed": count if not differing else 0}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | what happens | tried | as it should be |", "|---|---|---|---|"]
    lines += [f"| {row['fault']} | {row['outcome']} | {row['tries']} | {row['passed']} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Provoke all faults; the exit code says whether any try failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--kills", type=Path)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = kill_rows(options.kills) if options.kills else []
    with tempfile.TemporaryDirectory(prefix="fssops-faults-") as place:
        bench, rng = Bench(Path(place)), random.Random(options.seed)
        for number, (fault, outcome, provoke) in enumerate(row for row in FAULTS if options.only in row[0]):
            passed = sum(provoke(bench, Path(place) / f"f{number}-{n}", rng) for n in range(options.times))
            rows.append({"fault": fault, "outcome": outcome, "tries": options.times, "passed": passed})
            print(f"{fault}: {passed} of {options.times}", flush=True)
    text = table(rows)
    print(text)
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "fault_table.json").write_text(
            json.dumps({"torch": torch.__version__, "seed": options.seed, "rows": rows}, indent=1) + "\n"
        )
        (options.results / "fault_table.md").write_text(text)
    return int(any(row["passed"] != row["tries"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
