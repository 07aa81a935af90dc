"""From Python: training, evaluation and prediction give what the verbs give; every snippet of docs/python.md runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_load import ROWS, SMALL, picture
from test_own_data import QUICK, arguments, label_maps
from tiny_recipe import TINY

import fssops
from fssops.engine.settings import SettingsError, apply_overrides
from fssops.engine.toml_text import to_toml
from fssops.models import MODELS
from fssops.recipes import read_named_recipe
from fssops.segmentations import FewShotSegmentation, UniversalSegmentation, VideoSegmentation
from fssops.tasks.video_files import write_video

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]


TABLES = apply_overrides({"recipe": "panet_generated"}, TINY)
"""Arguments of the training that the verb's tiny run has."""


@pytest.fixture(scope="session")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_pretrained with a panoptic system of four classes."""
    folder = tmp_path_factory.mktemp("python") / "mine"
    torch.manual_seed(0)
    tasks = ("panoptic", "instance", "semantic")
    model = fssops.create_model("mask2former", **SMALL, num_classes=4, things=(2, 3), tasks=tasks)
    fssops.save_pretrained(model, folder, classes={"classes": ROWS})
    return folder


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a video system."""
    folder = tmp_path_factory.mktemp("python") / "video"
    torch.manual_seed(0)
    options = {name: value for name, value in SMALL.items() if "threshold" not in name}
    model = fssops.create_model("mask2former_vis", **options, num_classes=4)
    fssops.save_pretrained(model, folder, classes={"classes": ROWS})
    return folder


def clip(folder: Path, count: int = 3) -> list[np.ndarray]:
    """Frames of a video, in a folder and in memory."""
    folder.mkdir(parents=True)
    frames = list(np.random.default_rng(2).integers(0, 256, (count, 32, 40, 3), dtype=np.uint8))
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return frames


# -- training and evaluation ----------------------------------------------------------------------------------------


class Watch(fssops.Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.validations: list[int] = []
        self.ended: list[fssops.Run] = []

    def on_step(self, step: int, losses: Any) -> None:
        self.steps.append(step)
        self.losses.append(losses["loss"])

    def on_validation(self, step: int, scores: Any) -> None:
        assert all(name.startswith("val/") for name in scores)
        self.validations.append(step)

    def on_end(self, run: fssops.Run) -> None:
        self.ended.append(run)


def test_training_from_python_is_that_of_the_verb(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    run = fssops.train(out=tmp_path / "run", callbacks=[watch], **TABLES)
    assert capsys.readouterr() == ("", "")
    assert run.path == tmp_path / "run"
    of_verb = json.loads((tiny_run / "result.json").read_text())
    assert run.scores == pytest.approx(of_verb["scores"], nan_ok=True)
    assert (run.scores["mIoU"], run.scores.details["steps"]) == (of_verb["miou"], 6)
    assert run.scores.line.startswith("mIoU ")
    steps, losses = run.curves["loss"]
    assert steps == [2, 4, 6]
    assert losses == pytest.approx([float(np.mean(pair)) for pair in np.reshape(watch.losses, (3, 2))])
    assert run.curves == fssops.Run(tiny_run).curves | {
        name: run.curves[name] for name in ("step_seconds", "data_wait")
    }
    assert (watch.steps, watch.validations, watch.ended) == ([1, 2, 3, 4, 5, 6], [3, 6], [run])
    assert run.best_checkpoint is not None
    assert run.best_checkpoint.is_file()
    assert run.last_checkpoint.is_file()
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:30] = 1
    query = picture(tmp_path / "a.png")
    found = []
    for predictor in (run.predictor(device="cpu"), fssops.load(tiny_run, device="cpu")):
        assert isinstance(predictor, fssops.FewShotPredictor)
        predictor.set_support(query, mask)
        found.append(predictor(query).probabilities)
    assert np.array_equal(*found)
    scores = fssops.evaluate(run)
    assert scores == pytest.approx(run.scores)
    assert sorted(path.name for path in run.path.iterdir() if path.is_dir()) == ["checkpoints"]
    fewer = fssops.evaluate(run, eval={"episodes": 4, "pictures": 0}, out=tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["folds"][0]["line"] == fewer.line
    assert "4 episodes" in fewer.line
    assert not [path for path in (tmp_path / "scores").iterdir() if path.is_dir()]  # no progress is left
    fssops.evaluate(run, fold=1, eval={"episodes": 4})
    assert "fold 1 is not the fold that was trained" in caplog.text
    model = run.predictor(device="cpu").model
    recipe = run.path / "settings.toml"
    assert fssops.evaluate(model, recipe=recipe) == pytest.approx(run.scores)
    with pytest.raises(SettingsError, match=r"evaluate: model must be a mask2former as recipe .* got PANet"):
        fssops.evaluate(model, recipe="mask2former_generated")


def test_a_run_goes_on_from_python(tmp_path: Path) -> None:
    first = fssops.train(out=tmp_path / "run", evaluate=False, **{**TABLES, "schedule": {"steps": 2}})
    assert first.scores == {}
    again = fssops.train(resume=first, evaluate=False, schedule={"steps": 4})
    assert again == first
    assert again.curves["loss"][0] == [2, 4]
    with pytest.raises(SettingsError, match=r"--out: .* must be a new folder, got one with a run in it"):
        fssops.train(out=first.path, **TABLES)


def test_a_folder_alone_is_trained_on_as_the_verb_does(tmp_path: Path, verb: Any) -> None:
    data = label_maps(tmp_path / "data")
    run = fssops.train(data=data, epochs=1, size=32, out=tmp_path / "python", **apply_overrides({}, QUICK))
    code, _, err = verb("train", "--data", data, "--epochs", 1, "--size", 32, "--out", tmp_path / "verb", *arguments())
    assert code == 0, err
    other = fssops.Run(tmp_path / "verb")
    assert run.scores == pytest.approx(other.scores, nan_ok=True)
    assert run.curves["loss"] == other.curves["loss"]
    assert [path.name for path in sorted(run.path.iterdir())] == [path.name for path in sorted(other.path.iterdir())]
    kept = torch.load(run.best_checkpoint, weights_only=False)  # an own recipe is scored by its best checkpoint
    predictor = run.predictor(device="cpu")
    weights = predictor.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in kept["model"].items())


class Stopping(fssops.Callback):
    def on_step(self, step: int, losses: Any) -> None:
        if step == 3:
            import signal

            signal.raise_signal(signal.SIGTERM)


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"fssops.train\(resume='.*run'\) goes on"):
        fssops.train(out=tmp_path / "run", callbacks=[Stopping()], **{**TABLES, "schedule": {"steps": 9}})
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=False)["step"] in (3, 4)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fssops.train(lr=1e-3), "train: lr must come with data=FOLDER and without recipe and resume"),
        (lambda: fssops.train(rate=1e-3), r"train: settings must be given by table, as optim=.* got rate=0.001"),
        (lambda: fssops.train(optim={"rate": 1e-3}), "unknown key 'optim.rate'"),
        (lambda: fssops.train(**{"optim.rate": 1e-3}), "unknown key 'optim.rate'"),
        (lambda: fssops.train(optim={"lr": None}), "train: optim.lr must be a text, number, .* got None"),
        (lambda: fssops.train(resume="r", recipe="panet_generated"), "train: resume must come without recipe and out"),
        (lambda: fssops.train(recipe="panet_generatd"), "did you mean 'panet_generated'"),
        (lambda: fssops.evaluate(torch.nn.Linear(1, 1)), "evaluate: recipe must say what Linear is scored on"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(call: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_run_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Run: .*result.json must be of a finished training, got"):
        _ = fssops.Run(tmp_path).scores


def test_train_and_evaluate_can_be_called_whatever_was_imported_before() -> None:
    code = """
import fssops
lazily = fssops.train, fssops.evaluate
from fssops.train import main
import fssops.evaluate, inspect, fssops.api
assert (fssops.train, fssops.evaluate) == lazily
assert inspect.signature(fssops.train) == inspect.signature(fssops.api.train)
for call in (lambda: fssops.train(recipe="none"), lambda: fssops.evaluate("none")):
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["SettingsError", "FileNotFoundError"], done.stderr


def test_create_model_is_typed_for_every_name() -> None:
    if not hasattr(typing, "get_overloads"):
        pytest.skip("Python 3.10 keeps no overloads")
    notes = [overload.__annotations__ for overload in typing.get_overloads(fssops.create_model)]
    typed = {note["name"].replace("'", '"'): note["return"] for note in notes}
    assert typed == {f'Literal["{row.name}"]': row.model for row in MODELS.values()} | {"str": "nn.Module"}


# -- what predictors take -------------------------------------------------------------------------------------------


def test_streams_are_segmented_when_they_are_asked_for(instances: Path, tmp_path: Path) -> None:
    segmenter = fssops.load(instances, device="cpu")
    assert isinstance(segmenter, fssops.UniversalPredictor)
    segmenter.tasks = ("semantic",)
    frames = clip(tmp_path / "clip")
    write_video(tmp_path / "clip.gif", iter(frames))
    taken: list[int] = []

    def stream() -> Any:
        for number, frame in enumerate(frames):
            taken.append(number)
            yield frame

    results = segmenter(stream())
    assert taken == []
    first = next(results)
    assert isinstance(first, UniversalSegmentation)
    assert (taken, first.frame, first.origin) == ([0], 0, "number 1")
    inside = list(segmenter(tmp_path / "clip"))
    assert [Path(one.origin).name for one in inside] == ["0.png", "1.png", "2.png"]
    assert np.array_equal(inside[0].semantic.label_map, first.semantic.label_map)  # type: ignore[union-attr]
    moving = list(segmenter(str(tmp_path / "clip.gif")))
    assert [(one.frame, one.origin) for one in moving] == [(n, f"{tmp_path}/clip.gif frame {n}") for n in range(3)]
    (tmp_path / "clip" / "1.png").write_bytes(b"none")
    results = segmenter(tmp_path / "clip")
    next(results)
    with pytest.raises(ValueError, match=r"1\.png: image must be one of"):
        next(results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"UniversalPredictor: folder .* must hold images, got none"):
        segmenter(tmp_path / "empty")
    with pytest.raises(TypeError, match="must be a path, Pillow image, array or tensor, got int"):
        segmenter(7)  # type: ignore[call-overload]


def test_a_video_system_takes_a_video_in_every_form(tracker: Path, tmp_path: Path, verb: Any) -> None:
    frames = clip(tmp_path / "clip")
    code, _, err = verb(
        "predict", "--checkpoint", tracker, "--query", tmp_path / "clip", "--out", tmp_path / "o", "--video", "none",
        "--score", "0",
    )  # fmt: skip
    assert code == 0, err
    written = json.loads((tmp_path / "o" / "results.json").read_text())
    predictor = fssops.load(tracker, device="cpu")
    assert isinstance(predictor, fssops.VideoPredictor)
    assert predictor.classes == ("sky", "road", "cup", "cat")
    stacked = np.stack(frames)
    tensor = torch.from_numpy(stacked).permute(0, 3, 1, 2)
    for form in (tmp_path / "clip", stacked, tensor, frames, iter(frames), sorted((tmp_path / "clip").iterdir())):
        found = predictor(form)
        assert isinstance(found, VideoSegmentation)
        assert found.to_coco() == written
        assert (found.length, found.size) == (3, (32, 40))
    rows = (tmp_path / "o" / "summary.csv").read_text().splitlines()
    assert rows[0] == "video,class,count,pixels,mean_score"
    assert [row.split(",")[1:4] for row in rows[1:]] == [
        [one.name, str(one.count), str(one.pixels)] for one in found.counts()
    ]
    clip(tmp_path / "both" / "a", 2)
    clip(tmp_path / "both" / "b", 1)
    assert [one.length for one in predictor(tmp_path / "both")] == [2, 1]
    with pytest.raises(ValueError, match="frame 1 must have the size of the first, 40 x 32, got 40 x 20"):
        predictor([frames[0], frames[1][:20]])
    with pytest.raises(TypeError, match="VideoPredictor: source must be a video or its frames, got Image"):
        predictor(Image.fromarray(frames[0]))  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="a video system needs whole videos, which can be read again, got camera:0"):
        predictor("camera:0")
    with pytest.raises(ValueError, match="must have at least one frame that can be read, got none"):
        predictor([])


class Camera:
    """A stand-in for OpenCV's, which is an extra: four pictures, blue first, then it breaks off."""

    released = 0

    def __init__(self, number: int) -> None:
        self.number, self.shown = number, 0

    def isOpened(self) -> bool:
        return self.number == 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.shown += 1
        pixels = np.zeros((32, 40, 3), dtype=np.uint8)
        pixels[..., 0] = 10 * self.shown
        return self.shown < 5, pixels if self.shown < 5 else None

    def release(self) -> None:
        Camera.released += 1


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    package = types.ModuleType("cv2")
    package.VideoCapture = Camera  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", package)
    Camera.released = 0
    return Camera


def test_a_camera_is_seen_until_its_frames_are_enough(
    instances: Path, tiny_run: Path, camera: type[Camera], tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["predict", "--checkpoint", instances, "--task", "semantic", "--query"]
    code, _, err = verb(*given, "camera:0", "--frames", 2, "--out", tmp_path / "o", "--npz")
    assert code == 0, err
    assert camera.released == 1
    names = ["camera-0_000000", "camera-0_000001"]
    assert [path.stem for path in sorted((tmp_path / "o" / "npz").iterdir())] == names
    with np.load(tmp_path / "o" / "npz" / f"{names[0]}.npz") as held:
        assert np.array_equal(
            held["label_map"], np.asarray(Image.open(tmp_path / "o" / "semantic" / f"{names[0]}.png"))
        )
    with Image.open(next((tmp_path / "o" / "overlays").glob("camera-0.*"))) as animation:
        assert animation.n_frames == 2  # type: ignore[attr-defined]
    predictor = fssops.load(instances, device="cpu")
    seen = predictor("camera:0")
    assert next(seen).image[0, 0].tolist() == [0, 0, 10]
    seen.close()
    assert camera.released == 2
    code, out, _ = verb(*given, "camera:0", "--out", tmp_path / "whole")
    assert (code, "4 images segmented" in out) == (1, True)
    (failed,) = json.loads((tmp_path / "whole" / "summary.json").read_text())["failed"]
    assert failed["error"] == "camera:0: camera must show pictures, got no further picture"
    # Ctrl-C is how a camera is ended: what was seen is written.
    read = Camera.read

    def interrupted(self: Camera) -> Any:
        if self.shown == 3:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(Camera, "read", interrupted)
    code, out, _ = verb(*given, "camera:0", "--out", tmp_path / "stopped")
    assert (code, "3 images segmented" in out) == (0, True)
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, err = verb(*given, "camera:0", "--out", tmp_path / "none")
    assert (code, "camera:0 is a camera, which needs the package cv2: install fssops[camera]" in err) == (2, True)


def test_a_prediction_of_a_video_by_a_few_shot_system(tiny_run: Path, tmp_path: Path, verb: Any) -> None:
    frames = clip(tmp_path / "clip")
    write_video(tmp_path / "clip.gif", iter(frames))
    mask = np.zeros((32, 40), np.uint8)
    mask[10:20, 10:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    code, out, err = verb(
        "predict", "--checkpoint", tiny_run, "--support", tmp_path / "clip" / "0.png", tmp_path / "mask.png",
        "--query", tmp_path / "clip.gif", tmp_path / "clip" / "1.png", "--out", tmp_path / "o", "--npz",
        "--video", "webp",
    )  # fmt: skip
    assert code == 0, err
    assert "4 images segmented" in out
    with Image.open(tmp_path / "o" / "clip.webp") as animation:
        assert (animation.size, animation.n_frames) == ((40, 32), 3)  # type: ignore[attr-defined]
    predictor = fssops.load(tiny_run, device="cpu")
    assert isinstance(predictor, fssops.FewShotPredictor)
    predictor.set_support(tmp_path / "clip" / "0.png", tmp_path / "mask.png")
    found = predictor(tmp_path / "clip" / "1.png")
    assert isinstance(found, FewShotSegmentation)
    with np.load(tmp_path / "o" / "1.npz") as held:
        assert np.array_equal(held["label_map"], found.label_map)
        assert np.array_equal(held["probabilities"], found.probabilities)
    header, *rows = (tmp_path / "o" / "summary.csv").read_text().splitlines()
    assert header == "image,class,count,pixels,mean_score"
    own = [row.split(",") for row in rows if "1.png" in row]
    pixels = int((found.label_map == 1).sum())
    assert own == ([[f"{tmp_path}/clip/1.png", "object", "1", str(pixels), str(round(float(found.scores[0]), 4))]]
                   if pixels else [])  # fmt: skip


def test_instances_have_boxes_and_polygons(instances: Path, tmp_path: Path, verb: Any) -> None:
    from fssops.run_lengths import decode, draw

    query = picture(tmp_path / "a.png")
    given = ["predict", "--checkpoint", instances, "--query", query, "--task", "instance", "--out"]
    assert verb(*given, tmp_path / "all", "--score", 0)[0] == 0
    rows = json.loads((tmp_path / "all" / "instances.json").read_text())
    assert rows
    for row in rows:
        mask = decode(row["segmentation"])
        x, y, width, height = row["box"]
        inside = np.zeros_like(mask)
        inside[int(y) : int(y + height), int(x) : int(x + width)] = True
        assert (mask & ~inside).sum() == 0
        assert np.array_equal(draw(row["polygons"], 50, 40), mask)
        assert set(row) == {"image_id", "category_id", "segmentation", "score", "box", "polygons"}
    assert verb(*given, tmp_path / "none", "--score", 1)[0] == 0
    fewer = json.loads((tmp_path / "none" / "instances.json").read_text())
    assert [row["box"] for row in fewer] == [row["box"] for row in rows]
    assert not any("polygons" in row for row in fewer)


# -- the documentation ----------------------------------------------------------------------------------------------


def test_every_snippet_of_the_page_runs(
    instances: Path, tracker: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name, folder in (("mine", instances), ("video", tracker), ("few_shot", tiny_run)):
        (tmp_path / "runs" / name).symlink_to(folder)
    for name in ("street", "park", "cup", "table"):
        picture(tmp_path / f"{name}.jpg")
    clip(tmp_path / "photos", 2)
    clip(tmp_path / "clip", 2)
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:30] = 1
    Image.fromarray(mask).save(tmp_path / "cup_mask.png")
    torch.save(fssops.create_model("panet", backbone="vgg16", backbone_width=8).state_dict(), tmp_path / "authors.pth")
    for split in ("train", "val"):
        (tmp_path / "my_data" / split / "images").mkdir(parents=True)
        (tmp_path / "my_data" / split / "masks").mkdir()
        for name in ("a", "b"):
            picture(tmp_path / "my_data" / split / "images" / f"{name}.jpg")
            Image.fromarray(mask).save(tmp_path / "my_data" / split / "masks" / f"{name}.png")
    (tmp_path / "my_data" / "classes.json").write_text('["road", "tree"]')
    recipe = read_named_recipe("mask2former_generated")
    small = {name: value for name, value in SMALL.items() if name != "detections"}
    recipe["model"] |= {**small, "num_classes": 2, "things": [], "tasks": ["semantic"], "train_points": 64}
    recipe["data"] = {"source": "label_folder", "truth": "semantic", "augment": "flip"}
    recipe["schedule"] = {"steps": 2}
    recipe["engine"] |= {"batch_size": 2, "validate_every": 2, "log_every": 1, "workers": 0, "accelerator": "cpu"}
    recipe["engine"] |= {"best_metric": "val/miou", "tensorboard": False}
    recipe["eval"] = {"split": "val", "pictures": 1}
    (tmp_path / "my_recipe.toml").write_text(to_toml(recipe))
    page = (ROOT / "docs" / "python.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 6
    names: dict[str, Any] = {"__name__": "snippets"}
    for snippet in snippets:
        exec(compile(snippet, "docs/python.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} >= {"seen.jpg", "street.json", "clip.gif"}
    assert len(names["both"]) == 2
    assert names["steps"] == [1, 2]
    assert names["scores"]["mIoU"] >= 0
    assert not names["report"].missing
