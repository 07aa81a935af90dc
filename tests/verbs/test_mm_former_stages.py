"""MM-Former's two stages by one command, on a tiny recipe: trained, resumed, shared by shots, evaluated, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fssops.engine.checkpoints import read_checkpoint
from fssops.engine.run_folder import RunFolder
from fssops.engine.settings import SettingsError
from fssops.recipes import list_recipes
from fssops.tasks import load_task, task_of

Verb = Callable[..., tuple[int, str, str]]

RECIPE = """
name = "mm_former_tiny"
[model]
name = "mm_former"
backbone = "resnet18"
backbone_width = 8
tuning = "all"
num_queries = 6
channels = 32
heads = 2
encoder_layers = 1
encoder_hidden = 16
decoder_layers = 2
decoder_hidden = 16
train_points = 32
align_heads = 2
align_hidden = 16
matching_hidden = 8
short_side = 4
[segmenter]
recipe = "mm_former_segmenter_generated"
overrides = ["schedule.steps=3", "schedule.warmup_steps=0", "engine.batch_size=2", "engine.save_every=2",
    "data.size=[48,48]", "eval.episodes=4"]
[data]
source = "generated"
split = "train"
folds = "generated"
definition = "msanet"
size = [48, 48]
episodes = 3
drop_novel = false
augment = "mm_former"
least_query = 1
least_support = 20
options = { size = 48, images_per_class = 6 }
[optim]
name = "adamw"
lr = 0.001
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
    path = tmp_path_factory.mktemp("mm_former") / "mm_former_tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    from fssops.train import main

    folder = recipe.parent / "run"
    shared = f"segmenter.folder={recipe.parent}/shared/fold{{fold}}"
    assert main([str(recipe), "--out", str(folder), "--set", shared]) == 0
    return folder


def test_the_segmenter_is_trained_first_and_frozen_in_the_system(recipe: Path, run: Path) -> None:
    stage = recipe.parent / "shared" / "fold0"
    first = json.loads((stage / "result.json").read_text())
    assert first["steps"] == 3
    assert "best proposal" in first["novel"]["model"]
    assert (stage / "grid.png").exists()
    learnt = read_checkpoint(stage / "checkpoints" / "last.pt")["model"]
    whole = read_checkpoint(run / "checkpoints" / "last.pt")["model"]
    for name, value in learnt.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(whole[f"segmenter.{name}"], value), name


def test_a_segmenter_that_another_run_trains_is_not_trained_twice(recipe: Path, verb: Verb, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "shared").locked():
        shared = f"segmenter.folder={tmp_path}/shared"
        code, _, err = verb("train", recipe, "--out", tmp_path / "run", "--set", shared)
    assert code == 2
    assert f"{tmp_path}/shared must be free, got a run" in err
    assert not (tmp_path / "run").exists()


def test_results_say_what_the_proposals_could_reach(recipe: Path, run: Path) -> None:
    names = {"oracle merge mIoU", "best proposal mIoU", "recall at 50", "recall at 75"}
    for folder in (run, recipe.parent / "shared" / "fold0"):
        novel = json.loads((folder / "result.json").read_text())["novel"]
        assert set(novel["parts"]) == names
        assert novel["parts"]["oracle merge mIoU"] >= novel["parts"]["best proposal mIoU"] - 1e-9
    assert (run / "proposals.png").exists()
    assert {"loss_merge", "loss_rank"} <= set(json.loads((run / "result.json").read_text())["losses"])


def test_another_number_of_shots_takes_the_same_segmenter(recipe: Path, run: Path, verb: Verb, tmp_path: Path) -> None:
    shared = f"segmenter.folder={recipe.parent}/shared/fold{{fold}}"
    code, out, _ = verb(
        "train", recipe, "--out", tmp_path / "run", "--no-eval", "--set", shared, "--set", "data.shots=3"
    )
    assert code == 0
    assert "first stage    segmenter: finished earlier" in out


def test_a_run_that_stopped_goes_on_at_its_stage(recipe: Path, verb: Verb, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    code, out, _ = verb("train", recipe, "--out", folder, "--no-eval", "--set", "schedule.steps=1")
    assert code == 0
    assert "its checkpoint is missing, so it is trained first, in" in out
    code, out, _ = verb("train", "--resume", folder, "--no-eval", "--set", "schedule.steps=2")
    assert code == 0
    assert "first stage    segmenter: finished earlier" in out
    assert "resumed" in out
    longer = (
        'segmenter.overrides=["schedule.steps=5","schedule.warmup_steps=0","engine.batch_size=2","data.size=[48,48]"]'
    )
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    code, out, _ = verb("train", "--resume", folder, "--no-eval", "--set", longer)
    assert code == 0
    assert "first stage    segmenter: goes on at step 3 of 5" in out


def test_each_stage_runs_and_is_evaluated_alone(recipe: Path, run: Path, verb: Verb, tmp_path: Path) -> None:
    stage = recipe.parent / "shared" / "fold0"
    for given in (stage, stage / "checkpoints" / "last.pt"):
        out_folder = tmp_path / f"second-{given.name}"
        code, out, _ = verb("train", recipe, "--out", out_folder, "--no-eval", "--set", f"segmenter.weights={given}")
        assert code == 0
        assert "first stage" not in out
        assert "segmenter      " in out
    for folder in (stage, run):
        code, out, err = verb(
            "evaluate", folder, "--out", tmp_path / f"scores-{folder.name}", "--set", "eval.episodes=3"
        )
        assert code == 0, err
        assert "oracle merge mIoU" in out
        assert "passes through the backbone" in out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("segmenter.weights=nowhere.pt", "segmenter.weights: path must exist, or be a name"),
        ("segmenter.weights={run}", "must be a training of mm_former_segmenter, got one of mm_former"),
        ("segmenter.weights={stage}", "fold 0, which has seen classes that are novel here"),
        ("model.channels=33", "channels must be divisible by 32"),
    ],
)
def test_a_segmenter_that_does_not_fit_is_refused_in_one_line(
    recipe: Path, run: Path, verb: Verb, tmp_path: Path, override: str, told: str
) -> None:
    given = override.format(run=run, stage=recipe.parent / "shared" / "fold0")
    code, _, err = verb("train", recipe, "--out", tmp_path / "run", "--set", given, "--set", "data.fold=1")
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_a_shared_folder_of_another_fold_is_refused(recipe: Path, run: Path, verb: Verb, tmp_path: Path) -> None:
    code, _, err = verb(
        "train",
        *(recipe, "--out", tmp_path / "run", "--set", "data.fold=2"),
        *("--set", f"segmenter.folder={recipe.parent / 'shared' / 'fold0'}"),
    )
    assert code == 2
    assert "segmenter.folder:" in err


@pytest.mark.parametrize(
    "name", [n for n in list_recipes() if n.startswith("mm_former") and ("coco20i" in n or "pascal5i" in n)]
)
def test_recipes_are_as_published(name: str) -> None:
    """The values of the fact sheet, sections 7 and 8."""
    settings = load_task(name).settings
    optim, data, pascal, first = settings.optim, settings.data, "pascal" in name, "segmenter" in name  # type: ignore[attr-defined]
    assert (optim.name, optim.lr, optim.weight_decay, optim.clip_norm) == ("adamw", 1e-4, 0.05, 0.01)
    assert (optim.weight_decay_norm, optim.weight_decay_embedding) == (0.0, 0.0)
    assert (settings.schedule.name, settings.schedule.power, settings.schedule.warmup_steps) == ("poly", 0.9, 0)
    steps = {(True, True): 20000, (True, False): 60000, (False, True): 10000, (False, False): 20000}
    assert settings.schedule.steps == steps[first, pascal]
    assert settings.engine.batch_size == (8 if first else 4)
    assert settings.engine.validate_every == ((500 if pascal else 1000) if first else 200)
    assert (data.size, data.definition, data.min_area, data.augment) == ((480, 480), "msanet", 2048, "mm_former")
    assert settings.eval.protocol == "mm_former"  # type: ignore[attr-defined]
    if not first:
        stage = task_of(settings).first_stage(Path("run"))
        assert stage.task.settings.schedule.steps == steps[True, pascal]
        svf = name.endswith("svf")
        assert stage.task.settings.model.options["tuning"] == ("singular_values" if svf else "none")
        assert stage.task.settings.model.options["levels"] == ("stride8" if svf else "pyramid")
        assert stage.task.settings.optim.backbone_lr_scale == 0.1
        assert stage.folder == Path("run/segmenter")


def test_the_protocols_seeds_are_those_of_the_fold() -> None:
    from fssops.protocols import PROTOCOLS

    row = PROTOCOLS["mm_former"]
    assert row.seeds_of("pascal5i", 2) == (5448843,)
    assert row.seeds_of("coco20i", 0) == (8420323,)
    assert row.seeds_of("generated", 1) == row.seeds


def test_more_than_one_way_is_refused_for_the_segmenter() -> None:
    with pytest.raises(SettingsError, match=r"data\.ways must be 1 for mm_former_segmenter, got 2"):
        load_task("mm_former_segmenter_generated", ["data.ways=2"])
