"""Runs side by side: what differs in their settings, and differences of scores only where they were measured alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Verb = Callable[..., tuple[int, str, str]]
SETTING = "generated test, fold 0, seed 1234"


def run_folder(path: Path, steps: int, miou: float, setting: str = SETTING) -> Path:
    """A finished few-shot run as ``fssops.train`` leaves it, in what is compared."""
    path.mkdir()
    scores = {"mean_iou": miou, "fb_iou": 0.5, "line": f"mIoU  [{path.name}; {setting}; in training 3 images left out]"}
    classes = {"classes": {"1": "cup", "5": "dog"}, "class_iou": [[miou, None], [miou + 0.1, 0.2]]}
    (path / "result.json").write_text(json.dumps({"steps": steps, "novel": {**scores, **classes}}))
    (path / "settings.json").write_text(
        json.dumps({"name": path.name, "schedule": {"steps": steps}, "data": {"fold": 0}})
    )
    records = [{"step": 1, "loss": 2.0}, {"step": steps, "val/miou": miou}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_differences_are_shown_to_the_first_run(tmp_path: Path, verb: Verb) -> None:
    first, second = run_folder(tmp_path / "a", 3, 0.25), run_folder(tmp_path / "b", 6, 0.4)
    picture = tmp_path / "curves.png"
    code, out, _ = verb("compare", first, second, "--classes", "--out", picture)
    assert code == 0
    assert cells(out) == [
        ["schedule.steps", "3", "6"],
        ["novel", "mIoU", "25.00", "40.00 (+15.00)"],
        ["novel", "binary IoU", "50.00", "50.00 (+0.00)"],
        ["novel", "cup", "30.00", "45.00 (+15.00)"],
        ["novel", "dog", "20.00", "20.00 (+0.00)"],
    ]
    assert picture.stat().st_size > 1000


def test_what_was_measured_on_other_episodes_is_not_subtracted(tmp_path: Path, verb: Verb) -> None:
    first, second = run_folder(tmp_path / "a", 3, 0.25), run_folder(tmp_path / "b", 3, 0.4, "voc val, fold 0, seed 1")
    code, out, _ = verb("compare", first, second, "--out", tmp_path / "table.json")
    assert code == 0
    assert ["novel", "mIoU", "25.00", "40.00"] in cells(out)
    assert "novel: not measured alike" in out
    assert f"a: {SETTING}" in out
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["b"]["scores"]["novel"]["scores"] == {"mIoU": 0.4, "binary IoU": 0.5}


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "must hold result.json"), ("{", "must be what fssops wrote"), ('{"novel": {"line": "x"}}', "got KeyError")],
)
def test_a_folder_that_is_no_finished_run_is_refused(
    tmp_path: Path, verb: Verb, content: str | None, says: str
) -> None:
    good, bad = run_folder(tmp_path / "good", 3, 0.25), tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "result.json").write_text(content)
    code, _, err = verb("compare", good, bad)
    assert code == 2
    assert says in err
    assert str(bad) in err
