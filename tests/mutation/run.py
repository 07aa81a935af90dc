"""Plant single-line mistakes and see which the mirrored tests notice: python tests/mutation/run.py --seed 1.

Run by hand; ``AREAS`` says which tests answer for which files. Each area gets the same number of mistakes, drawn by
line and then by kind. They are planted in a copy of the tree; each is tried in a fork of a process that has imported
torch already. Noticed is a mistake when a test fails or the tests take several times as long as without it.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mistakes import Mistake, mistakes

REPOSITORY = Path(__file__).resolve().parents[2]
AREAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "losses": (("fssops/losses",), ("tests/losses",)),
    "evaluation": (("fssops/evaluation",), ("tests/evaluation",)),
    "augmentation": (
        ("fssops/data/augmentation",),
        tuple(f"tests/data/test_{name}.py" for name in ("chains", "colour", "geometry", "scene")),
    ),
    "samplers": (
        ("fssops/engine/sampling.py", "fssops/data/episode_draws.py", "fssops/data/episodes.py"),
        ("tests/engine/test_sampling.py", "tests/data/test_episodes.py", "tests/data/test_mm_former_data.py"),
    ),
    "trainer": (
        tuple(f"fssops/engine/{name}.py" for name in ("trainer", "schedules", "optimizers", "training_state")),
        tuple(f"tests/engine/test_{name}.py" for name in ("trainer", "schedules_and_optimizers", "many_processes")),
    ),
    "weights": (("fssops/weights",), ("tests/weights",)),
}
"""Area to its files and to the tests that answer for them; a test file named after a source file is run first."""

WARM = ("torch", "numpy", "scipy.optimize", "scipy.ndimage", "PIL.Image", "pycocotools.mask", "lightning_fabric")
"""Imported once, before the forks."""

SLOWER = 5
"""Times the tests' own duration, after which a mistake counts as noticed."""


@dataclass(frozen=True)
class Planted:
    """A mistake, the area and the file (relative to the repository) it is planted in."""

    area: str
    path: str
    mistake: Mistake


def files_of(area: str, tree: Path) -> list[Path]:
    """The sources of an area, sorted."""
    roots = [tree / name for name in AREAS[area][0]]
    return sorted(path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py")))


def tests_of(area: str, path: str, tree: Path) -> list[str]:
    """Test files that answer for a source, its namesake first."""
    found = []
    for pattern in AREAS[area][1]:
        place = tree / pattern
        found += sorted(place.rglob("test_*.py")) if place.is_dir() else sorted(tree.glob(pattern))
    own = f"test_{Path(path).stem}.py"
    return [str(test.relative_to(tree)) for test in sorted(found, key=lambda test: test.name != own)]


def drawn(area: str, number: int, seed: int, tree: Path) -> list[Planted]:
    """A seeded sample of an area's mistakes: a line at random, then one of its mistakes."""
    lines: dict[tuple[str, int], list[Mistake]] = collections.defaultdict(list)
    for path in files_of(area, tree):
        for mistake in mistakes(path.read_text()):
            lines[str(path.relative_to(tree)), mistake.line].append(mistake)
    draw = random.Random(f"{seed} {area}")
    chosen = draw.sample(sorted(lines), min(number, len(lines)))
    return [Planted(area, place[0], draw.choice(lines[place])) for place in chosen]


def copied_tree(folder: Path) -> Path:
    """A copy of what the tests need, libraries built included."""
    tree = folder / "tree"
    for name in ("fssops", "tests", "csrc", "python", "docs"):
        shutil.copytree(REPOSITORY / name, tree / name, symlinks=True)
    for path in REPOSITORY.glob("*.*"):
        if path.is_file():
            shutil.copy2(path, tree)
    for variable, name in (("FSSOPS_DATA", "data"), ("FSSOPS_ORACLES", "oracles")):
        os.environ.setdefault(variable, str(REPOSITORY.parent / "shared" / name))
    os.environ["PYTHONPATH"] = str(tree)
    return tree


def tried(tests: Sequence[str], tree: Path, limit: float) -> str:
    """What running tests in a fork gave: "passed", "failed" or "too slow"."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(tree.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(tree)
        sys.path[0] = str(tree)
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    started = time.monotonic()
    while time.monotonic() < started + limit:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too slow"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, try, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--each", type=int, default=40, metavar="N", help="mistakes an area; 40 if not given")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--results", type=Path, help="a line of JSON a mistake is added to this file")
    options = parser.parse_args(arguments)
    for name in WARM:
        importlib.import_module(name)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder))
        for area in options.areas:
            planted = drawn(area, options.each, options.seed, tree)
            started = time.monotonic()
            if tried(tests_of(area, "", tree), tree, 3600) != "passed":
                print((tree.parent / "output.txt").read_text()[-3000:])
                raise SystemExit(f"{area}: tests must pass without a mistake, got a failure")
            limit = 30 + SLOWER * (time.monotonic() - started)
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            noticed = 0
            for one in planted:
                path = tree / one.path
                before, dated = path.read_text(), path.stat()
                path.write_text(one.mistake.source)
                outcome = tried(tests_of(area, one.path, tree), tree, limit)
                path.write_text(before)
                os.utime(path, ns=(dated.st_atime_ns, dated.st_mtime_ns))  # else its compiled form is made anew
                noticed += outcome != "passed"
                place = {"area": area, "path": one.path, "line": one.mistake.line, "kind": one.mistake.kind}
                row = {**place, "text": one.mistake.text[:160], "outcome": outcome}
                print(json.dumps(row), flush=True)
                if options.results:
                    with options.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            table.append((area, len(planted), noticed))
    table.append(("all", sum(row[1] for row in table), sum(row[2] for row in table)))
    print(f"{'area':<14}{'planted':>8}{'noticed':>9}{'share':>8}")
    for area, count, noticed in table:
        print(f"{area:<14}{count:>8}{noticed:>9}{noticed / max(count, 1):>8.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
