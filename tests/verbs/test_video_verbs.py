"""Train, evaluate and predict with a video system, on a tiny recipe over generated videos."""

from __future__ import annotations

import json
import sys
import types
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_video import TINY, settings_arguments

import fssops
from fssops.data.layouts import known_classes
from fssops.run_lengths import decode
from fssops.tasks import load_task, resumable_evaluation
from fssops.tasks.prediction_inputs import find_pictures
from fssops.tasks.video import VideoTask
from fssops.tasks.video_files import find_videos, write_video

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="session")
def video_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; do not write into it."""
    from fssops.train import main

    folder = tmp_path_factory.mktemp("video") / "run"
    assert main(["mask2former_vis_generated", "--out", str(folder), *settings_arguments()]) == 0
    return folder


def write_frames(folder: Path, count: int = 4, size: tuple[int, int] = (40, 56), seed: int = 0) -> Path:
    """A folder of pictures of a video, named by numbers."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (size[0], size[1] + 4 * count, 3), dtype=np.uint8)
    for t in range(count):
        Image.fromarray(wide[:, 4 * t : 4 * t + size[1]]).save(folder / f"{t:05d}.png")
    return folder


def test_training_leaves_scores_pictures_and_a_submission(video_run: Path) -> None:
    result = json.loads((video_run / "result.json").read_text())
    for who in ("trained", "untrained"):
        assert (result[who]["videos"], result[who]["of"], result[who]["frames"]) == (3, 4, 15)
        assert set(result[who]["scores"]) == {"AP", "AP50", "AP75", "AR1", "AR10"}
        assert len(result[who]["instances"]["class_ap"]) == 5
    assert (
        "generated_videos val, 3 of 4 videos (15 frames), frames' own size, whole videos" in result["trained"]["line"]
    )
    for name in ("curves.png", "grid.png", "best.png", "worst.png"):
        with Image.open(video_run / name) as picture:
            assert min(picture.size) > 200
    metrics = [json.loads(line) for line in (video_run / "metrics.jsonl").read_text().splitlines()]
    assert {"val/ap", "val/ar10"} <= set(metrics[-1])
    assert {"loss_ce", "loss_mask_0", "loss_dice"} <= set(metrics[0])
    assert (video_run / "submission.zip").is_file()


def test_a_submission_has_the_official_form(video_run: Path) -> None:
    rows = json.loads((video_run / "submission.json").read_text())
    with zipfile.ZipFile(video_run / "submission.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert json.loads(archive.read("results.json")) == rows
    assert len(rows) == 3 * 10
    assert {row["video_id"] for row in rows} == {1, 2, 3}  # of four videos the first three of every 4 / 3
    for row in rows:
        assert set(row) == {"video_id", "category_id", "score", "segmentations"}
        assert 1 <= row["category_id"] <= 5
        assert len(row["segmentations"]) == 5
        assert all(s is None or (s["size"] == [48, 48] and isinstance(s["counts"], str)) for s in row["segmentations"])


def test_evaluation_of_a_run_repeats_its_scores(video_run: Path, tmp_path: Path, verb: Any) -> None:
    code, out, err = verb("evaluate", video_run, "--classes", "--out", tmp_path / "e")
    assert code == 0, err
    trained = json.loads((video_run / "result.json").read_text())["trained"]
    again = json.loads((tmp_path / "e" / "results.json").read_text())["results"][0]
    assert again["scores"] == pytest.approx(trained["scores"], nan_ok=True)
    assert "triangle" in out
    assert "submission.zip" in out


def test_evaluation_clip_by_clip_says_so_and_covering_clips_change_nothing(
    video_run: Path, tmp_path: Path, verb: Any
) -> None:
    scores = {}
    for window in (0, 3, 5):
        sets = ["--set", f"eval.window={window}", "--set", "eval.pictures=0"]
        code, out, err = verb("evaluate", video_run, "--out", tmp_path / str(window), *sets)
        assert code == 0, err
        files = {"results.json", "submission.json", "submission.zip"}
        assert {path.name for path in (tmp_path / str(window)).iterdir()} == files
        assert out.splitlines()[-1] == f"written: {tmp_path / str(window)}/ ({', '.join(sorted(files))})"
        assert ("whole videos" if not window else f"clips of {window} frames that share 2") in out
        scores[window] = (tmp_path / str(window) / "submission.json").read_text()
    assert scores[5] == scores[0]
    assert scores[3] != scores[0]


def test_loader_processes_read_the_same_frames(video_run: Path, tmp_path: Path, verb: Any) -> None:
    options = ["--set", "eval.options={size=48,videos=2,frames=10}", "--set", "eval.videos=1"]
    found = []
    for workers in (0, 1):
        arguments = [*options, "--set", f"eval.workers={workers}", "--out", tmp_path / str(workers)]
        assert verb("evaluate", video_run, *arguments)[0] == 0
        found.append((tmp_path / str(workers) / "submission.json").read_text())
    assert found[0] == found[1]


def test_processes_count_what_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes for three videos and one that has none."""
    from contextlib import nullcontext

    task = VideoTask(load_task("mask2former_vis_generated", TINY).settings)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = fssops.create_model("mask2former_vis", **task.settings.model.options)
    states: list[Any] = []

    def run(rank: int, world_size: int) -> Any:
        fabric = SimpleNamespace(
            global_rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
            is_global_zero=rank == 0,
            autocast=nullcontext,
        )
        return task.evaluate(model, fabric, "m", "").result  # type: ignore[arg-type]

    def gathered(state: Any, world_size: int) -> list[Any]:
        states.append({key: dict(value) for key, value in state.items()})
        return states if len(states) == world_size else [state]

    monkeypatch.setattr(resumable_evaluation, "gathered", gathered)
    together = [run(rank, 4) for rank in range(4)][-1]
    alone = run(0, 1)
    assert states[3]["metrics"] == {"video instances": {}}
    assert together.scores() == pytest.approx(alone.scores(), nan_ok=True, abs=0)
    assert together.quality == alone.quality


def classes_of_the_run() -> list[dict[str, Any]]:
    names = known_classes("generated_videos", "video").names  # type: ignore[union-attr]
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def test_a_split_without_truth_gives_a_submission_and_no_scores(
    video_run: Path, tmp_path: Path, data_root: Path, verb: Any
) -> None:
    body = json.loads((data_root / "davis_mini" / "val" / "instances.json").read_text())
    body["annotations"] = None
    body["categories"] = classes_of_the_run()
    body["videos"] = body["videos"][:1]
    (tmp_path / "valid.json").write_text(json.dumps(body))
    sets = [
        "data.source=ytvis",
        f'eval.options={{annotations="{tmp_path}/valid.json",frames="{data_root}/davis_mini/val/JPEGImages"}}',
        f"data.root={tmp_path}",
        "eval.short_side=64",
        "eval.videos=0",
    ]
    arguments = [part for override in sets for part in ("--set", override)]
    code, out, err = verb("evaluate", video_run, "--out", tmp_path / "e", *arguments)
    assert code == 0, err
    assert "no truth, no scores" in out
    assert len(json.loads((tmp_path / "e" / "submission.json").read_text())) == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_frame_stops_evaluation_with_its_name(
    video_run: Path, tmp_path: Path, verb: Any, workers: int
) -> None:
    folder = write_frames(tmp_path / "frames" / "clip", 12)
    (folder / "00007.png").unlink()
    files = [f"clip/{t:05d}.png" for t in range(12)]
    row = {"id": 1, "width": 56, "height": 40, "length": 12, "file_names": files}
    body = {"videos": [row], "categories": classes_of_the_run(), "annotations": []}
    (tmp_path / "val.json").write_text(json.dumps(body))
    sets = [
        "data.source=ytvis",
        f'eval.options={{annotations="{tmp_path}/val.json",frames="{tmp_path}/frames"}}',
        f"data.root={tmp_path}",
        f"eval.workers={workers}",
    ]
    arguments = [part for override in sets for part in ("--set", override)]
    code, _, err = verb("evaluate", video_run, "--out", tmp_path / "e", *arguments)
    assert code == 2
    assert err.strip().endswith("00007.png: frame 7 of video clip must exist, got no such file")
    assert "Traceback" not in err


def predict(verb: Any, run: Path, out: Path, *arguments: object) -> tuple[int, str, str]:
    return verb("predict", "--checkpoint", run, "--device", "cpu", "--out", out, *arguments)  # type: ignore[no-any-return]


def test_options_of_other_systems_are_refused(video_run: Path, tmp_path: Path, verb: Any) -> None:
    frame = write_frames(tmp_path / "clip") / "00000.png"
    out, query = tmp_path / "o", ["--query", tmp_path / "clip"]
    code, _, err = predict(verb, video_run, out, "--support", frame, frame, *query)
    assert (code, "--support: mask2former_vis has fixed classes and takes no labelled images" in err) == (2, True)
    for option, told in ((["--class", "cup"], "--class: a video"), (["--no-probability"], "--no-probability: a")):
        code, _, err = predict(verb, video_run, out, *option, *query)
        assert (code, told in err) == (2, True)


def test_prediction_of_a_folder_of_frames(video_run: Path, tmp_path: Path, verb: Any) -> None:
    write_frames(tmp_path / "clip")
    code, out, err = predict(verb, video_run, tmp_path / "o", "--query", tmp_path / "clip", "--score", "0", "--zip")
    assert code == 0, err
    assert "1 videos segmented" in out
    rows = json.loads((tmp_path / "o" / "results.json").read_text())
    assert len(rows) == 10
    assert all(len(row["segmentations"]) == 4 for row in rows)
    assert all(decode(s).shape == (40, 56) for row in rows for s in row["segmentations"] if s)
    assert sorted(p.name for p in (tmp_path / "o" / "frames" / "clip").iterdir()) == [f"{t:06d}.jpg" for t in range(4)]
    assert (tmp_path / "o" / "results.zip").is_file()
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["videos"][0] | {"file": ""} == {
        "id": 1, "name": "clip", "file": "", "length": 4, "height": 40, "width": 56,
        "frames": [f"{t:05d}.png" for t in range(4)],
    }  # fmt: skip
    with Image.open(next((tmp_path / "o").glob("clip.*"))) as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]


def test_prediction_of_an_animated_file_and_of_folders_in_a_folder(video_run: Path, tmp_path: Path, verb: Any) -> None:
    root = tmp_path / "videos"
    write_frames(root / "a", 3)
    write_frames(root / "b", 2, (33, 47))
    frames = (np.asarray(Image.open(p)) for p in sorted((root / "a").iterdir()))
    write_video(root / "moving.gif", frames, 5.0)
    code, _, err = predict(verb, video_run, tmp_path / "o", "--query", root, "--video", "none")
    assert code == 0, err
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert [(v["name"], v["length"]) for v in summary["videos"]] == [("moving", 3), ("a", 3), ("b", 2)]
    assert {row["video_id"] for row in json.loads((tmp_path / "o" / "results.json").read_text())} == {1, 2, 3}
    assert not list((tmp_path / "o").glob("*.webp"))


def test_video_files_are_read_and_written_by_the_decoder(
    video_run: Path, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package av, which is an extra: three frames in, three frames out, twice read."""
    opened, written = [], []

    class Container:
        def __enter__(self) -> Container:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def decode(self, video: int) -> Any:
            opened.append(video)
            for value in (50, 120, 200):
                yield SimpleNamespace(to_ndarray=lambda format, v=value: np.full((33, 41, 3), v, dtype=np.uint8))

        def add_stream(self, codec: str, rate: int) -> Any:
            return SimpleNamespace(encode=lambda frame=None: [] if frame is None else [frame])

        def mux(self, packets: list[Any]) -> None:
            written.extend(packets)

    decoder = types.ModuleType("av")
    decoder.open = lambda path, mode="r": Container()  # type: ignore[attr-defined]
    decoder.error = SimpleNamespace(FFmpegError=RuntimeError)  # type: ignore[attr-defined]
    decoder.VideoFrame = SimpleNamespace(from_ndarray=lambda image, format: image)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", decoder)
    (tmp_path / "film.mp4").write_bytes(b"0")
    code, out, err = predict(verb, video_run, tmp_path / "o", "--query", tmp_path / "film.mp4")
    assert code == 0, err
    assert "a .mp4 each" in out
    assert [frame.shape for frame in written] == [(32, 40, 3)] * 3
    rows = json.loads((tmp_path / "o" / "results.json").read_text())
    assert all(len(row["segmentations"]) == 3 for row in rows)
    assert len(list((tmp_path / "o" / "frames" / "film").iterdir())) == 3
    assert opened


def test_unreadable_frames_are_left_out_and_reported(video_run: Path, tmp_path: Path, verb: Any) -> None:
    folder = write_frames(tmp_path / "clip")
    (folder / "00001.png").write_bytes(b"no picture")
    code, _, _ = predict(verb, video_run, tmp_path / "o", "--query", folder)
    assert code == 1
    rows = json.loads((tmp_path / "o" / "results.json").read_text())
    assert all(len(row["segmentations"]) == 4 and row["segmentations"][1] is None for row in rows)
    failed = json.loads((tmp_path / "o" / "summary.json").read_text())["failed"]
    assert [row["frame"] for row in failed] == ["1"]
    assert "00001.png" in failed[0]["error"]


def test_a_video_of_mixed_sizes_costs_no_other(video_run: Path, tmp_path: Path, verb: Any) -> None:
    write_frames(tmp_path / "v" / "mixed", 2)
    Image.new("RGB", (20, 40)).save(tmp_path / "v" / "mixed" / "00009.png")
    write_frames(tmp_path / "v" / "whole", 2)
    code, _, _ = predict(verb, video_run, tmp_path / "o", "--query", tmp_path / "v")
    assert code == 1
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert [v["name"] for v in summary["videos"]] == ["whole"]
    assert "frame 2 must have the size of the first, 56 x 40, got 20 x 40" in summary["failed"][0]["error"]


def test_bad_queries_are_told(video_run: Path, tmp_path: Path, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"0000")
    for query, told in (
        ("nowhere", "--query: nowhere must be a video or a folder of frames, got nothing there"),
        (tmp_path / "empty", "must hold frames, videos or folders of frames, got none"),
        (tmp_path / "film.mp4", "is a video, which needs the package av: install fssops[video]"),
    ):
        code, _, err = predict(verb, video_run, tmp_path / "o", "--query", query)
        assert code == 2
        assert told in err
        assert "Traceback" not in err
    write_frames(tmp_path / "clip")
    code, _, err = predict(verb, video_run, tmp_path / "clip", "--query", tmp_path / "clip")
    assert (code, "must be another folder than that of the queries" in err) == (2, True)
    code, _, err = predict(verb, video_run, tmp_path / "o", "--query", tmp_path / "clip", "--task", "panoptic")
    assert (code, "finds instances alone" in err) == (2, True)
    for rate in ("0", "-1", "nan", "inf"):
        code, _, err = predict(verb, video_run, tmp_path / "o", "--query", tmp_path / "clip", f"--rate={rate}")
        assert (code, "--rate: frames a second must be a number above 0" in err) == (2, True)


def test_videos_of_one_name_are_kept_apart_from_a_third_that_is_called_like_the_second(tmp_path: Path) -> None:
    for name in ("a/clip", "b/clip", "b/clip-2"):
        write_frames(tmp_path / name, 1)
    found = find_videos([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [video.name for video in found] == ["clip", "clip-3", "clip-2"]


def test_pictures_given_one_by_one_are_one_video(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 3)
    found = find_videos([str(folder / f"{t:05d}.png") for t in (2, 0)])
    assert [(v.name, [p.name for p in v.paths]) for v in found] == [("clip", ["00002.png", "00000.png"])]


def test_an_image_checkpoint_starts_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fssops.tasks.trained_models import build_model

    options = [override for override in TINY if override.startswith("model.")]
    settings = load_task("mask2former_vis_generated", options).settings
    image_options = {k: v for k, v in settings.model.options.items() if k != "num_classes"}
    image = fssops.create_model("mask2former", num_classes=80, tasks=("instance",), **image_options)
    from fssops.weights import save_weights

    save_weights(image, tmp_path / "coco.safetensors")
    started = load_task("mask2former_vis_generated", [*options, f"model.weights={tmp_path}/coco.safetensors"]).settings
    with caplog.at_level("INFO", logger="fssops"):
        model = build_model(started, new_head="tell")
    said = caplog.text
    assert "tensors of the model" in said
    assert "starts anew, other classes: transformer_decoder.class_embed.weight [81, 32] -> [6, 32]" in said
    own, given = model.state_dict(), image.state_dict()
    same = [k for k in own if own[k].shape == given[k].shape and torch.equal(own[k], given[k])]
    assert len(own) - len(same) == 2


def test_a_bad_step_on_clips_is_kept_and_replayed(tmp_path: Path, verb: Any) -> None:
    settings = settings_arguments("optim.lr=1e30", "optim.clip_norm=0", "schedule.steps=20")
    code, _, err = verb("train", "mask2former_vis_generated", "--out", tmp_path / "run", "--no-eval", *settings)
    assert code == 1
    assert "non-finite training:" in err
    code, out, _ = verb("train", "--replay", next((tmp_path / "run").glob("nonfinite_step*.pt")))
    assert code == 1
    assert "images: train-" in out


def test_data_check_tells_videos_from_images_and_other_layouts(tmp_path: Path, data_root: Path, verb: Any) -> None:
    code, out, _ = verb("data.__main__", "check", data_root / "davis_mini")
    assert code == 0
    assert "(ytvis)" in out
    assert "videos" in out
    code, out, _ = verb("data.__main__", "check", data_root / "coco_mini", "--split", "val2017")
    assert "(coco)" in out


def test_models_lists_the_video_system_with_its_recipes() -> None:
    from fssops.models.__main__ import recipes_of

    assert "mask2former_vis_ytvis2019_r50" in recipes_of("mask2former_vis")
    assert not [name for name in recipes_of("mask2former") if "_vis_" in name]
    assert known_classes("ovis", "video") is not None


def test_frames_come_in_the_order_of_their_numbers_without_hidden_files(tmp_path: Path) -> None:
    for place in ("clip", "several/clip-10", "several/clip-9"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(1, 13):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / place / f"{number}.png")
        (tmp_path / place / "._3.png").write_bytes(b"not a picture")
    expected = [f"{number}.png" for number in range(1, 13)]
    (video,) = find_videos([str(tmp_path / "clip")])
    assert [path.name for path in video.paths] == expected
    assert [int(picture[0, 0, 0]) for _, picture in video.frames()] == list(range(1, 13))
    assert not video.unreadable
    several = find_videos([str(tmp_path / "several")])
    assert [video.name for video in several] == ["clip-9", "clip-10"]
    assert [path.name for path in several[1].paths] == expected
    assert [path.name for path in find_pictures([str(tmp_path / "clip")])] == expected


def test_predictions_of_frames_name_them(video_run: Path, tmp_path: Path, verb: Any) -> None:
    folder = write_frames(tmp_path / "clip", 3)
    for number, old in enumerate(sorted(folder.iterdir())):
        old.rename(folder / f"shot{9 + number}.png")
    code, _, errors = verb(
        "predict", "--checkpoint", video_run, "--query", folder, "--out", tmp_path / "out", "--video", "none"
    )
    assert code == 0, errors
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "shot9.png, shot10.png, shot11.png" in ", ".join(summary["videos"][0]["frames"])
