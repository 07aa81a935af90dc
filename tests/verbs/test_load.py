"""fssops.load: a predictor out of runs, folders, names and transformers; what verbs give is what it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fssops
from fssops.data.layouts import known_classes
from fssops.engine.settings import SettingsError
from fssops.tasks.trained_models import load_trained
from fssops.weights.transformers_folder import write_transformers

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "num_queries": 6,
    "channels": 32,
    "mask_channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_hidden": 32,
    "decoder_layers": 1,
    "decoder_hidden": 32,
    "object_threshold": 0.0,
    "overlap_threshold": 0.0,
    "detections": 10,
}
COCO = known_classes("coco_instances", "instance")
PANOPTIC = known_classes("coco_panoptic", "panoptic")
ROWS = [{"id": 7 + n, "name": name, "isthing": int(n > 1)} for n, name in enumerate(["sky", "road", "cup", "cat"])]


def picture(path: Path, width: int = 50, height: int = 40) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def universal(tmp_path: Path) -> Path:
    """A folder of save_pretrained with a panoptic system of four classes."""
    tasks = ("panoptic", "instance", "semantic")
    model = fssops.create_model("mask2former", **SMALL, num_classes=4, things=(2, 3), tasks=tasks)
    preprocessing = {"eval": {"short_side": 64, "longest": 200}}
    fssops.save_pretrained(model, tmp_path / "mine", classes={"classes": ROWS}, preprocessing=preprocessing)
    return tmp_path / "mine"


def test_a_universal_predictor_gives_what_the_verb_writes(universal: Path, tmp_path: Path, verb: Any) -> None:
    query = picture(tmp_path / "a.png")
    code, _, err = verb("predict", "--checkpoint", universal, "--query", query, "--out", tmp_path / "out")
    assert code == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "64" in summary["test_size"]
    predictor = fssops.load(universal, device="cpu")
    assert predictor.classes == ("sky", "road", "cup", "cat")
    found = predictor(query)
    assert found.classes == predictor.classes
    semantic = np.asarray(Image.open(tmp_path / "out" / "semantic" / "a.png"))
    assert np.array_equal(found.semantic.label_map, semantic)
    written = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(written) == len(found.instance.scores) > 0
    assert [row["category_id"] for row in written] == [7 + int(label) for label in found.instance.labels]
    assert found.instance.names == [predictor.classes[label] for label in found.instance.labels]
    assert found.instance.masks.shape == (len(written), 40, 50)
    assert found.instance.masks.dtype == bool
    segments = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"][0]["segments_info"]
    assert [row["id"] for row in segments] == [segment.id for segment in found.panoptic.segments]
    assert [row["area"] for row in segments] == [
        int((found.panoptic.segment_ids == row["id"]).sum()) for row in segments
    ]
    assert found.panoptic.names == [predictor.classes[segment.label] for segment in found.panoptic.segments]


def test_a_universal_predictor_takes_pictures_in_every_form(universal: Path, tmp_path: Path) -> None:
    query = picture(tmp_path / "a.png")
    pixels = np.asarray(Image.open(query))
    predictor = fssops.load(universal, device="cpu")
    first = predictor(query)
    for form in (str(query), pixels, Image.open(query), torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        assert np.array_equal(predictor(form).semantic.label_map, first.semantic.label_map)
    both = predictor([query, pixels])
    assert [np.array_equal(one.semantic.label_map, first.semantic.label_map) for one in both] == [True, True]
    with pytest.raises(ValueError, match="must be a uint8 array"):
        predictor(np.zeros((4, 4, 4), np.uint8))
    asked = fssops.load(universal, device="cpu", size=32, tasks=["semantic"], things=[2, 3])(query)
    assert asked.semantic.label_map.shape == (40, 50)
    assert asked.instance is None
    assert asked.panoptic is None
    assert not np.array_equal(asked.semantic.label_map, first.semantic.label_map)


def test_a_run_and_what_convert_makes_of_it_give_the_same_few_shot_predictor(
    tiny_run: Path, tmp_path: Path, verb: Any
) -> None:
    for target in ("folder", "file.safetensors"):
        code, _, err = verb("convert", tiny_run, tmp_path / target)
        assert code == 0, err
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:30] = 1
    query = picture(tmp_path / "a.png")
    labels = []
    for source in (tiny_run, tmp_path / "folder", tmp_path / "file.safetensors"):
        predictor = fssops.load(source, device="cpu")
        assert isinstance(predictor, fssops.FewShotPredictor)
        assert predictor.size == load_trained(tiny_run, None, []).task.settings.data.size
        predictor.set_support(query, mask)
        labels.append(predictor.segment(query).probabilities)
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2])
    names = load_trained(tiny_run, None, []).task.trained_names
    assert load_trained(tmp_path / "folder", None, []).task.trained_names == names
    assert names


@pytest.mark.parametrize(
    ("called", "classes", "tasks", "things"),
    [
        ("mask2former-tiny-coco-instance", COCO, ("instance",), None),
        ("mask2former-tiny-coco", COCO, ("instance",), None),
        ("mask2former-tiny-coco-panoptic", PANOPTIC, ("panoptic", "instance", "semantic"), PANOPTIC.things),
        ("mask2former-tiny-coco-semantic", PANOPTIC, ("semantic",), None),
    ],
)
def test_a_folder_of_transformers_says_its_model_classes_and_by_its_name_what_it_is_for(
    tmp_path: Path, called: str, classes: Any, tasks: tuple[str, ...], things: Any
) -> None:
    options = {name: value for name, value in SMALL.items() if "threshold" not in name and name != "detections"}
    model = fssops.create_model("mask2former", **options, num_classes=len(classes))
    write_transformers(model, tmp_path / called, classes.names)
    processor = {"size": {"shortest_edge": 48, "longest_edge": 90}, "image_mean": [0.48500001430511475, 0.456, 0.406]}
    (tmp_path / called / "preprocessor_config.json").write_text(json.dumps(processor))
    predictor = fssops.load(tmp_path / called, device="cpu")
    assert predictor.classes == tuple(classes.names)
    assert predictor.tasks == tasks
    assert predictor.task.config.things == things
    assert (predictor.task.settings.eval.short_side, predictor.task.settings.eval.longest) == (48, 90)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in predictor.model.state_dict().items())
    processor["image_mean"] = [0.5, 0.5, 0.5]
    (tmp_path / called / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match=r"image_mean must be \[0.485, 0.456, 0.406\], got \[0.5"):
        fssops.load(tmp_path / called)


def test_classes_of_transformers_that_are_no_list_of_names_are_refused(tmp_path: Path) -> None:
    model = fssops.create_model("mask2former", **SMALL, num_classes=2)
    write_transformers(model, tmp_path, ["cup", "cat"])
    config = json.loads((tmp_path / "config.json").read_text())
    for labels in ({"0": "cup", "2": "cat"}, {"0": "cup", "1": 7}, ["cup", "cat"]):
        (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": labels}))
        with pytest.raises(ValueError, match="id2label must give a name for each class from 0"):
            fssops.load(tmp_path)


def test_a_name_of_ours_brings_its_recipe_and_a_backbone_needs_a_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fssops.models.backbones.vit import VIT, ViTForm
    from fssops.weights.sources import SOURCES, Source

    monkeypatch.setitem(VIT, "tiny", ViTForm(8, 32, 2, 2, 64, registers=4, norm_eps=1e-5, qkv_bias="no_key"))
    package = tmp_path / "packages" / "weights_of_a_test"
    package.mkdir(parents=True)
    backbone = fssops.create_model("insid3", backbone="tiny", components=4).backbone
    torch.save(backbone.state_dict(), package / "vit.pth")
    torch.save(fssops.create_model("panet", backbone="vgg16", backbone_width=2).state_dict(), package / "panet.pth")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    (package / "__init__.py").touch()
    rows = (
        Source("tiny", "package:weights_of_a_test/vit.pth", "MIT", backbone="tiny"),
        Source("panet-tiny", "package:weights_of_a_test/panet.pth", "MIT", recipe="panet_pascal5i"),
    )
    for row in rows:
        monkeypatch.setitem(SOURCES, row.name, row)
    predictor = fssops.load("tiny", model="insid3", components=4, size=32, device="cpu")
    assert predictor.model.config.backbone == "tiny"
    assert predictor.size == (32, 32)
    loaded = predictor.model.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(RuntimeError, match="got weights alone, of the backbone tiny"):
        fssops.load("tiny")
    panet = fssops.load("panet-tiny", backbone_width=2, device="cpu")
    assert panet.size == (417, 417)
    assert panet.model.name == "panet"


def test_what_cannot_be_loaded_is_told_in_a_line(universal: Path, tmp_path: Path) -> None:
    for source, options, told in (
        (universal, {"model": "panet", "recipe": "panet_pascal5i"}, "give either model or recipe"),
        (universal, {"device": "tpu"}, "--device: must be auto"),
        (universal, {"chanels": 3}, "did you mean 'channels'"),
        ("nowhere", {}, "load: path must exist, or be a name"),
    ):
        with pytest.raises((SettingsError, FileNotFoundError), match=told) as error:
            fssops.load(source, **options)
        assert "\n" not in str(error.value)
    config = json.loads((universal / "config.json").read_text())
    for change, told in (
        ({"fssops_preprocessing": {"model": {"weights": "x"}}}, "preprocessing must be of data.size"),
        ({"fssops_preprocessing": {"eval": {"root": "/"}}}, "preprocessing must be of data.size"),
        ({"fssops_preprocessing": {"eval": {"short_side": -1}}}, "eval.short_side must be"),
        ({"fssops_classes": {"classes": [{"id": 0}]}}, "must list the classes|must have a name"),
        ({"fssops_classes": {"classes": ROWS[:2]}}, "must be the number of classes"),
    ):
        (universal / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=told):
            fssops.load(universal)


def test_training_a_recipe_without_a_network_says_what_to_do_and_leaves_nothing(tmp_path: Path, verb: Any) -> None:
    code, out, err = verb("train", "panet_pascal5i", "--out", tmp_path / "run")
    assert code == 1
    assert "HF_HUB_OFFLINE forbids it" in err
    assert "--set model.weights=FILE" in err
    assert err.count("\n") == 1
    assert "run" not in out
    assert not list(tmp_path.iterdir())


def test_the_table_of_weights_is_printed(verb: Any) -> None:
    code, out, _ = verb("models.__main__", "--weights")
    assert code == 0
    assert "mask2former-r50-coco-panoptic: recipe mask2former_coco_panoptic_r50, CC BY-NC 4.0, md5:94dc52" in out
    code, out, _ = verb("models.__main__", "mask2former_vis", "--weights", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows
    assert all(row["recipe"].startswith("mask2former_vis_") for row in rows)
