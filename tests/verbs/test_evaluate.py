"""``python -m fssops.evaluate``: lines, tables, files, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fssops.data.episodes import EpisodeList


@pytest.fixture
def evaluated(tiny_run: Path, tmp_path: Path, verb: Any) -> Any:
    def run(*arguments: object) -> tuple[str, dict[str, Any], Path]:
        code, out, err = verb("evaluate", tiny_run, "--out", tmp_path / "out", *arguments)
        assert code == 0, err
        return out, json.loads((tmp_path / "out" / "results.json").read_text()), tmp_path / "out"

    return run


def test_run_is_evaluated_as_training_did(tiny_run: Path, evaluated: Any) -> None:
    out, results, folder = evaluated("--classes")
    trained = json.loads((tiny_run / "result.json").read_text())["novel"]
    fold = results["folds"][0]
    for key in ("miou", "binary_iou", "class_iou", "list_hashes", "seeds", "episode_iou"):
        assert fold[key] == trained[key], key
    assert fold["line"] in out
    assert "fine bars star" in out
    for name in ("grid.png", "best.png", "worst.png"):
        assert (folder / name).exists()


def test_saved_episode_lists_carry_the_stated_hash(evaluated: Any) -> None:
    _, results, folder = evaluated()
    hashes = [EpisodeList.load(folder / f"episodes-seed{seed}.json").hash for seed in (1234, 1235)]
    assert hashes == results["folds"][0]["list_hashes"]


def test_kept_features_give_the_same_result_with_fewer_passes(evaluated: Any) -> None:
    _, kept, _ = evaluated()
    _, plain, _ = evaluated("--set", "eval.cache_mb=0")
    for key in ("miou", "binary_iou", "class_iou", "episode_iou"):
        assert kept["folds"][0][key] == plain["folds"][0][key]
    assert plain["folds"][0]["passes"] == plain["folds"][0]["images"] == 40
    assert kept["folds"][0]["passes"] < 40


def test_all_folds_are_averaged_and_the_leak_is_told(evaluated: Any) -> None:
    out, results, _ = evaluated("--fold", "all", "--protocol", "panet")
    assert [fold["fold"] for fold in results["folds"]] == [0, 1, 2, 3]
    assert "fold mean of 0,1,2,3" in results["mean"]
    assert "protocol panet" in results["mean"]
    assert out.count("may have been seen in training") == 3


def test_two_models_of_one_fold_have_pictures_of_their_own_and_no_mean(
    tiny_run: Path, tmp_path: Path, verb: Any
) -> None:
    folder, earlier = tmp_path / "out", tiny_run / "checkpoints" / "last.previous.pt"
    code, out, err = verb("evaluate", tiny_run, earlier, "--out", folder)
    assert code == 0, err
    assert "fold mean of" not in out
    for name in ("model0", "model1"):
        assert (folder / name / "grid.png").exists()


@pytest.mark.parametrize("annotation", ["box", "scribble"])
def test_weak_supports_are_stated(evaluated: Any, annotation: str) -> None:
    out, results, _ = evaluated("--set", f"eval.annotation={annotation}", "--set", "eval.episodes=3")
    assert f"{annotation} supports" in out
    assert results["folds"][0]["annotation"] == annotation


def test_several_ways_and_shots_are_stated(evaluated: Any) -> None:
    out, _, _ = evaluated("--set", "eval.ways=2", "--set", "eval.shots=2", "--set", "eval.episodes=4")
    assert "2-way 2-shot, 2 x 4 episodes" in out


def test_bare_weights_need_a_recipe(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    state = torch.load(tiny_run / "checkpoints" / "last.pt", weights_only=True)
    torch.save(state["model"], tmp_path / "bare.pth")
    code, _, err = verb("evaluate", tmp_path / "bare.pth")
    assert code == 2
    assert "--recipe" in err
    recipe = tiny_run / "settings.toml"
    code, out, err = verb("evaluate", tmp_path / "bare.pth", "--recipe", recipe, "--out", tmp_path / "out")
    assert code == 0, err
    trained = json.loads((tiny_run / "result.json").read_text())["novel"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["folds"][0]["miou"] == trained["miou"]
    assert "bare.pth" in out


def test_untrained_model_says_so(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    code, out, err = verb("evaluate", "--recipe", tiny_run / "settings.toml", "--out", tmp_path / "out")
    assert code == 0, err
    assert "random weights" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a run folder"),
        (["nowhere"], "path must exist, or be a name"),
        (["{run}", "--protocol", "pannet"], "did you mean 'panet'"),
        (["{run}", "--fold", "7"], "fold must be 0, 1, 2, 3 or all"),
        (["{run}", "{run}", "--fold", "all"], "one run of each fold"),
        (["{damaged}"], "damaged"),
        (["{run}", "--set", "model.backbone_width=16"], "fit"),
        (["{run}", "--set", "eval.episode=3"], "did you mean 'eval.episodes'"),
        (["{run}", "--protocol", "../../elsewhere"], "eval.protocol must be one of"),
        (["{run}", "--set", "eval.shots=5000"], "must have at least"),
        (["{run}", "--out", "{damaged}"], "must be a folder, got a file"),
        (["{folder}"], "or be of a run, with checkpoints/, got"),
    ],
)
def test_mistake_is_told_with_code_2(
    arguments: list[str], told: str, tiny_run: Path, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "damaged.pt"
    shutil.copy(tiny_run / "checkpoints" / "last.pt", damaged)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    places = {"run": tiny_run, "damaged": damaged, "folder": tmp_path}
    before = sorted(path.name for path in tiny_run.iterdir())
    code, _, err = verb("evaluate", *(text.format(**places) for text in arguments))
    assert code == 2
    assert sorted(path.name for path in tiny_run.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.pt"]
    assert told in err
    assert len(err.strip().splitlines()) <= 2


def test_help_lists_the_protocols(verb: Any) -> None:
    code, out, _ = verb("evaluate", "--help")
    assert code == 0
    assert "false positives of absent ways not counted" in out
