"""``python -m fssops.predict`` on files of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fssops.data.layouts import open_data

SUPPORT = ["--support", "{f}/s0.png", "{f}/m0.png", "--query", "{f}/photos"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks of generated objects as a user would have them."""
    folder = tmp_path_factory.mktemp("files")
    source = open_data("generated", split="test", truth="few-shot", size=64, images_per_class=4)
    (folder / "photos").mkdir()
    for number, name in enumerate(source.images_of(5)[:4]):
        source.image(name).save(folder / f"s{number}.png")
        mask = (source.label_map(name, [5]) == 5).astype(np.uint8) * 255
        Image.fromarray(mask).save(folder / f"m{number}.png")
        source.image(name).resize((70 + number, 50)).save(folder / "photos" / f"q{number}.jpg")
        strokes = np.full((64, 64), 255, dtype=np.uint8)
        strokes[:3] = 0
        strokes[np.nonzero(mask)[0][:20], np.nonzero(mask)[1][:20]] = 1
        Image.fromarray(strokes).save(folder / f"k{number}.png")
    (folder / "photos" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def predict(tiny_run: Path, tmp_path: Path, verb: Any) -> Any:
    def run(*arguments: object, out: Path | None = None) -> tuple[int, str, str, Path]:
        folder = out or tmp_path / "out"
        return (*verb("predict", "--checkpoint", tiny_run, *arguments, "--out", folder), folder)

    return run


def test_folder_of_queries_is_segmented_at_its_own_size(files: Path, predict: Any) -> None:
    code, out, err, folder = predict("--support", files / "s0.png", files / "m0.png", "--query", files / "photos")
    assert code == 0, err
    assert "4 images segmented" in out
    for number in range(4):
        labels = Image.open(folder / f"q{number}_labels.png")
        assert (labels.mode, labels.size) == ("P", (70 + number, 50))
        assert set(np.unique(np.asarray(labels))) <= {0, 1}
        probability = np.asarray(Image.open(folder / f"q{number}_probability.png"))
        sure = np.abs(probability.astype(int) - 127.5) > 1
        assert np.array_equal((probability > 127)[sure], (np.asarray(labels) == 1)[sure])
        assert Image.open(folder / f"q{number}_overlay.jpg").size == (70 + number, 50)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["classes"] == ["background", "object"]
    assert [record["width"] for record in summary["images"]] == [70, 71, 72, 73]
    assert sum(summary["images"][0]["share"].values()) == pytest.approx(1.0)


def test_boxes_and_scribbles_mark_the_support_before_them(files: Path, predict: Any) -> None:
    query = ["--query", files / "photos" / "q1.jpg"]
    code, _, err, folder = predict("--support", files / "s0.png", "--box", "10,10,40,40", *query)
    assert code == 0, err
    assert json.loads((folder / "summary.json").read_text())["supports"][0]["boxes"] == [[10.0, 10.0, 40.0, 40.0]]
    code, _, err, _ = predict("--support", files / "s0.png", "--scribble", files / "k0.png", *query)
    assert code == 0, err


def test_several_classes_give_their_numbers_and_all_probabilities(files: Path, predict: Any) -> None:
    code, _, err, folder = predict(
        "--class", "cup", "--support", files / "s0.png", files / "m0.png",
        "--class", "plate", "--support", files / "s1.png", files / "m1.png",
        "--query", files / "photos" / "q2.jpg",
    )  # fmt: skip
    assert code == 0, err
    probabilities = np.load(folder / "q2_probabilities.npz")["probabilities"]
    assert probabilities.shape == (3, 50, 72)
    labels = np.asarray(Image.open(folder / "q2_labels.png"))
    assert (probabilities.argmax(0) == labels).mean() > 0.99
    assert json.loads((folder / "summary.json").read_text())["classes"] == ["background", "cup", "plate"]


def test_unreadable_query_costs_only_itself(files: Path, tmp_path: Path, predict: Any) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    code, out, _, folder = predict(
        "--support", files / "s0.png", files / "m0.png",
        "--query", tmp_path / "broken.jpg", files / "photos" / "q0.jpg",
    )  # fmt: skip
    assert code == 1
    assert "1 images could not be read" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["images"]) == 1
    assert "broken.jpg" in summary["failed"][0]["error"]


def test_equal_names_from_two_folders_are_kept_apart(files: Path, tmp_path: Path, predict: Any) -> None:
    (tmp_path / "more").mkdir()
    for name in ("q0.jpg", "q0-2.jpg"):
        Image.open(files / "photos" / "q0.jpg").save(tmp_path / "more" / name)
    code, _, err, folder = predict(
        "--support", files / "s0.png", files / "m0.png", "--query", files / "photos" / "q0.jpg", tmp_path / "more"
    )
    assert code == 0, err
    assert (folder / "q0_labels.png").exists()
    summary = json.loads((folder / "summary.json").read_text())
    written = [image["files"][0] for image in summary["images"]]
    assert written == ["q0_labels.png", "q0-2_labels.png", "q0-3_labels.png"]
    assert all((folder / name).exists() for name in written)


def test_bare_weights_with_a_model_name(tiny_run: Path, files: Path, tmp_path: Path, verb: Any, predict: Any) -> None:
    state = torch.load(tiny_run / "checkpoints" / "last.pt", weights_only=True)
    torch.save(state["model"], tmp_path / "bare.pth")
    support = ["--support", files / "s0.png", files / "m0.png", "--query", files / "photos" / "q0.jpg"]
    options = ["backbone=resnet18", "backbone_norm=batch", "backbone_width=8", "last_stage=res4"]
    arguments = [part for option in options for part in ("--option", option)]
    code, _, err = verb(
        "predict", "--model", "panet", "--weights", tmp_path / "bare.pth", *arguments, "--size", 48, *support,
        "--out", tmp_path / "bare",
    )  # fmt: skip
    assert code == 0, err
    _, _, _, folder = predict(*support)
    first, second = (np.asarray(Image.open(f / "q0_labels.png")) for f in (tmp_path / "bare", folder))
    assert np.array_equal(first, second)


def test_weights_without_settings_take_a_recipe_and_overrides(
    tiny_run: Path, files: Path, tmp_path: Path, verb: Any, predict: Any
) -> None:
    state = torch.load(tiny_run / "checkpoints" / "last.pt", weights_only=True)
    torch.save(state["model"], tmp_path / "bare.pth")
    support = ["--support", files / "s0.png", files / "m0.png", "--query", files / "photos" / "q0.jpg"]
    given = ["--checkpoint", tmp_path / "bare.pth", "--recipe", tiny_run / "settings.toml", *support]
    code, _, err = verb("predict", *given, "--out", tmp_path / "bare")
    assert code == 0, err
    _, _, _, folder = predict(*support)
    first, second = (np.asarray(Image.open(f / "q0_labels.png")) for f in (tmp_path / "bare", folder))
    assert np.array_equal(first, second)
    code, _, err = verb("predict", *given, "--set", "data.size=[40,56]", "--out", tmp_path / "other")
    assert code == 0, err
    assert json.loads((tmp_path / "other" / "summary.json").read_text())["size"] == [40, 56]


def test_images_are_padded_where_evaluation_pads_them(files: Path, predict: Any) -> None:
    support = ["--support", files / "s0.png", files / "m0.png", "--query", files / "photos" / "q0.jpg"]
    for geometry, fit in (("square", "stretch"), ("letterbox", "pad")):
        code, _, err, folder = predict(*support, "--set", f"data.geometry={geometry}")
        assert code == 0, err
        assert json.loads((folder / "summary.json").read_text())["fit"] == fit


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--query", "{f}/photos"], "at least one labelled image, got none"),
        (["--support", "{f}/s0.png", "{f}/m0.png"], "--query must be given"),
        (
            ["--support", "{f}/s0.png", "--query", "{f}/photos"],
            "must have one of a mask, --box or --scribble, got none",
        ),
        (["--support", "{f}/s0.png", "{f}/m0.png", "--box", "1,1,9,9", "--query", "{f}/photos"], "got mask and boxes"),
        (["--box", "1,1,2,2", "--support", "{f}/s0.png", "--query", "{f}/photos"], "must follow the --support"),
        (
            ["--support", "{f}/s0.png", "--box", "1,2,3", "--query", "{f}/photos"],
            "four numbers x0,y0,x1,y1, got '1,2,3'",
        ),
        (["--support", "{f}/s0.png", "--box", "40,1,9,9", "--query", "{f}/photos"], "0 <= x0 < x1"),
        (["--support", "{f}/s0.png", "{f}/none.png", "--query", "{f}/photos"], "none.png"),
        (["--support", "{f}/s0.png", "{f}/m0.png", "--query", "{f}/none"], "must be an image or a folder"),
        (["--support", "{f}/s0.png", "{f}/m0.png", "--query", "{f}/photos", "--out", "{f}/photos"], "another folder"),
        (["--support", "{f}/s0.png", "{empty}", "--query", "{f}/photos"], "must have foreground, got none"),
        (["--support", "{f}/s0.png", "{f}/m0.png", "--query", "{f}/photos", "--model", "panet"], "either --checkpoint"),
        ([*SUPPORT, "--task", "semantic"], "--task: a few-shot system has no use for it, got ['semantic']"),
        ([*SUPPORT, "--zip"], "--zip: a few-shot system has no use for it"),
        ([*SUPPORT, "--size", "0"], "--size: must be a whole number above 0, got '0'"),
        ([*SUPPORT, "--score", "nan"], "--score: must be a number from 0 to 1, got 'nan'"),
        ([*SUPPORT, "--device", "gpu"], "--device: must be auto, cpu, cuda, cuda:1, ... or mps, got 'gpu'"),
        ([*SUPPORT, "--device", "cuda:99"], "--device: cuda:99 must be available, got"),
        (["--class", "background", *SUPPORT], "none called background"),
    ],
)
def test_mistake_is_told_with_code_2(
    arguments: list[str], told: str, files: Path, tmp_path: Path, predict: Any
) -> None:
    empty = tmp_path / "empty.png"
    Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(empty)
    given = [text.format(f=files, empty=empty) for text in arguments]
    out = Path(given[given.index("--out") + 1]) if "--out" in given else None
    code, _, err, _ = predict(*given, out=out)
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) <= 2


def test_option_without_a_value_and_settings_of_a_bare_model_are_refused(
    files: Path, tmp_path: Path, verb: Any
) -> None:
    support = [*(text.format(f=files) for text in SUPPORT), "--out", tmp_path / "out"]
    bare = ["--model", "panet", "--weights", tmp_path / "none.pth"]
    code, _, err = verb("predict", *bare, "--option", "backbone", *support)
    assert (code, "--option: must read key=value, got 'backbone'" in err) == (2, True)
    code, _, err = verb("predict", *bare, "--set", "data.size=[48,48]", *support)
    assert (code, "--model: has no settings" in err) == (2, True)


def test_help_teaches_with_examples(verb: Any) -> None:
    code, out, _ = verb("predict", "--help")
    assert code == 0
    assert "--box 40,25,310,280" in out
