"""MSANet's two stages by one command, on a tiny recipe: trained, resumed at the right stage, evaluated, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fssops.engine.checkpoints import read_checkpoint
from fssops.recipes import list_recipes
from fssops.tasks import load_task, task_of

Verb = Callable[..., tuple[int, str, str]]

RECIPE = """
name = "msanet_tiny"
[model]
name = "msanet"
backbone = "resnet18"
backbone_width = 8
channels = 16
similarity_channels = 8
head_channels = 16
base_classes = 21
[base]
overrides = ["schedule.steps=3", "engine.batch_size=2", "engine.save_every=2", "engine.validate_every=3",
    "eval.images=4", "eval.validation_images=3", "eval.pictures=2", "data.size=[48,48]", "model.norm=batch"]
[data]
source = "generated"
split = "train"
folds = "generated"
definition = "msanet"
size = [48, 48]
episodes = 3
geometry = "letterbox"
augment = "msanet_pascal"
options = { size = 48, images_per_class = 6 }
[optim]
lr = 0.01
[schedule]
steps = 2
[engine]
batch_size = 2
accelerator = "cpu"
workers = 0
log_every = 1
validate_every = 2
tensorboard = false
[eval]
protocol = "fssops"
split = "test"
runs = 1
episodes = 8
pictures = 1
validation_episodes = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_stages") / "msanet_tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    from fssops.train import main

    folder = recipe.parent / "run"
    assert main([str(recipe), "--out", str(folder)]) == 0
    return folder


def test_the_base_learner_is_trained_first_and_frozen_in_the_system(run: Path) -> None:
    base = json.loads((run / "base" / "result.json").read_text())
    assert base["steps"] == 3
    assert "novel classes background, 48 x 48, novel images kept in training" in base["base"]["line"]
    assert (run / "base" / "grid.png").exists()
    classes = json.loads((run / "base" / "classes.json").read_text())
    assert len(classes) == 22
    learnt = read_checkpoint(run / "base" / "checkpoints" / "best.pt")["model"]
    whole = read_checkpoint(run / "checkpoints" / "last.pt")["model"]
    for name, value in learnt.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(whole[f"base_learner.{name}"], value), name


def test_the_result_reports_ensemble_meta_and_base_apart(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert set(result["novel"]["parts"]) == {"meta mIoU", "meta binary IoU", "base mIoU"}
    assert result["novel"]["protocol"] == "fssops"
    assert "novel images dropped in training" in result["novel"]["line"]
    assert {"loss_final", "loss_meta", "loss_base"} <= set(result["losses"])


def test_a_run_that_stopped_goes_on_at_its_stage(recipe: Path, run: Path, verb: Verb) -> None:
    folder = recipe.parent / "stopped"
    code, out, _ = verb("train", recipe, "--out", folder, "--no-eval", "--set", "schedule.steps=0")
    assert code == 0
    assert "its checkpoint is missing, so it is trained first, in" in out
    # As if it had been killed right after the first stage: no checkpoint of the second.
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    code, out, _ = verb("train", "--resume", folder, "--no-eval", "--set", "schedule.steps=2")
    assert code == 0
    assert "first stage    base learner: finished earlier" in out
    assert "trained        2 steps" in out
    # As if it had been killed within the first stage.
    longer = [
        "--set",
        'base.overrides=["schedule.steps=5","engine.batch_size=2","data.size=[48,48]","eval.images=4",'
        '"engine.validate_every=0","engine.best_metric=loss","engine.best_mode=min","eval.checkpoint=last"]',
    ]
    code, out, _ = verb("train", "--resume", folder, "--no-eval", *longer)
    assert code == 0
    assert "first stage    base learner: goes on at step 3 of 5" in out


def test_a_base_learner_of_another_fold_is_not_taken_from_a_folder_in_use(recipe: Path, run: Path, verb: Verb) -> None:
    folder = recipe.parent / "stopped_in_the_first_stage"
    shutil.copytree(run / "base", folder / "base")
    code, _, err = verb("train", recipe, "--out", folder, "--no-eval", "--set", "data.fold=1")
    assert code == 2
    assert "must be a new folder, got one with a run in it" in err


def test_resume_alone_finds_a_run_that_stopped_in_its_first_stage(
    recipe: Path, run: Path, verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/msanet_tiny-20260101-120000")
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints")
    code, out, err = verb("train", recipe, "--resume", "--no-eval")
    assert code == 0, err
    assert "first stage    base learner: finished earlier" in out
    assert f"run            {folder}" in out


def test_a_given_base_learner_is_taken_and_each_stage_runs_alone(
    recipe: Path, run: Path, verb: Verb, tmp_path: Path
) -> None:
    weights = run / "base" / "checkpoints" / "best.pt"
    for given, taken in ((weights, weights), (run / "base", run / "base" / "checkpoints" / "last.pt")):
        out_folder = tmp_path / f"second-{given.name}"
        code, out, _ = verb("train", recipe, "--out", out_folder, "--no-eval", "--set", f"base.weights={given}")
        assert code == 0
        assert "first stage" not in out
        assert f"base learner   {taken}" in out
    code, out, _ = verb("evaluate", run / "base", "--out", tmp_path / "scores", "--classes")
    assert code == 0
    assert "base mIoU" in out
    scores = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert scores[0]["images"] == 4
    code, _, err = verb("evaluate", run / "base", "--fold", 1)
    assert code == 2
    assert "--fold: a base learner knows the classes of its own fold alone" in err
    code, out, _ = verb("evaluate", run, "--out", tmp_path / "novel", "--set", "eval.episodes=3")
    assert code == 0
    assert "base mIoU" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "{run}/base/checkpoints/best.pt",
            "base classes of generated fold 1, got generated fold 0, which has seen",
        ),
        ("{run}/base", "base classes of generated fold 1, got generated fold 0, which has seen"),
        ("{run}", "must be a training of pspnet, got one of msanet"),
        ("nowhere.pt", "base.weights: path must exist, or be a name that"),
    ],
)
def test_a_base_learner_that_has_seen_the_novel_classes_or_is_none_is_refused(
    recipe: Path, run: Path, verb: Verb, tmp_path: Path, given: str, told: str
) -> None:
    sets = ["--set", f"base.weights={given.format(run=run)}", "--set", "data.fold=1"]
    code, _, err = verb("train", recipe, "--out", tmp_path / "run", *sets)
    assert code == 2
    assert told in err


def test_a_fold_with_other_classes_is_refused(recipe: Path, verb: Verb, tmp_path: Path) -> None:
    code, _, err = verb("train", recipe, "--out", tmp_path / "run", "--set", "model.base_classes=15")
    assert code == 2
    assert "model.base_classes must be the number of base classes of generated fold 0 (interleaved), 21, got 15" in err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("data.shots=30", "must have at least 31 images"),
        ("eval.shots=30", "must have at least 31 images"),
        ('base.overrides=["data.fold=2"]', "base.overrides must be trained on the base classes of generated fold 0"),
        (
            "base.recipe=panet_generated",
            "base.recipe panet_generated with base.overrides must be a training of pspnet, got one of panet",
        ),
    ],
)
def test_what_the_second_stage_lacks_is_told_before_the_first_is_trained(
    recipe: Path, verb: Verb, tmp_path: Path, overrides: str, told: str
) -> None:
    code, out, err = verb("train", recipe, "--out", tmp_path / "run", "--set", overrides)
    assert code == 2
    assert told in err
    assert "trained first" not in out
    assert not (tmp_path / "run").exists()


def test_weights_of_a_backbone_alone_do_not_stand_for_the_base_learner(
    recipe: Path, tmp_path: Path, verb: Verb
) -> None:
    from fssops.models.backbones.build import build_backbone

    path = tmp_path / "resnet.pt"
    torch.save(build_backbone("resnet18", width=8, deep_stem=True, norm="batch").state_dict(), path)
    code, _, err = verb("train", recipe, "--out", tmp_path / "run", "--set", f"model.weights={path}")
    assert code == 2
    assert "must be of all of msanet" in err
    assert f'base.overrides=["model.weights={path}"]' in err
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.parametrize("name", [n for n in list_recipes() if n.startswith(("msanet_pascal5i", "msanet_coco20i"))])
def test_msanet_recipes_are_as_published_and_name_their_base_stage(name: str) -> None:
    settings = load_task(name).settings
    task = task_of(settings)
    pascal = "pascal" in name
    optim, data = settings.optim, settings.data  # type: ignore[attr-defined]
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.05, 0.9, 1e-4)
    assert (settings.schedule.name, settings.schedule.power, settings.engine.batch_size) == ("poly", 0.9, 8)
    assert data.size == ((473, 473) if pascal else (641, 641))
    assert (data.definition, data.draw, data.min_area, data.drop_novel) == ("msanet", "list", 2048, True)
    stage = task.first_stage(Path("run"))
    base = stage.task.settings
    assert base.model.options["backbone"] == settings.model.options["backbone"]
    assert base.model.options["base_classes"] == settings.model.options["base_classes"] == (15 if pascal else 60)
    assert base.data.root == data.root
    assert base.data.size == (417, 417)
    assert (base.optim.lr, base.optim.backbone_lr_scale) == (2.5e-3, 0.1 if pascal else 1.0)
    assert (base.engine.batch_size, base.data.drop_novel) == (12, False)
    assert stage.folder == Path("run/base")
