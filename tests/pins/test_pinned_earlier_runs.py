"""Runs that an earlier state of the package has left are still evaluated, resumed and used for prediction.

Of every kind of system there is a run folder with its checkpoint; see ``earlier_runs.py``. What is compared is the
scores that ``evaluate`` gives, the losses of a few further steps after ``train --resume``, the label maps that
``predict`` writes, and which files and JSON keys the verbs leave. With the plainest instruction sets of every library
instead of the richest, losses differed by 5e-6 of the whole and scores and label maps not at all; the limits below
leave room for a processor that rounds still otherwise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import surfaces
from earlier_runs import RUNS, unpack
from fingerprints import expected, files_in, key_paths
from PIL import Image
from test_pinned_results import FACTS, facts

import fssops

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FURTHER = 3
"""Steps that a run is resumed for."""

LOSS, SCORE = 1e-4, 1e-3
"""Of a loss as a share of the whole one; of scores in [0, 1]."""

AGREEMENT = 0.999
"""Least share of pixels with the same label."""

OTHER_SUPPORTS = 0.99
"""The same for few-shot systems: prediction now resizes a support's mask as evaluation always has, where before it
resized it by Pillow, which moves some border pixels of these supports (14 of 2,304 of PANet's) by one."""

DETECTIONS = 3
"""Instances of an image or video, the best ones, that are compared."""


@dataclass(frozen=True)
class Kind:
    """A kind of system.

    Attributes:
        archive: that holds a run of it.
        folder: of the run in the archive.
        predicts: the verb ``predict`` takes it.
    """

    archive: str
    folder: str = "run"
    predicts: bool = True


KINDS = {
    **{name: Kind(name) for name in RUNS},
    "pspnet": Kind("msanet", "run/base", predicts=False),
    "mm_former_segmenter": Kind("mm_former", "run/segmenter", predicts=False),
}
FEW_SHOT = ("panet", "msanet", "mm_former")


def observed(name: str, folder: Path) -> dict[str, Any]:
    """Evaluate, resume and predict with a kind's run.

    Args:
        name: of :data:`KINDS`.
        folder: does not exist yet; everything goes there.

    Returns:
        ``scores``, ``facts``, ``resumed``, ``predicted``, ``files`` and ``keys``.
    """
    kind = KINDS[name]
    unpack(kind.archive, folder)
    run, evaluation, prediction = folder / kind.folder, folder / "evaluation", folder / "prediction"
    surfaces.succeed("evaluate", run, "--out", evaluation)
    results = json.loads((evaluation / "results.json").read_text())
    result = only_result(results)
    row: dict[str, Any] = {"scores": dict(fractions(result)), "facts": facts(result)}
    row["files"] = {"evaluation": files_in(evaluation)}
    row["keys"] = {"evaluation/results.json": sorted(key_paths(results))}
    if kind.predicts:
        predict(name, run, folder / "pictures", prediction)
        row["predicted"] = predictions(prediction)
        row["files"]["prediction"] = files_in(prediction)
        for file in sorted(prediction.rglob("*.json")):
            row["keys"][f"prediction/{file.name}"] = sorted(key_paths(json.loads(file.read_text())))
    row["resumed"] = resumed(run)
    return row


def only_result(content: Any) -> dict[str, Any]:
    """The one entry of ``results.json``, which systems with folds and the others list under names of their own."""
    if isinstance(content, dict):
        content = content["folds"] if "folds" in content else content["results"]
    (result,) = content
    return dict(result)


def resumed(run: Path) -> dict[str, Any]:
    """Go on with a run for some steps; the losses of these."""
    before = json.loads((run / "result.json").read_text())["steps"]
    # At the end of a schedule the rate is next to nothing, and the optimiser would not show in the losses.
    further = [f"schedule.steps={before + FURTHER}", "schedule.end_factor=0.1", "engine.log_every=1"]
    told = surfaces.succeed("train", "--resume", run, "--no-eval", *surfaces.arguments_of(further))
    assert f"at step {before} of {before + FURTHER}" in told
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if line["step"] > before and "loss" in line]
    untimed = ("step_seconds", "data_wait")
    return {
        "steps": [line["step"] for line in later],
        "learning rates": [line["lr"] for line in later],
        "losses": [{n: v for n, v in line.items() if n not in (*untimed, "step", "lr", "grad_norm")} for line in later],
    }


def predict(name: str, run: Path, pictures: Path, out: Path) -> None:
    """Run the verb on the pictures of an archive."""
    arguments: list[object] = ["--checkpoint", run, "--query", pictures / "queries", "--out", out]
    if name in FEW_SHOT:
        arguments += ["--support", pictures / "support.png", pictures / "support_mask.png"]
    if name == "mask2former_vis":
        arguments += ["--video", "none"]
    surfaces.succeed("predict", *arguments)


def predictions(folder: Path) -> dict[str, Any]:
    """The label maps that prediction has written, as run lengths by file, and the best instances."""
    found: dict[str, Any] = {}
    for file in sorted([*folder.glob("*_labels.png"), *folder.glob("semantic/*.png"), *folder.glob("panoptic/*.png")]):
        found[file.relative_to(folder).as_posix()] = run_lengths(np.asarray(Image.open(file)))
    for name in ("instances.json", "results.json"):
        if (folder / name).is_file():
            rows = json.loads((folder / name).read_text())
            for owner in sorted({str(row.get("image_id", row.get("video_id"))) for row in rows}):
                mine = [row for row in rows if str(row.get("image_id", row.get("video_id"))) == owner]
                best = sorted(mine, key=lambda row: -row["score"])[:DETECTIONS]
                found[f"{name} {owner}"] = [instance(row) for row in best]
    return found


def instance(row: Mapping[str, Any]) -> dict[str, Any]:
    """Category, score and mask of an instance; of a video its masks one below the other."""
    masks = row["segmentations"] if "segmentations" in row else [row["segmentation"]]
    height, width = next(mask["size"] for mask in masks if mask is not None)
    drawn = [np.zeros((height, width), bool) if mask is None else surfaces.drawn_mask(mask) for mask in masks]
    return {"category": row["category_id"], "score": row["score"], "mask": run_lengths(np.concatenate(drawn))}


def run_lengths(labels: np.ndarray) -> str:
    """A label map row by row, e.g. ``48x48: 100*0 7*1 ...``; an RGB map of ids counts as one number a pixel."""
    if labels.ndim == 3:
        labels = (labels.astype(np.int64) * [1, 256, 65536]).sum(-1)
    flat = labels.astype(np.int64).reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    lengths = np.diff(np.append(starts, len(flat)))
    runs = " ".join(f"{length}*{flat[start]}" for start, length in zip(starts, lengths, strict=True))
    return f"{labels.shape[0]}x{labels.shape[1]}: {runs}"


def labels_of(text: str) -> np.ndarray:
    """Undo :func:`run_lengths`."""
    size, runs = text.split(": ")
    pairs = [run.split("*") for run in runs.split()]
    flat = np.repeat([int(value) for _, value in pairs], [int(length) for length, _ in pairs])
    return flat.reshape([int(side) for side in size.split("x")])


def fractions(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> number, or list of numbers, of the measurements in nested JSON."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in FACTS | {"seconds", "quality"}:
                yield from fractions(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list):
        if content and all(value is None or isinstance(value, float) for value in content):
            yield path, [None if value is None else round(value, 5) for value in content]
        else:
            for number, value in enumerate(content):
                yield from fractions(value, f"{path}[{number}]")
    elif isinstance(content, float):
        yield path, round(content, 5)


@pytest.fixture(scope="module", params=KINDS)
def observation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A kind, and what was observed of it."""
    folder = tmp_path_factory.mktemp("earlier_run") / "all"
    yield request.param, observed(request.param, folder)
    shutil.rmtree(folder)


def test_evaluation_gives_the_same_scores(observation: tuple[str, dict[str, Any]]) -> None:
    name, found = observation
    wanted = expected("earlier_runs")[name]
    assert {fact: found["facts"].get(fact) for fact in wanted["facts"]} == wanted["facts"]
    for key, value in wanted["scores"].items():
        given = found["scores"].get(key, "gone")
        assert (given is None) == (value is None), key
        assert np.shape(given) == np.shape(value), key
        one, other = (np.array(values, dtype=np.float64) for values in (given, value))
        assert (np.isnan(one) == np.isnan(other)).all(), key
        assert np.nan_to_num(abs(one - other)).mean() <= SCORE, f"{key}: {given}, was {value}"


def test_training_goes_on_with_the_same_losses(observation: tuple[str, dict[str, Any]]) -> None:
    name, found = observation
    wanted = expected("earlier_runs")[name]["resumed"]
    assert found["resumed"]["steps"] == wanted["steps"]
    assert found["resumed"]["learning rates"] == pytest.approx(wanted["learning rates"], rel=1e-6)
    for losses, before in zip(found["resumed"]["losses"], wanted["losses"], strict=True):
        assert losses == pytest.approx(before, abs=LOSS * before["loss"])


def test_prediction_gives_the_same_label_maps(observation: tuple[str, dict[str, Any]]) -> None:
    name, found = observation
    if not KINDS[name].predicts:
        pytest.skip(f"{name} is a first stage: prediction takes the whole system")
    wanted = expected("earlier_runs")[name]["predicted"]
    assert sorted(found["predicted"]) == sorted(wanted)
    pairs = []
    for key, value in wanted.items():
        given = found["predicted"][key]
        if isinstance(value, str):
            pairs.append((given, value))
            continue
        assert [row["category"] for row in given] == [row["category"] for row in value], key
        assert [row["score"] for row in given] == pytest.approx([row["score"] for row in value], abs=SCORE), key
        pairs += [(one["mask"], other["mask"]) for one, other in zip(given, value, strict=True)]
    same = np.concatenate([(labels_of(one) == labels_of(other)).reshape(-1) for one, other in pairs])
    assert same.mean() >= (OTHER_SUPPORTS if name in FEW_SHOT else AGREEMENT)


def test_no_file_and_no_key_is_missing(observation: tuple[str, dict[str, Any]]) -> None:
    name, found = observation
    for place, files in expected("earlier_runs")[name]["files"].items():
        assert set(files) <= set(found["files"][place]), place
    for file, keys in expected("json_keys")[name].items():
        assert set(keys) <= set(found["keys"].get(file, ())), file


@pytest.mark.parametrize("name", FEW_SHOT)
def test_python_loads_the_weights_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    run, pictures = unpack(name, tmp_path), tmp_path / "pictures"
    settings = json.loads((run / "settings.json").read_text())
    model = fssops.create_model(name, **{k: v for k, v in settings["model"].items() if k not in ("name", "weights")})
    report = fssops.load_weights(model, run / "checkpoints" / "last.pt")
    assert not report.missing
    predictor = fssops.FewShotPredictor(model, size=tuple(settings["data"]["size"]))
    predictor.set_support([pictures / "support.png"], masks=[pictures / "support_mask.png"])
    for query in sorted((pictures / "queries").iterdir()):
        labels = predictor.segment(query).label_map
        before = labels_of(expected("earlier_runs")[name]["predicted"][f"{query.stem}_labels.png"])
        assert (labels == before).mean() >= OTHER_SUPPORTS
