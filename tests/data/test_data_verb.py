"""python -m fssops.data: what check finds, exit codes, and the other commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_folders import EXAMPLES, ade20k, splits_without_a_class_file, voc
from PIL import Image

from fssops.command_line import exit_code_of
from fssops.data import check, folds, pictures
from fssops.data.__main__ import main
from fssops.data.episodes import EpisodeList
from fssops.data.layouts import open_data


def run(*arguments: object) -> int:
    try:
        return exit_code_of("data", main, [str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def kinds(report: check.Report) -> dict[str, int]:
    return {k: n for k, n in report.counts().items() if k != "empty_class"}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def test_sound_data_set_passes_with_exit_code_0(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kinds(check.check_data("voc", voc_folder)) == {}
    assert run("check", voc_folder) == 1, "17 of VOC's classes are empty here"
    assert "empty_class" in capsys.readouterr().out
    assert run("check", voc_folder, "--allow", "empty_class") == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (
            lambda r: (r / "JPEGImages/im03.jpg").write_bytes(b""),
            "unreadable_image",
            "im03.jpg: image must not be empty",
        ),
        (lambda r: (r / "JPEGImages/im03.jpg").unlink(), "unreadable_image", "im03.jpg: image must exist"),
        (
            lambda r: (r / "JPEGImages/im03.jpg").write_bytes((r / "JPEGImages/im03.jpg").read_bytes()[:900]),
            "unreadable_image",
            "im03.jpg: image must decode completely",
        ),
        (lambda r: (r / "SegmentationClass/im03.png").unlink(), "unreadable_mask", "im03.png: mask must exist"),
        (
            lambda r: (r / "SegmentationClass/im03.png").write_text("no"),
            "unreadable_mask",
            "im03.png: mask must be one",
        ),
        (lambda r: save(r / "SegmentationClass/im03.png", np.zeros((9, 9))), "wrong_size", "60 x 40, got 9 x 9"),
        (lambda r: save(r / "SegmentationClass/im03.png", np.full((40, 60), 77)), "unknown_id", "got 77 (2400 px)"),
        (
            lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("im09\nim09\n"),
            "duplicate_id",
            "'im09' in lines 1",
        ),
        (lambda r: (r / "ImageSets/Segmentation/val.txt").write_text(""), "unreadable_layout", "at least one image"),
        (
            lambda r: shutil.copy(r / "JPEGImages/im00.jpg", r / "JPEGImages/im10.jpg"),
            "fold_leakage",
            "im10 of val must not be in train, got the same picture as im00",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("im09\nim10\nim02\n"),
            "fold_leakage",
            "im02 of val must not be in train",
        ),
    ],
)
def test_each_fault_of_a_voc_folder_is_found_and_named(
    voc_folder: Path, spoil: Callable[[Path], object], kind: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(voc_folder)
    report = check.check_data("voc", voc_folder)
    assert kinds(report) == {kind: 1}
    assert text in next(f.message for f in report.findings if f.kind == kind)
    assert run("check", voc_folder, "--allow", "empty_class") == 1
    assert kind in capsys.readouterr().out


def test_kind_of_a_finding_does_not_depend_on_what_a_folder_is_called(tmp_path: Path) -> None:
    root = tmp_path / "seen once, made for unique annotations"
    save(root / "cup" / "images" / "a.jpg", np.zeros((4, 4, 3)))
    assert kinds(check.check_data("folder", root)) == {"unreadable_layout": 1}
    (root / "cup" / "masks").mkdir()
    save(root / "cup" / "images" / "a.png", np.zeros((4, 4, 3)))
    assert kinds(check.check_data("folder", root)) == {"duplicate_id": 1}


def test_one_broken_mask_of_a_folder_is_one_finding(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "cup" / f"{name}.jpg", np.random.default_rng(ord(name)).integers(0, 256, (4, 4, 3)))
        save(tmp_path / "cup" / f"{name}.png", np.eye(4) * 255)
    (tmp_path / "cup" / "b.png").write_bytes(b"")
    (finding,) = check.check_data("folder", tmp_path).findings
    assert (finding.kind, finding.where) == ("unreadable_mask", "all: cup/b.jpg")


def test_faults_of_coco_annotations_are_found_all_at_once(coco_folder: Callable[..., Path]) -> None:
    good = [[5, 5, 25, 5, 25, 25]]
    root = coco_folder(
        [
            {"image_id": 1, "category_id": 1, "segmentation": good},
            {"image_id": 1, "category_id": 4, "segmentation": [[1, 1, 2, 2]]},
            {"image_id": 77, "category_id": 4, "segmentation": good},
            {"image_id": 2, "category_id": 99, "segmentation": good},
            {"image_id": 2, "category_id": 9, "segmentation": [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]},
            {"id": 1, "image_id": 2, "category_id": 9, "segmentation": good},
        ]
    )
    report = check.check_data("coco", root)
    found = {k: [f.message.split(": ", 1)[-1] for f in report.findings if f.kind == k] for k in report.counts()}
    assert found["bad_annotation"] == [
        "annotation 2 dropped: fewer than 3 points",
        "annotation 3 dropped: image id 77 not in images",
        "annotation 4 dropped: category id 99 not in categories",
        "annotation 5 must cover a pixel of 000000000002.jpg, got none; it trains nothing",
    ]
    assert found["duplicate_id"] == [
        "annotations[5]: id must be a whole number that no other annotation has, got 1; it is called 6"
    ]
    assert [f.message for f in report.findings if f.kind == "empty_class"] == [
        "class 'dog' (2) must have an image, got none"
    ]


def test_truncated_json_is_a_finding_not_a_traceback(
    coco_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco_folder([])
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text()[:-20])
    assert run("check", root) == 1
    captured = capsys.readouterr()
    assert "unreadable_layout" in captured.out
    assert captured.err == ""


def test_fold_reports_novel_classes_in_training_as_a_note_and_small_classes_as_problems(voc_folder: Path) -> None:
    report = check.check_data("voc", voc_folder, splits=["train"], fold=folds.pascal5i(1), need=2)
    (note,) = [f for f in report.findings if f.kind == "fold_leakage"]
    assert note.severity == "note"
    assert "1 of 9 images hold novel classes of pascal5i fold 1" in note.message
    (small,) = [f for f in report.findings if f.kind == "too_few_images"]
    assert "'car' (7), a novel class of pascal5i fold 1 (panet), must have at least 2 images, got 1" in small.message


def test_episode_lists_are_searched_for_leakage(voc_folder: Path, tmp_path: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    EpisodeList.draw(source, [1, 2], episodes=20).save(tmp_path / "train.json")
    EpisodeList.draw(source, [2, 3], episodes=20).save(tmp_path / "test.json")
    found = list(
        check.check_episodes(
            EpisodeList.load(tmp_path / "train.json"),
            EpisodeList.load(tmp_path / "test.json"),
            source,
            folds.pascal5i(0),
        )
    )
    messages = [f.message for f in found if f.severity == "problem"]
    assert "class 'bicycle' (2) must not be trained and tested, got it in both" in messages
    assert "class 'aeroplane' (1) must not be a novel class of pascal5i fold 0 (panet)" in messages
    arguments = ("--allow", "empty_class", "--train-episodes", tmp_path / "train.json")
    assert run("check", voc_folder, *arguments) == 0
    assert run("check", voc_folder, *arguments, "--test-episodes", tmp_path / "test.json") == 1


def test_support_that_is_also_the_query_is_leakage(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    drawn = EpisodeList.draw(source, [1, 2, 3], episodes=3)
    spoilt = drawn.episodes[0].__class__((1,), (("im00",),), ("im00",), (0,))
    bad = EpisodeList((spoilt,), 1, 1, 1, None, drawn.class_names)
    (finding,) = check.check_episodes(bad, None, None, None)
    assert "support and query must be different images, got 'im00' as both" in finding.message


def test_json_report_holds_every_finding(voc_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(voc_folder / "SegmentationClass/im03.png", np.zeros((9, 9)))
    assert run("check", voc_folder, "--json", tmp_path / "r.json", "--allow", "empty_class") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["ok"] is False
    assert report["counts"]["wrong_size"] == 1
    assert report["splits"]["train"]["images"] == 9
    capsys.readouterr()
    assert run("check", voc_folder, "--json", "-") == 1
    assert json.loads(capsys.readouterr().out)["format"] == "voc"


def test_wrong_usage_and_missing_folders_exit_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["check", "/no/such/folder"],
        ["list", "/no/such/folder"],
        ["check", "--fold", "9"],
        ["check", "--format", "voc"],
        ["check", "--format", "coco"],
        ["check", "--train-episodes", "/no/such/list.json"],
        ["list", "--fold", "1"],
        ["episodes", "--episodes", "0"],
        ["episodes", "--min-area", "-5"],
        ["episodes", "--side", "train"],
        ["preview", "--size", "0"],
        ["preview", "--output", "picture.xyz"],
        ["preview", "--output", "picture"],
        ["preview", "--augment", "blur"],
        ["lsit"],
        [],
    ):
        assert run(*arguments) == 2, arguments
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert 1 <= len(captured.err.strip().splitlines()) <= 2
    assert run("check", "--help") == 0
    assert "kinds of findings" in capsys.readouterr().out


def test_names_are_shown_as_they_are_whatever_brackets_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("[red]cat", ":cat: [b"):
        save(tmp_path / name / "images" / "[i].jpg", np.random.default_rng(len(name)).integers(0, 256, (4, 4, 3)))
        save(tmp_path / name / "masks" / "[i].png", np.eye(4) * 255)
    assert run("list", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "[red]cat" in shown
    assert ":cat: [b" in shown
    (tmp_path / ":cat: [b" / "images" / "[i].jpg").write_bytes(b"")
    assert run("check", tmp_path, "--allow", "empty_class") == 1
    shown = capsys.readouterr().out
    assert "all: :cat: [b/[i].jpg" in shown
    assert "1 problem, 1 note\n" in shown


def test_file_without_a_class_is_listed_as_empty(
    coco_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("list", coco_folder([], categories=())) == 0
    assert "3 images, 0 classes" in capsys.readouterr().out


def test_check_takes_the_fold_of_the_classes_that_are_there(
    coco_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    categories = tuple((i, f"c{i}") for i in range(1, 9))
    shape = [[1, 1, 9, 1, 9, 9, 1, 9]]
    things = [{"image_id": i, "category_id": i, "segmentation": shape} for i in range(1, 9)]
    root = coco_folder(things, images=8, categories=categories)
    assert run("check", root, "--fold", 1, "--json", "-") == 0
    (note,) = json.loads(capsys.readouterr().out)["findings"]
    assert "2 of 8 images hold novel classes of custom fold 1 (contiguous)" in note["message"]


def test_check_of_an_annotation_file_is_titled_by_it(
    coco_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco_folder([])
    annotations = root / "annotations" / "instances_train2017.json"
    allowed = ("--allow", "empty_class", "--allow", "nothing_to_learn")
    assert run("check", "--annotations", annotations, "--images", root / "train2017", *allowed) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "instances_train2017.json(coco)" in shown
    assert "generated" not in shown


@pytest.mark.parametrize(
    ("arguments", "definition", "min_area", "crowd"),
    [
        (("--protocol", "msanet"), "msanet", 2048, "ignore"),
        (("--protocol", "msanet", "--min-area", 1, "--definition", "panet"), "panet", 1, "ignore"),
        (("--protocol", "panet"), "panet", 1, "object"),
        (("--protocol", "panet_coco"), "panet", 1, "object"),
        (("--protocol", "mm_former"), "msanet", 2048, "background"),
        ((), "panet", 1, "ignore"),
    ],
)
def test_episodes_are_drawn_from_the_classes_and_images_that_the_protocol_names(
    coco_folder: Callable[..., Path],
    tmp_path: Path,
    arguments: tuple[object, ...],
    definition: str,
    min_area: int,
    crowd: str,
) -> None:
    categories = tuple((i, f"c{i}") for i in range(1, 81))
    whole = [[0, 0, 60, 0, 60, 40, 0, 40]]
    classes = sorted({*folds.coco20i(1).test, *folds.coco20i(1, "msanet").test})
    things = [{"image_id": i, "category_id": c, "segmentation": whole} for c in classes for i in (1, 2, 3)]
    root, file = coco_folder(things, categories=categories), tmp_path / "list.json"
    assert run("episodes", root, "--fold", 1, "--episodes", 3, "-o", file, *arguments) == 0
    drawn = EpisodeList.load(file)
    assert list(drawn.class_names) == folds.coco20i(1, definition).test
    assert drawn.options["min_area"] == min_area
    assert drawn.source["crowd"] == crowd


def test_list_counts_images_of_each_class_and_its_fold(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", voc_folder, "--json") == 0
    classes = {c["class"]: c for c in json.loads(capsys.readouterr().out)["classes"]}
    assert classes["aeroplane"] == {
        "id": 1,
        "class": "aeroplane",
        "tested in fold": 0,
        "images": 3,
        "median pixels": 400,
    }
    assert classes["car"]["tested in fold"] == 1
    assert classes["tvmonitor"]["images"] == 0
    assert run("list", voc_folder) == 0
    assert "aeroplane" in capsys.readouterr().out


def test_episodes_are_written_once_and_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        arguments = ("--fold", 1, "--shots", 2, "--episodes", 7, "--seed", 5, "-o", tmp_path / name)
        assert run("episodes", *arguments) == 0
    loaded = EpisodeList.load(tmp_path / "a.json")
    assert loaded == EpisodeList.load(tmp_path / "b.json")
    assert loaded.hash in capsys.readouterr().out
    assert (len(loaded), loaded.shots, loaded.seed, loaded.fold) == (7, 2, 5, "generated fold 1 (interleaved)")
    assert set(loaded.class_names) == set(range(2, 29, 4))
    assert run("episodes", "--shots", 10_000, "-o", tmp_path / "c.json") == 2
    assert "must have at least 10001 images" in capsys.readouterr().err


def test_preview_draws_background_strokes_of_scribbles_only() -> None:
    image, inside = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
    inside[0] = False  # an object that leaves little background
    masks = pictures.support_picture(image, inside, ~inside, 0)
    assert (masks[0] == 0).all()
    assert (pictures.support_picture(image, inside, ~inside, 0, strokes=True)[0] == 255).all()


def test_preview_of_an_empty_list_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_data("generated", truth="few-shot")
    replace(EpisodeList.draw(source, [1], episodes=1), episodes=()).save(tmp_path / "none.json")
    assert run("preview", "--episode-list", tmp_path / "none.json", "-o", tmp_path / "x.png") == 2
    assert "none.json: episode list must hold at least one episode, got none" in capsys.readouterr().err


def test_preview_draws_a_row_an_episode(tmp_path: Path) -> None:
    file = tmp_path / "new" / "grid.png"
    assert run("preview", "--episodes", 3, "--shots", 2, "--size", 64, "--annotation", "box", "-o", file) == 0
    width, height = Image.open(file).size
    assert width == 3 * 64 + 2 * 4
    assert height == 3 * (64 + 14 + 4)
    assert len(np.unique(np.asarray(Image.open(file)).reshape(-1, 3), axis=0)) > 500


SHEETS = [write for write in EXAMPLES if write is not splits_without_a_class_file]


@pytest.mark.parametrize("write", SHEETS, ids=lambda write: write.__name__)
def test_preview_of_a_folder_is_a_sheet_with_a_legend_of_its_classes(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "data")
    file = tmp_path / "new" / "sheet.png"
    truth = next(truth for truth in EXAMPLES[write] if write is not ade20k or truth == "semantic")
    assert run("preview", tmp_path / "data", "--truth", truth, "--count", 2, "--out", file) == 0
    sheet = np.asarray(Image.open(file).convert("RGB"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 200
    assert any(np.ptp(colour) > 30 for colour in sheet[-40:].reshape(-1, 3)), "the legend shows a colour"


def test_sheet_draws_each_region_in_the_colour_of_its_class(tmp_path: Path) -> None:
    voc(tmp_path)
    source = open_data("voc", tmp_path, truth="semantic")
    sheet = np.asarray(pictures.truth_sheet(source, side=60))
    for name in ("aeroplane", "person"):
        assert (sheet == source.classes.colours[source.classes.names.index(name)]).all(-1).any(), name
    assert not (sheet == source.classes.colours[2]).all(-1).any()


def test_options_of_episodes_and_of_sheets_do_not_mix(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preview", voc_folder, "--truth", "semantic", "--shots", 2) == 2
    assert "--truth: must be left out for episodes (--shots)" in capsys.readouterr().err
    file = voc_folder / "episodes.png"
    assert run("preview", voc_folder, "--episodes", 2, "--size", 64, "--too-few", "skip", "-o", file) == 0
    assert Image.open(file).size == (2 * 64 + 4, 2 * (64 + 14 + 4))


def test_split_writes_lists_that_every_command_takes(voc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("split", voc_folder, "--val", 1 / 3, "--seed", 1)
    assert run(*arguments) == 0
    told = capsys.readouterr()
    assert "aeroplane" in told.out
    assert "no images of car in val" in told.err
    assert "tvmonitor" not in told.err
    lists = {part: voc_folder / "splits" / f"{part}.txt" for part in ("train", "val")}
    names = {part: file.read_text().splitlines() for part, file in lists.items()}
    assert [len(of_part) for of_part in names.values()] == [7, 4], "with their first lines"
    assert run(*arguments) == 0
    assert run(*arguments[:-1], 2) == 2
    assert "train.txt: list must be new, or the same again" in capsys.readouterr().err
    assert {part: file.read_text().splitlines() for part, file in lists.items()} == names
    allow = ("--allow", "empty_class")
    assert run("check", voc_folder, "--split", "splits/train.txt", "--split", "splits/val.txt", *allow) == 0
    assert run("list", voc_folder, "--split", lists["val"], "--json") == 0
    listed = capsys.readouterr().out
    assert json.loads(listed[listed.index("{") :])["source"]["images"] == 3
    assert run("split", voc_folder, "--val", 0.6, "--test", 0.5) == 2
    assert "shares must be above 0 and leave some for train" in capsys.readouterr().err
