"""Checkpoints of MaskFormer and Mask2Former in every layout, both ways."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_layout import to_authors

import fssops
from fssops.models.universal import UniversalModel
from fssops.weights import CheckpointError
from fssops.weights.layout import Renaming
from fssops.weights.layouts.universal import MASK2FORMER, MASKFORMER
from fssops.weights.transformers_folder import options_of, transformers_config, write_transformers

RENAMING = {"mask2former": MASK2FORMER, "maskformer": MASKFORMER}
BOTH = pytest.mark.parametrize("name", list(RENAMING))


def small(name: str, **options: object) -> UniversalModel:
    """A small model with random weights, biases included."""
    size = {"backbone": "resnet18", "num_classes": 4, "num_queries": 5, "channels": 32, "mask_channels": 32, "heads": 4}
    layers = {"encoder_layers": 1, "decoder_layers": 2} if name == "mask2former" else {"decoder_layers": 2}
    model = fssops.create_model(name, **{**size, **layers, **options})
    assert isinstance(model, UniversalModel)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.uniform_(0.1, 1.0)
    return model


def equal(a: UniversalModel, b: UniversalModel) -> bool:
    """Whether all tensors are."""
    own, other = a.state_dict(), b.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def test_renaming_reads_in_both_directions() -> None:
    renaming = Renaming((("a.{}.x.*", "b.layers.{}.*"), ("c", "d")))
    assert renaming.ours("b.layers.3.norm.bias") == "a.3.x.norm.bias"
    assert renaming.theirs("a.12.x.w") == "b.layers.12.w"
    assert renaming.ours("e") is None
    assert list(renaming.state_to_ours({"d": torch.zeros(1), "e": torch.zeros(1)})) == ["c", "e"]
    with pytest.raises(ValueError, match="must have a name in the other layout, got 'e'"):
        renaming.state_to_theirs({"e": torch.zeros(1)})


@BOTH
@pytest.mark.parametrize("backbone", ["resnet18", "swin_tiny"])
def test_authors_names_load_whole(name: str, backbone: str) -> None:
    source = small(name, backbone=backbone)
    state = to_authors(source.state_dict(), RENAMING[name], 0.1)
    assert "criterion.empty_weight" in state
    target = small(name, backbone=backbone)
    report = fssops.load_weights(target, {"model": state})
    assert report.complete
    assert report.layout.startswith("authors")
    assert equal(source, target)


def test_authors_pickle_and_old_names_load(tmp_path: Path) -> None:
    """detectron2's .pkl of numpy arrays; names without ``pixel_decoder`` and ``static_query`` for ``query_feat``."""
    source, target = small("mask2former"), small("mask2former")
    state = {
        key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): value.numpy()
        for key, value in to_authors(source.state_dict(), MASK2FORMER, 0.1).items()
    }
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "third party"}))
    fssops.load_weights(target, path)
    assert equal(source, target)


@BOTH
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "swin_tiny"])
def test_transformers_folders_are_written_and_read(name: str, backbone: str, tmp_path: Path) -> None:
    source = small(name, backbone=backbone)
    write_transformers(source, tmp_path, ["a", "b", "c", "d"])
    table = json.loads((tmp_path / "config.json").read_text())
    assert table["id2label"]["2"] == "c"
    kind, options = options_of(table)
    assert kind == name
    target = fssops.create_model(kind, **options)
    report = fssops.load_weights(target, tmp_path)
    assert report.complete
    assert report.layout.startswith("transformers")
    assert isinstance(target, UniversalModel)
    assert equal(source, target)


def test_transformers_4_names_load(tmp_path: Path) -> None:
    """Files written by transformers 4: Mask2Former's Swin without ``swin.``, with ``attention.self.query``."""
    from safetensors.torch import load_file

    source, target = small("mask2former", backbone="swin_tiny"), small("mask2former", backbone="swin_tiny")
    write_transformers(source, tmp_path)
    older = {}
    for key, value in load_file(tmp_path / "model.safetensors").items():
        key = key.replace("encoder.swin.", "encoder.").replace("attention.relative_position_bias.", "attention.self.")
        if ".blocks." in key:
            for old, new in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
                key = key.replace(f"attention.{old}", f"attention.self.{new}")
            key = key.replace("attention.o_proj", "attention.output.dense")
            key = key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        older[key] = value
    fssops.load_weights(target, older)
    assert equal(source, target)


@BOTH
def test_another_number_of_classes_replaces_the_classifier_and_says_so(name: str) -> None:
    source, target = small(name), small(name, num_classes=7)
    before = target.state_dict()["transformer_decoder.class_embed.weight"].clone()
    report = fssops.load_weights(target, to_authors(source.state_dict(), RENAMING[name], 0.1), new_head="tell")
    assert [entry[0] for entry in report.reinitialised] == [
        "transformer_decoder.class_embed.weight",
        "transformer_decoder.class_embed.bias",
    ]
    assert "other classes, starts anew" in str(report)
    assert torch.equal(target.state_dict()["transformer_decoder.class_embed.weight"], before)
    assert torch.equal(target.backbone.res2[0].conv1.weight, source.backbone.res2[0].conv1.weight)


@BOTH
def test_another_number_of_queries_is_an_error_with_both_numbers(name: str) -> None:
    source, target = small(name), small(name, num_queries=6)
    with pytest.raises(CheckpointError, match=r"query_(feat|embed).weight is \[5, 32\] and must be \[6, 32\]"):
        fssops.load_weights(target, to_authors(source.state_dict(), RENAMING[name], 0.1))


def test_weights_of_the_other_system_are_refused() -> None:
    state = to_authors(small("maskformer").state_dict(), MASKFORMER, 0.1)
    with pytest.raises(CheckpointError, match="maskformer"):
        fssops.load_weights(small("mask2former"), state)


def test_what_transformers_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder_layers must be 0"):
        write_transformers(small("maskformer", encoder_layers=1), tmp_path)
    with pytest.raises(ValueError, match="class_names must be 4, got 1"):
        write_transformers(small("maskformer"), tmp_path, ["a"])
    with pytest.raises(ValueError, match="sampling_points must be 4, as transformers has them, got 2"):
        write_transformers(small("mask2former", sampling_points=2), tmp_path)
    with pytest.raises(ValueError, match="backbone_norm must be frozen, batch or sync, got group"):
        write_transformers(small("mask2former", backbone_norm="group"), tmp_path)
    with pytest.raises(ValueError, match="model_type must be mask2former or maskformer, got 'bert'"):
        options_of({"model_type": "bert"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"decoder_layers": None}, {"id2label": 5}, {"backbone_config": [1]}, {"backbone_config": {"depths": 3}}]
)
def test_configurations_of_transformers_that_make_no_sense_are_told(wrong: dict[str, Any]) -> None:
    config = {"model_type": "mask2former", "backbone_config": {"model_type": "resnet"}}
    for key, value in wrong.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=r"config\.json: config must be as transformers writes it, got a value where"):
        options_of(config)


@BOTH
def test_training_options_come_back_from_transformers_configurations(name: str) -> None:
    """They are not part of the weights, but who goes on training needs them."""
    weights = {"class_weight": 3.0, "mask_weight": 7.0, "dice_weight": 0.5, "dropout": 0.25, "no_object_weight": 0.3}
    points = {"train_points": 99, "oversample_ratio": 2.0, "importance_ratio": 0.5} if name == "mask2former" else {}
    options = options_of(transformers_config(small(name, **weights, **points)))[1]
    assert {key: options[key] for key in (*weights, *points)} == {**weights, **points}


@BOTH
def test_what_a_configuration_of_transformers_leaves_out_is_at_its_default(name: str) -> None:
    """transformers writes what differs from its defaults only, and ours are the same."""
    config = {"model_type": name, "backbone_config": {"model_type": "resnet"}}
    kind, options = options_of(config)
    model = fssops.create_model(kind, **options)
    assert isinstance(model, UniversalModel)
    named = {"mask2former": "Mask2FormerConfig", "maskformer": "MaskFormerConfig"}[kind]
    theirs = getattr(pytest.importorskip("transformers"), named)()
    full = transformers_config(model)
    for key in set(full) - {"backbone_config", "decoder_config", "id2label", "label2id", "architectures"}:
        assert full[key] == getattr(theirs, key), key


def test_per_pixel_baselines_load_the_authors_names() -> None:
    for plus in (False, True):
        model = fssops.create_model(
            "per_pixel_baseline", backbone="resnet18", num_classes=4, plus=plus, channels=32, mask_channels=32, heads=4
        )
        from fssops.weights.layouts.universal import PER_PIXEL

        state = PER_PIXEL.state_to_theirs(model.state_dict())
        assert all(key.startswith(("backbone.", "sem_seg_head.")) for key in state)
        assert fssops.load_weights(model, state).complete


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("backbone", ["resnet50", "swin_tiny"])
def test_transformers_implementation_gives_the_same_logits(name: str, backbone: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind = "Mask2FormerForUniversalSegmentation" if name == "mask2former" else "MaskFormerForInstanceSegmentation"
    model = fssops.create_model(name, backbone=backbone, num_classes=7, num_queries=20).eval()
    assert isinstance(model, UniversalModel)
    write_transformers(model, tmp_path)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    images, _ = model.image_input([255 * torch.rand(3, 135, 203) for _ in range(2)])
    with torch.no_grad():
        ours = model.predict(images, None, auxiliary=False)
        said = theirs(pixel_values=images, pixel_mask=torch.ones(2, *images.shape[-2:], dtype=torch.long))
    masks = torch.stack([ours.mask_logits(image)[:, 0] for image in range(2)])
    for found, wanted in ((ours.class_logits[-1], said.class_queries_logits), (masks, said.masks_queries_logits)):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
