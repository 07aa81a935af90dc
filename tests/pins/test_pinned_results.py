"""The recipes on generated data, shortened to seconds, train and score as before.

One seed decides weights, items, points and noise, so a run repeats itself exactly on one machine. On another one, sums
of float32 are formed in another order: the first loss differs by 1e-6, and optimisers and hard choices (a matched pair,
an uncertain point, a masked pixel) magnify that with each step. So runs are a few steps long, the learning rate of the
matching systems is small, every step's loss must agree to 2e-3 of it, and its parts to 2e-3 of the whole. Scores must
agree to half a point. Whole numbers and words (episode lists, seeds, images, passes through the backbone) must be
equal.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import surfaces
from fingerprints import expected, files_in, key_paths

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LOSS, SCORE = 2e-3, 0.005

FACTS = {
    *("steps", "dataset", "fold", "folds", "ways", "shots", "queries", "episodes", "seeds", "list_hashes", "protocol"),
    *("annotation", "min_area", "novel_images", "size", "classes", "images", "passes", "query_images", "query_passes"),
    *("of", "test_size", "videos", "frames"),
}
"""Keys of ``result.json`` whose values are no measurements."""

UNSTEADY = {"layer agreement", "query utilisation"}
"""Scores of models that have hardly been trained which one pixel can move by points: of these the names alone count."""

SHORT = [
    "engine.accelerator=cpu",
    "engine.workers=0",
    "engine.tensorboard=false",
    "engine.log_every=1",
    "eval.pictures=1",
    "schedule.warmup_steps=0",
]
FEW_SHOT = [
    *SHORT,
    "data.options={size=48,images_per_class=6}",
    "data.size=[48,48]",
    "schedule.steps=3",
    "engine.batch_size=2",
    "engine.validate_every=3",
    "eval.episodes=10",
    "eval.validation_episodes=4",
]
MATCHING = [*SHORT, "schedule.steps=3", "engine.batch_size=4", "engine.validate_every=3", "optim.lr=1e-4"]
SCENES = [
    *MATCHING,
    "data.options={size=48,images=12}",
    "eval.options={size=48,images=8}",
    "eval.images=6",
    "eval.validation_images=3",
]
BASE = (
    'base.overrides=["data.size=[48,48]","data.augment=msanet_base","optim.name=adamw","optim.lr=2e-3",'
    '"schedule.steps=3","engine.batch_size=4","engine.validate_every=3","engine.log_every=1","eval.images=8",'
    '"eval.validation_images=4","eval.pictures=1"]'
)
SEGMENTER = (
    'segmenter.overrides=["data.size=[48,48]","optim.lr=1e-5","schedule.steps=3","schedule.warmup_steps=0",'
    '"engine.batch_size=4","engine.log_every=1","eval.episodes=6","eval.pictures=1"]'
)

RECIPES: dict[str, tuple[list[str], str]] = {
    "panet_generated": (FEW_SHOT, ""),
    "msanet_generated": ([*FEW_SHOT, "eval.baseline=false", "optim.lr=2e-4", BASE], "base"),
    "mm_former_generated": ([*FEW_SHOT, "eval.baseline=false", "optim.lr=2e-5", SEGMENTER], "segmenter"),
    "mask2former_generated": (SCENES, ""),
    "mp_former_generated": ([*SCENES, "eval.baseline=false"], ""),
    "mask2former_vis_generated": (
        [
            *MATCHING,
            "data.options={size=48,videos=8,frames=5}",
            "eval.options={size=48,videos=4,frames=5}",
            "eval.validation_videos=2",
            "eval.baseline=false",
        ],
        "",
    ),
}
"""Recipe -> what shortens it, and the folder of its first stage, which is compared as well."""


def facts(content: Any, path: str = "") -> dict[str, Any]:
    """The values of :data:`FACTS` in nested JSON, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{path}.{key}".lstrip(".")
        if key in FACTS:
            found[name] = value
        elif isinstance(value, dict):
            found.update(facts(value, name))
    return found


def summary(run: Path) -> dict[str, Any]:
    """What is compared of a finished run."""
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {name: result[name] for name in ("miou", "fb_iou", "untrained_miou", "base_miou") if name in result}
    scores = scores or dict(
        result.get("scores", {})
    )  # which few-shot results did not name like that when they were pinned
    scores.update(result.get("novel", {}).get("parts", {}))
    written = [run / "result.json", run / "classes.json"]
    validated = [line for line in lines if any(name.startswith("val/") for name in line)]
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "last losses": result["losses"],
        "gradient norms": [line["grad_norm"] for line in lines if "grad_norm" in line],
        "learning rates": [line["lr"] for line in lines if "lr" in line],
        "scores": scores,
        "validation": [{name: value for name, value in line.items() if name != "step"} for line in validated],
        "validated steps": [line["step"] for line in validated],
        "facts": facts(result),
        "files": files_in(run),
        "keys": {
            **{file.name: sorted(key_paths(json.loads(file.read_text()))) for file in written if file.exists()},
            "metrics.jsonl": sorted({name for line in lines for name in line}),
        },
    }


def train(recipe: str) -> dict[str, Any]:
    """Train a shortened recipe; the summaries of its stages."""
    overrides, stage = RECIPES[recipe]
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        surfaces.succeed("train", recipe, "--out", run, *surfaces.arguments_of(overrides))
        return {name: summary(run / name) for name in (stage, ".") if name}


def check_scores(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same names, and values within half a point; ``None`` is what could not be measured."""
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        if name.removeprefix("val/").replace("_", " ") in UNSTEADY:
            continue
        if value is None or found[name] is None:
            assert found[name] is value, name
        else:
            assert math.isclose(found[name], value, rel_tol=0, abs_tol=SCORE), f"{name}: {found[name]}, was {value}"


def check(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two summaries; files and keys may be more than there were."""
    assert set(wanted["files"]) <= set(found["files"])
    for file, keys in wanted["keys"].items():
        assert set(keys) <= set(found["keys"].get(file, ())), file
    assert found["losses"] == pytest.approx(wanted["losses"], rel=LOSS)
    assert found["last losses"] == pytest.approx(wanted["last losses"], abs=LOSS * wanted["last losses"]["loss"])
    assert found["gradient norms"] == pytest.approx(wanted["gradient norms"], rel=0.05)
    assert found["learning rates"] == pytest.approx(wanted["learning rates"], rel=1e-6)
    check_scores(found["scores"], wanted["scores"])
    assert found["validated steps"] == wanted["validated steps"]
    for one, other in zip(found["validation"], wanted["validation"], strict=True):
        check_scores(one, other)
    # What is new beside them is no loss.
    assert {name: found["facts"].get(name) for name in wanted["facts"]} == wanted["facts"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shortened_recipe_trains_and_scores_as_before(recipe: str) -> None:
    found, wanted = train(recipe), expected("results")[recipe]
    assert sorted(found) == sorted(wanted)
    for stage in wanted:
        check(found[stage], wanted[stage])
