"""Files from elsewhere: nothing in them is executed, none leads out of its folder, none unfolds without bound."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fssops.command_line import exit_code_of
from fssops.data import coco_json, panoptic_json, ytvis_json
from fssops.data.episodes import EpisodeList
from fssops.data.errors import AnnotationError
from fssops.data.layouts.voc import read_list
from fssops.engine import checkpoints
from fssops.engine.checkpoints import write_checkpoint
from fssops.evaluate import main as evaluate
from fssops.tasks import load_task
from fssops.train import main as train
from fssops.weights import CheckpointError, read_weights

LEADING_OUT = ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:\\secret.png", ""]


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_replay_file_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, trace = tmp_path / "nonfinite_step3_rank0.pt", tmp_path / "ran"
    write_checkpoint(path, {"kind": "replay", "batch": Touch(trace)})  # with a right checksum
    assert exit_code_of("train", train, ["--replay", str(path)]) == 2
    assert "must hold tensors and plain values only" in capsys.readouterr().err
    assert not trace.exists()


def test_a_pickle_is_no_episode_list(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    (tmp_path / "episodes.json").write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(AnnotationError, match="episode list must be JSON text"):
        EpisodeList.load(tmp_path / "episodes.json")
    assert not trace.exists()


# Nothing unfolds to more than it takes on disk.


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(4_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"bomb\.pth must hold its tensors uncompressed"):
        read_weights(bomb)


def test_a_compressed_checkpoint_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "last.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data/0", bytes(10_000_000))
    monkeypatch.setattr(checkpoints, "verify_checkpoint", lambda path: None)  # a checksum is easily made
    with pytest.raises(checkpoints.RunCheckpointError, match="must hold its tensors uncompressed"):
        checkpoints.read_checkpoint(bomb)


def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"w": tensor}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        read_weights(tmp_path / "m.safetensors")
    (tmp_path / "n.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="is truncated or not a safetensors file"):
        read_weights(tmp_path / "n.safetensors")


def test_lists_that_hold_the_next_one_twice_do_not_unfold(tmp_path: Path) -> None:
    value: Any = [1.0]
    for _ in range(60):
        value = [value, value]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": value}}))
    with pytest.raises(CheckpointError, match="must hold tensors by name"):
        read_weights(tmp_path / "m.pkl")


def test_an_array_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    code = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    code += b"(I1\n(L1099511627776L\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI00\nS'abcd'\ntb."
    (tmp_path / "m.pkl").write_bytes(code)
    with pytest.raises(CheckpointError, match=r"m\.pkl is truncated or not a pickle"):
        read_weights(tmp_path / "m.pkl")


def coco(folder: Path, **image: Any) -> Path:
    entry = {"id": 1, "file_name": "a.jpg", "width": 8, "height": 8, **image}
    content = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def ytvis(folder: Path, **video: Any) -> Path:
    entry = {"id": 1, "file_names": ["v/0.jpg"], "width": 8, "height": 8, **video}
    content = {"videos": [entry], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "videos.json").write_text(json.dumps(content))
    return folder / "videos.json"


def test_masks_of_absurd_sizes_are_refused_before_they_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="image 1: there must be at most 67108864 pixels, got 1000000 x 1000000"):
        coco_json.read(coco(tmp_path, width=10**6, height=10**6))
    with pytest.raises(AnnotationError, match=r"video 1: .* at most 67108864 pixels, got 1000000 x 1000000"):
        ytvis_json.read(ytvis(tmp_path, width=10**6, height=10**6))


def test_a_number_of_a_million_digits_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text('{"images": [' + "9" * 1_000_000 + "]}")
    with pytest.raises(AnnotationError, match="must be JSON text"):
        coco_json.read(tmp_path / "instances.json")


# No name leads out of its folder.


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_in_annotation_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnnotationError, match="file_name"):
        coco_json.read(coco(tmp_path, file_name=name))
    if name:
        with pytest.raises(AnnotationError, match="file_names must be a name below its folder"):
            ytvis_json.read(ytvis(tmp_path, file_names=["v/0.jpg", name]))
    for image, segment_map in ((name, "a.png"), ("a.jpg", name)):
        content = {
            "images": [{"id": 1, "file_name": image}],
            "annotations": [{"image_id": 1, "file_name": segment_map, "segments_info": []}],
            "categories": [{"id": 1, "name": "cat", "isthing": 1}],
        }
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        with pytest.raises(AnnotationError, match="file_name must be a name below its folder"):
            panoptic_json.read(tmp_path / "panoptic.json")


@pytest.mark.parametrize("line", ["../../etc/passwd", "/JPEGImages/../../x.jpg /SegmentationClass/x.png"])
def test_names_in_lists_stay_in_their_folder(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.txt").write_text(f"good\n{line}\n")
    with pytest.raises(AnnotationError, match=r"train\.txt: line 2 must be a name below its folder"):
        read_list(tmp_path / "train.txt")


def test_the_name_in_a_checkpoint_does_not_choose_where_results_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {**load_task("panet_generated").settings.as_tables(), "name": "../../elsewhere"}
    write_checkpoint(
        tmp_path / "from_elsewhere.pt", {"model": {"w": torch.zeros(1)}, "step": 1, "settings": json.dumps(tables)}
    )
    assert exit_code_of("evaluate", evaluate, ["from_elsewhere.pt"]) == 2
    assert "name must begin with a letter or digit" in capsys.readouterr().err


_OFFLINE = """
import sys

def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        raise SystemExit(f"network: {event} {arguments}")
    if event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple):
        raise SystemExit(f"network: {event} {arguments[1]}")

sys.addaudithook(hook)
from fssops.evaluate import main as evaluate
from fssops.train import main as train
from fssops.models.__main__ import main as models

folder, *overrides = sys.argv[1:]
assert train(["--out", folder, *overrides]) == 0
assert evaluate([folder]) == 0
assert models([]) == 0
"""


@pytest.mark.slow
def test_the_default_run_asks_nothing_of_the_network(tmp_path: Path) -> None:
    overrides = ["model.backbone_width=8", "data.size=[48,48]", "data.options={size=48,images_per_class=6}"]
    overrides += ["schedule.steps=2", "engine.batch_size=2", "engine.workers=1", "eval.episodes=4", "eval.pictures=1"]
    overrides += ["eval.validation_episodes=2", "eval.baseline=false", "engine.accelerator=cpu"]
    arguments = [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE, str(tmp_path / "run"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("place", ["run", "shard"])
def test_code_in_a_folder_of_weights_is_not_executed(tmp_path: Path, place: str) -> None:
    trace = tmp_path / "ran"
    if place == "run":  # with a right checksum
        write_checkpoint(tmp_path / "checkpoints" / "last.pt", {"model": {"w": torch.zeros(1)}, "step": Touch(trace)})
    else:
        torch.save({"w": torch.zeros(1), "x": Touch(trace)}, tmp_path / "pytorch_model-00001-of-00001.bin")
        index = {"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"tensors and plain values only|is refused: it asks for .*system"):
        read_weights(tmp_path)
    assert not trace.exists()


def test_a_compressed_shard_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    shard = tmp_path / "pytorch_model-00001-of-00001.bin"
    with zipfile.ZipFile(tmp_path / "plain.pth") as source, zipfile.ZipFile(shard, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": shard.name}}))
    with pytest.raises(CheckpointError, match="must hold its tensors uncompressed"):
        read_weights(tmp_path)
