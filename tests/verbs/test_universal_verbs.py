"""Train, evaluate and predict with a system of fixed classes, on a tiny recipe over generated scenes."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_universal import TINY, settings_arguments

import fssops
from fssops.data import panoptic_json
from fssops.data.class_names import read_classes
from fssops.data.layouts import open_data
from fssops.engine.settings import SettingsError
from fssops.tasks import load_task, resumable_evaluation
from fssops.tasks.universal import UniversalTask
from fssops.truth import Classes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="session")
def universal_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; do not write into it."""
    from fssops.train import main

    folder = tmp_path_factory.mktemp("universal") / "run"
    assert main(["mask2former_generated", "--out", str(folder), *settings_arguments()]) == 0
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of different sizes, one of them named by a number, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("000000000017.jpg", (50, 40)), ("street.png", (33, 64))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
            folder / name
        )
    return folder


def test_training_leaves_scores_pictures_and_classes(universal_run: Path) -> None:
    result = json.loads((universal_run / "result.json").read_text())
    for who in ("trained", "untrained"):
        assert result[who]["images"] == 3
        assert set(result[who]["protocols"]) == {"semantic", "panoptic", "instance"}
        assert len(result[who]["semantic"]["class_iou"]) == 8
    assert result["scores"]["PQ"] - result["gain"] == pytest.approx(result["untrained"]["scores"]["PQ"])
    assert "generated val, 3 of 4 images, images' own size" in result["trained"]["line"]
    for name in ("curves.png", "grid.png", "best.png", "worst.png", "confusion.png"):
        with Image.open(universal_run / name) as picture:
            assert min(picture.size) > 200
    classes = read_classes(universal_run / "classes.json")
    assert classes.names == open_data("generated", truth="panoptic").classes.names
    assert classes.things == (3, 4, 5, 6, 7)
    metrics = [json.loads(line) for line in (universal_run / "metrics.jsonl").read_text().splitlines()]
    assert {"val/pq", "val/miou", "val/ap"} <= set(metrics[-1])
    assert {"loss_ce", "loss_mask_0", "loss_dice"} <= set(metrics[0])


def test_evaluation_of_a_run_repeats_its_scores_and_prints_classes(
    universal_run: Path, tmp_path: Path, verb: Any
) -> None:
    code, out, err = verb("evaluate", universal_run, "--classes", "--out", tmp_path / "e")
    assert code == 0, err
    trained = json.loads((universal_run / "result.json").read_text())["trained"]
    again = json.loads((tmp_path / "e" / "results.json").read_text())["results"][0]
    assert again["scores"] == pytest.approx(trained["scores"], nan_ok=True)
    assert "triangle" in out
    assert (tmp_path / "e" / "confusion.png").is_file()


def test_evaluation_can_average_sizes_and_flips(universal_run: Path, tmp_path: Path, verb: Any) -> None:
    sets = [f"eval.{key}" for key in ("scales=[40,64]", "flip=true", "boundary=true", "tasks=['semantic']", "images=2")]
    sets.append("eval.pictures=0")
    arguments = [part for override in sets for part in ("--set", override)]
    code, out, err = verb("evaluate", universal_run, "--out", tmp_path / "e", *arguments)
    assert code == 0, err
    assert "semantic averaged over short sides 40/64 and flips" in out
    assert out.splitlines()[-1] == f"written: {tmp_path / 'e'}/ (results.json, grid.png, confusion.png)"
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"results.json", "grid.png", "confusion.png"}
    assert "boundary IoU" in out
    assert "PQ" not in out


def test_a_panoptic_model_without_countable_classes_fits_data_without_them() -> None:
    task = UniversalTask(load_task("mask2former_generated", [*TINY, "model.things=[]"]).settings)  # type: ignore[arg-type]
    names = [f"stuff {number}" for number in range(8)]
    task.check_classes(SimpleNamespace(label="stuff", classes=Classes.from_names(names, [])))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"countable classes of mixed, \[7\], got \[\]"):
        task.check_classes(SimpleNamespace(label="mixed", classes=Classes.from_names(names, [7])))  # type: ignore[arg-type]


def test_two_processes_count_what_one_counts(universal_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    task = UniversalTask(load_task("mask2former_generated", TINY).settings)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = fssops.create_model("mask2former", **task.settings.model.options)

    def run(rank: int, world_size: int) -> Any:
        fabric = SimpleNamespace(
            global_rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
            is_global_zero=rank == 0,
            autocast=nullcontext,
        )
        return task.evaluate(model, fabric, "m", "").result  # type: ignore[arg-type]

    states: list[Any] = []

    def gathered(state: Any, world_size: int) -> list[Any]:
        states.append(state)
        return states if len(states) == 2 else [state]

    monkeypatch.setattr(resumable_evaluation, "gathered", gathered)
    run(0, 2)
    both, alone = run(1, 2), run(0, 1)
    assert both.scores() == pytest.approx(alone.scores(), nan_ok=True, abs=0)
    assert both.quality == alone.quality
    assert sorted(number for number, _ in alone.quality) == [0, 1, 2]


def test_prediction_writes_every_form(universal_run: Path, photos: Path, tmp_path: Path, verb: Any) -> None:
    from pycocotools import mask as coco_mask

    out = tmp_path / "out"
    code, printed, err = verb("predict", "--checkpoint", universal_run, "--query", photos, "--out", out, "--score", 0)
    assert code == 0, err
    assert "2 images segmented" in printed
    for name, size in (("000000000017", (50, 40)), ("street", (33, 64))):
        with Image.open(out / "semantic" / f"{name}.png") as labels:
            assert (labels.size, labels.mode) == (size, "P")
            assert int(np.asarray(labels).max()) < 8
        for task in ("semantic", "instance", "panoptic"):
            with Image.open(out / "overlays" / task / f"{name}.jpg") as picture:
                assert picture.size == size
    found = panoptic_json.read(out / "panoptic.json")
    (entry,) = (e for e in found.images.values() if e.id == 17)
    ids = panoptic_json.read_map(out / "panoptic" / entry.map, entry)
    assert ids.shape == (40, 50)
    assert len(entry.segments) == len(set(np.unique(ids)) - {0})
    rows = json.loads((out / "instances.json").read_text())
    assert {row["image_id"] for row in rows} <= {17, "street"}
    assert all(coco_mask.area(row["segmentation"]) > 0 and row["category_id"] in range(3, 8) for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes"][3] == "disc"
    assert [image["width"] for image in summary["images"]] == [50, 33]


def test_prediction_of_one_task(universal_run: Path, photos: Path, tmp_path: Path, verb: Any) -> None:
    code, _, err = verb(
        "predict", "--checkpoint", universal_run / "checkpoints" / "last.pt", "--query", photos / "street.png",
        "--out", tmp_path / "out", "--task", "semantic",
    )  # fmt: skip
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "semantic",
        "overlays",
        "classes.json",
        "summary.csv",
        "summary.json",
    }
    assert (tmp_path / "out" / "overlays" / "street.jpg").is_file()


def test_pictures_go_to_the_device_of_the_model() -> None:
    class Elsewhere(torch.nn.Linear):
        """A model on another device than the CPU, as far as it goes without one."""

        def segment(self, batch: Any, tasks: Any) -> Any:
            raise ConnectionError(batch.images[0].device)

    task = UniversalTask(load_task("mask2former_generated", TINY).settings)  # type: ignore[arg-type]
    predictor = fssops.UniversalPredictor(task, Elsewhere(1, 1, device="meta"), "m")
    with pytest.raises(ConnectionError, match="meta"):
        predictor(np.zeros((8, 8, 3), dtype=np.uint8))


def test_an_unreadable_photo_costs_only_itself(universal_run: Path, photos: Path, tmp_path: Path, verb: Any) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "street.png").rename(photos / "①.png")  # a digit, but no number
    code, out, _ = verb(
        "predict", "--checkpoint", universal_run, "--query", photos, "--out", tmp_path / "o", "--task", "semantic"
    )
    assert code == 1
    assert "2 images segmented" in out
    (failed,) = json.loads((tmp_path / "o" / "summary.json").read_text())["failed"]
    assert "broken.jpg" in failed["error"]


def test_video_without_decoder_names_the_extra(
    universal_run: Path, tmp_path: Path, verb: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "clip.mp4").write_bytes(b"0")
    code, _, err = verb(
        "predict", "--checkpoint", universal_run, "--query", tmp_path / "v" / "clip.mp4", "--out", tmp_path / "o"
    )
    assert code == 2
    assert "install fssops[video], or give a folder of its frames" in err
    assert not (tmp_path / "o").exists()


def test_video_is_read_frame_by_frame(universal_run: Path, tmp_path: Path, verb: Any, monkeypatch: Any) -> None:
    """With a stand-in for the decoder, which is an extra."""

    class Container:
        def __enter__(self) -> Container:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def decode(self, video: int) -> Any:
            for value in (50, 200):
                yield SimpleNamespace(to_ndarray=lambda format, v=value: np.full((32, 40, 3), v, dtype=np.uint8))

    decoder = types.ModuleType("av")
    decoder.open = lambda path: Container()  # type: ignore[attr-defined]
    decoder.error = SimpleNamespace(FFmpegError=RuntimeError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", decoder)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "clip.mp4").write_bytes(b"0")
    code, out, err = verb(
        "predict", "--checkpoint", universal_run, "--query", tmp_path / "v" / "clip.mp4", "--out", tmp_path / "o",
        "--task", "semantic", "--video", "gif",
    )  # fmt: skip
    assert code == 0, err
    assert "2 images segmented" in out
    assert sorted(p.name for p in (tmp_path / "o" / "semantic").iterdir()) == ["clip_000000.png", "clip_000001.png"]
    with Image.open(tmp_path / "o" / "overlays" / "clip.gif") as animation:
        assert (animation.size, animation.n_frames) == ((40, 32), 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--support", "PHOTO"], "mask2former has fixed classes and takes no labelled images"),
        (
            ["--set", "model.num_classes=5", "--set", "model.things=[3]"],
            "got one for 8; build the model with num_classes=8",
        ),
        (["--set", "model.num_queries=5"], "2 of another shape, e.g. transformer_decoder.query"),
        (["--set", "eval.sides=3"], "did you mean"),
    ],
)
def test_wrong_predictions_are_told_in_one_line(
    universal_run: Path, photos: Path, tmp_path: Path, verb: Any, arguments: list[str], told: str
) -> None:
    given = [str(photos / "street.png") if part == "PHOTO" else part for part in arguments]
    code, _, err = verb("predict", "--checkpoint", universal_run, "--query", photos, "--out", tmp_path / "o", *given)
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_folds_mean_nothing_here(universal_run: Path, verb: Any) -> None:
    code, _, err = verb("evaluate", universal_run, "--fold", "0")
    assert code == 2
    assert "has fixed classes and no folds" in err


def test_few_shot_model_without_supports_says_what_it_needs(tmp_path: Path, photos: Path, verb: Any) -> None:
    code, _, err = verb("predict", "--model", "panet", "--weights", "x.pth", "--query", photos, "--out", tmp_path / "o")
    assert code == 2
    assert "--support: give at least one labelled image" in err


def test_nan_is_kept_and_replayed(tmp_path: Path, verb: Any) -> None:
    run = tmp_path / "run"
    overrides = settings_arguments("optim.lr=1e30", "optim.clip_norm=0", "schedule.steps=4", "schedule.name=constant")
    code, _, err = verb("train", "mask2former_generated", "--out", run, "--no-eval", *overrides)
    assert code == 1, err
    kept = next(run.glob("nonfinite_step*.pt"))
    code, out, _ = verb("train", "--replay", kept)
    assert code == 1
    assert "images: train-" in out


def test_instances_train_from_files(tmp_path: Path, verb: Any, data_root: Path) -> None:
    run = tmp_path / "run"
    sets = [
        "data.source=coco_instances",
        f"data.root={data_root / 'coco_mini'}",
        "data.truth=instance",
        "data.options={}",
    ]
    sets += ["data.augment=large_scale_jitter", "data.side=48", "model.num_classes=80", "model.tasks=['instance']"]
    sets += ["model.things=[" + ",".join(map(str, range(80))) + "]", "eval.options={}", "eval.short_side=48"]
    sets += ["engine.best_metric=val/ap", "eval.baseline=false"]
    code, out, err = verb("train", "mask2former_generated", "--out", run, *settings_arguments(*sets))
    assert code == 0, err
    assert "coco_instances val2017, 3 of 162 images, short side 48" in out
    assert "mask AP of pycocotools" in out


def test_per_pixel_baselines_train_and_are_scored_alike(tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    from fssops.tasks import settings_from_tables, task_of

    options = {
        "name": "per_pixel_baseline",
        "backbone": "resnet18",
        "num_classes": 8,
        "channels": 32,
        "mask_channels": 32,
    }
    data = {"source": "generated", "truth": "semantic", "options": {"size": 64, "images": 4}}
    tables = {"name": "baseline", "model": options, "data": data, "eval": {"images": 2}}
    task = task_of(settings_from_tables(tables, "test"))
    model = fssops.create_model("per_pixel_baseline", **task.settings.model.options)
    dataset, lines = task.training_data()
    assert "8 classes, semantic masks" in lines[0]
    losses = model.losses(task.collate([dataset[0], dataset[1]]))  # type: ignore[operator]
    assert all(torch.isfinite(value) for value in losses.values())
    result = task.evaluate(model, Fabric(accelerator="cpu", devices=1), "baseline", "").result
    assert result.tasks == ["semantic"]
    assert 0 <= result.scores()["mIoU"] <= 1


def test_the_best_checkpoint_is_not_chosen_by_the_split_that_is_reported(data_root: Path) -> None:
    task = load_task("mask2former_camvid", [f"data.root={data_root}/camvid"])
    assert isinstance(task, UniversalTask)
    assert task.source(evaluation=True).label == "camvid test"
    assert task.chooser().source(evaluation=True).label == "camvid val"


def test_validation_scores_the_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("mask2former_generated", [*TINY, "eval.split=test", "eval.validation_split=val"])
    assert isinstance(task, UniversalTask)
    counted: list[str] = []

    def count(self: UniversalTask, *arguments: Any) -> Any:
        counted.append(self.source(evaluation=True).label)
        return SimpleNamespace(scores=dict)

    monkeypatch.setattr(UniversalTask, "count", count)
    validation = task.validation(SimpleNamespace())  # type: ignore[arg-type]
    assert validation is not None
    validation.measure(None, 1)  # type: ignore[arg-type]
    validation.try_out(None)  # type: ignore[arg-type]
    assert counted == ["generated val", "generated val"]
    assert task.source(evaluation=True).label == "generated test"


def test_pictures_whose_numbers_are_equal_are_called_by_their_names(
    universal_run: Path, tmp_path: Path, verb: Any
) -> None:
    for name in ("q/0001.png", "q/1.png", "q/0002.png", "cam1/shot.png", "cam2/shot.png", "cam2/shot-2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (90, 20, 10)).save(tmp_path / name)
    folders = [tmp_path / name for name in ("q", "cam1", "cam2")]
    code, _, errors = verb("predict", "--checkpoint", universal_run, "--query", *folders, "--out", tmp_path / "out")
    assert code == 0, errors
    names = [path.stem for path in (tmp_path / "out" / "semantic").iterdir()]
    assert sorted(names) == ["0001", "0002", "1", "shot", "shot-2", "shot-3"]
    body = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert {row["id"] for row in body["images"]} == {"0001", "1", 2, "shot", "shot-2", "shot-3"}
    assert {row["image_id"] for row in body["annotations"]} == {row["id"] for row in body["images"]}
    # The same file in two folders: our own reader takes the result.
    read = panoptic_json.read(tmp_path / "out" / "panoptic.json")
    assert {"cam1/shot.png", "cam2/shot.png", "q/1.png"} < set(read.images)
    assert {image.map for image in read.images.values()} == {f"{name}.png" for name in names}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["clip.mp4", "clip_000001.png"], ["clip-video", "clip_000001"]),
        (["a_000000.png", "x/a_000000.png", "a.avi"], ["a_000000", "a_000000-2", "a-video"]),
        (["a.mp4", "x/a.mp4", "a.png"], ["a", "a-2", "a-3"]),
        (["clip.mp4", "clip_1.png"], ["clip", "clip_1"]),
    ],
)
def test_no_frame_of_a_video_is_called_as_a_picture(files: list[str], names: list[str]) -> None:
    from fssops.tasks.prediction_inputs import output_names

    assert output_names([Path(file) for file in files]) == names


def test_outputs_that_are_no_numbers_end_evaluation_and_prediction(
    universal_run: Path, photos: Path, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fssops.models.transformer_decoders.masked import MaskedTransformerDecoder

    decode = MaskedTransformerDecoder.decode

    def overflowing(self: Any, *arguments: Any, **options: Any) -> Any:
        outputs = decode(self, *arguments, **options)
        outputs.class_logits[..., 0] = float("nan")
        return outputs

    monkeypatch.setattr(MaskedTransformerDecoder, "decode", overflowing)
    code, _, errors = verb("evaluate", universal_run, "--out", tmp_path / "scores")
    assert code == 2
    assert "outputs must be numbers, got NaN" in errors
    code, _, errors = verb(
        "predict", "--checkpoint", universal_run, "--query", photos / "street.png", "--out", tmp_path / "out"
    )
    assert code != 0
    assert "outputs must be numbers, got NaN" in errors
