"""``python -m fssops.data`` draws the same episodes from a data set, and sees the same classes and images in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import surfaces
from fingerprints import expected

GENERATED = [
    "--protocol fssops --fold 0",
    "--protocol fssops --fold 1 --ways 3 --shots 2 --queries 4",
    "--protocol fssops --fold 2 --side train --seed 7",
    "--protocol fssops --ways 5",
    "--protocol panet --fold 1",
    "--protocol panet --fold 3 --ways 2 --shots 5 --queries 3",
    "--protocol msanet --fold 0 --min-area 600",
    "--protocol msanet --fold 1 --shots 5 --min-area 400 --seed 510",
    "--protocol mm_former --fold 3 --min-area 600",
    "--protocol mm_former --fold 2 --shots 5 --min-area 400 --side train",
]
REAL = [
    *(f"--protocol {name} --fold {fold}" for name in ("fssops", "panet", "msanet", "mm_former") for fold in (0, 3)),
    "--protocol fssops --fold 0 --side train --ways 2",
    "--protocol fssops --fold 1 --definition panet --split val",
    "--protocol panet --fold 2 --ways 2 --shots 2 --queries 2",
    "--protocol msanet --fold 1 --side train --shots 2",
    "--protocol mm_former --fold 2 --side train --shots 2 --seed 5448843",
]
PACKS = ("voc_mini", "coco_mini")


def episode_list(arguments: str, data: Path | None = None) -> str:
    """Hash of 60 episodes drawn by the verb."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "episodes.json"
        given = [] if data is None else [data]
        drawn = [*arguments.split(), "--episodes", 60, "--too-few", "skip", "--output", file]
        told = surfaces.succeed("data", "episodes", *given, *drawn)
        digest: str = json.loads(file.read_text())["hash"]
    assert told.rstrip().endswith(f"hash {digest}")
    return digest


def class_list(data: Path | None = None) -> str:
    """Hash of the classes and how many images of which size each has, as the verb lists them."""
    given = [] if data is None else [data]
    content = json.loads(surfaces.succeed("data", "list", *given, "--json"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("arguments", GENERATED)
def test_the_verb_draws_the_same_episodes(arguments: str) -> None:
    assert episode_list(arguments) == expected("episode_lists")["generated"][arguments]


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("arguments", REAL)
def test_the_verb_draws_the_same_episodes_of_real_images(arguments: str, pack: str, data_root: Path) -> None:
    assert episode_list(arguments, data_root / pack) == expected("episode_lists")[pack][arguments]


def test_the_generated_data_set_has_the_same_classes() -> None:
    assert class_list() == expected("class_lists")["generated"]


@pytest.mark.parametrize("pack", [*PACKS, "camvid"])
def test_a_real_data_set_has_the_same_classes(pack: str, data_root: Path) -> None:
    assert class_list(data_root / pack) == expected("class_lists")[pack]
