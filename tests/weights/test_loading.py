"""Loading weights: layouts that are recognised, reports that say what happened, errors that say what to do."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fssops
from fssops.models.backbones.resnet import ResNet
from fssops.models.backbones.vgg import VGG16
from fssops.weights import CheckpointError, load_weights, save_weights
from fssops.weights.layouts.backbones import vgg_positions

State = dict[str, Tensor]


def panet(**options: object) -> nn.Module:
    return fssops.create_model("panet", backbone_width=4, **options)


def authors_state(model: nn.Module) -> State:
    """PANet's weights under the authors' names, in their order."""
    state: State = {}
    for key, value in model.state_dict().items():
        _, stage, position, kind = key.split(".")
        number = int(stage.removeprefix("stage"))
        state[f"encoder.backbone.features.{2 * (number - 1)}.{2 * int(position)}.{kind}"] = value.clone()
    return state


def torchvision_vgg(norm: bool, width: int = 4) -> State:
    """Random weights under torchvision's names of vgg16 or vgg16_bn, with a classifier."""
    model = VGG16(norm="batch" if norm else "none", width=width)
    ours = {name: index for index, name in vgg_positions(norm).items()}
    state: State = {}
    for key, value in model.state_dict().items():
        owner, kind = key.rsplit(".", 1)
        state[f"features.{ours[owner]}.{kind}"] = torch.randn_like(value) if value.is_floating_point() else value
    state["classifier.0.weight"] = torch.zeros(5, 7)
    return state


def torchvision_resnet(model: ResNet) -> State:
    """A ResNet's weights under torchvision's names, with a classifier, written out rule by rule."""
    state: State = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        kind = parts[-1]
        if parts[0] == "stem":
            number = parts[1].removeprefix("conv")
            state[f"{'bn' if 'norm' in parts else 'conv'}{number}.{kind}"] = value.clone()
            continue
        layer = f"layer{int(parts[0][-1]) - 1}.{parts[1]}"
        if parts[2] == "shortcut":
            state[f"{layer}.downsample.{'1' if 'norm' in parts else '0'}.{kind}"] = value.clone()
        else:
            number = parts[2].removeprefix("conv")
            state[f"{layer}.{'bn' if 'norm' in parts else 'conv'}{number}.{kind}"] = value.clone()
    state["fc.weight"], state["fc.bias"] = torch.zeros(10, 4), torch.zeros(10)
    return state


def assert_same(model: nn.Module, state: State) -> None:
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_the_authors_checkpoint_is_recognised(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    source, model = panet(), panet()
    state = OrderedDict((prefix + key, value) for key, value in authors_state(source).items())
    path = tmp_path / "30000.pth"
    torch.save({wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapper else state, path)
    report = fssops.load_weights(model, path)
    assert report.layout == "authors (kaixin96/PANet)"
    assert report.complete
    assert len(report.loaded) == 26
    assert_same(model, source.state_dict())


def test_a_numpy_score_beside_the_tensors_does_no_harm(tmp_path: Path) -> None:
    source, model = panet(), panet()
    torch.save({"state_dict": authors_state(source), "best_miou": np.float64(0.48)}, tmp_path / "best.pth")
    assert load_weights(model, tmp_path / "best.pth").complete
    assert_same(model, source.state_dict())


@pytest.mark.parametrize("norm", [False, True])
def test_torchvision_vgg_fills_the_backbone(norm: bool) -> None:
    state = torchvision_vgg(norm)
    model = panet(backbone_norm="batch" if norm else "none")
    report = load_weights(model, state)
    assert report.layout == "torchvision VGG-16"
    assert report.target == "backbone"
    assert report.ignored == ["classifier.0.weight"]
    last = model.get_parameter("backbone.stage5.2.weight")
    assert torch.equal(last, state["features.40.weight" if norm else "features.28.weight"])
    if norm:
        assert torch.equal(model.get_buffer("backbone.stage1.1.norm.running_var"), state["features.4.running_var"])


@pytest.mark.parametrize(("depth", "deep"), [(18, False), (50, True)])
def test_torchvision_resnet_fills_a_resnet_of_any_normalisation(depth: int, deep: bool) -> None:
    source = ResNet(depth, norm="batch", deep_stem=deep, width=4)
    for buffer in source.buffers():
        buffer.copy_(torch.rand_like(buffer.float()).to(buffer.dtype))
    frozen = ResNet(depth, norm="frozen", deep_stem=deep, width=4)
    report = load_weights(frozen, torchvision_resnet(source))
    assert report.complete
    assert {"fc.weight", "fc.bias"} <= set(report.ignored)
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = source.eval()(images)
        for name, feature in frozen(images).items():
            torch.testing.assert_close(feature, expected[name])


def test_stages_that_the_model_leaves_out_are_not_missed() -> None:
    model = panet(backbone="resnet18", last_stage="res4")
    report = load_weights(model, torchvision_resnet(ResNet(18, norm="batch", width=4)))
    assert report.complete
    assert any(key.startswith("res5.") for key in report.ignored)


def test_a_stem_stored_as_layer0_is_recognised() -> None:
    source = ResNet(50, norm="batch", deep_stem=True, width=4)
    state = {}
    for key, value in torchvision_resnet(source).items():
        head, rest = key.split(".", 1)
        if head in ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3"):
            key = f"layer0.{3 * (int(head[-1]) - 1) + (head[0] == 'b')}.{rest}"
        state[key] = value
    target = ResNet(50, norm="batch", deep_stem=True, width=4)
    assert load_weights(target, state).complete
    assert_same(target, source.state_dict())


def test_detectron2_backbone_names_are_recognised(tmp_path: Path) -> None:
    import pickle

    source = ResNet(50, norm="frozen", width=4)
    arrays = {f"backbone.bottom_up.{key}": value.numpy() for key, value in source.state_dict().items()}
    (tmp_path / "R-50.pkl").write_bytes(
        pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True}, protocol=2)
    )
    model = panet(backbone="resnet50")
    report = load_weights(model, tmp_path / "R-50.pkl")
    assert report.layout == "detectron2 ResNet"
    assert report.complete
    assert_same(model.get_submodule("backbone"), source.state_dict())


def test_own_weights_round_trip_as_safetensors_with_name_and_configuration(tmp_path: Path) -> None:
    from safetensors import safe_open

    source, model = panet(), panet()
    save_weights(source, tmp_path / "panet.safetensors")
    report = load_weights(model, tmp_path / "panet.safetensors")
    assert report.layout == "fssops"
    assert_same(model, source.state_dict())
    with safe_open(tmp_path / "panet.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["fssops_model"] == "panet"
    assert json.loads(metadata["fssops_config"])["backbone_width"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["panet.safetensors"]


def test_a_transformers_folder_is_read_whole_or_in_shards(tmp_path: Path) -> None:
    source = panet()
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    save_file(state, whole / "model.safetensors")
    (whole / "config.json").write_text('{"model_type": "x"}')
    first = dict(list(state.items())[:9])
    second = dict(list(state.items())[9:])
    save_file(first, sharded / "model-00001-of-00002.safetensors")
    save_file(second, sharded / "model-00002-of-00002.safetensors")
    places = dict.fromkeys(first, "model-00001-of-00002.safetensors") | dict.fromkeys(
        second, "model-00002-of-00002.safetensors"
    )
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for folder in (whole, sharded):
        model = panet()
        assert load_weights(model, folder).complete
        assert_same(model, state)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors .* is missing"):
        load_weights(panet(), sharded)


def test_a_shard_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="must name shards in its own folder"):
        load_weights(panet(), tmp_path)


def test_missing_and_unexpected_tensors_are_errors_unless_asked_otherwise() -> None:
    state = authors_state(panet())
    gone = state.pop("encoder.backbone.features.8.4.bias")
    state["encoder.head.weight"] = gone
    model = panet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"1 missing, e.g. backbone.stage5.2.bias; 1 unexpected, e.g. encoder.head"
    ):
        load_weights(model, state)
    assert_same(model, before)  # a refused checkpoint leaves no trace
    report = load_weights(model, state, strict=False)
    assert report.missing == ["backbone.stage5.2.bias"]
    assert report.unexpected == ["encoder.head.weight"]
    assert torch.equal(model.get_parameter("backbone.stage5.2.bias"), before["backbone.stage5.2.bias"])


@pytest.mark.parametrize("layout", ["fssops", "authors"])
def test_one_tensor_too_many_or_too_few_is_an_error(layout: str) -> None:
    for change, told in (({"head.weight": torch.zeros(2)}, "1 unexpected, e.g. head.weight"), ({}, "1 missing, e.g. ")):
        model = panet()
        state = panet().state_dict() if layout == "fssops" else authors_state(panet())
        state.update(change)
        if not change:
            state.popitem()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=rf"does not fit panet: {told}"):
            load_weights(model, state)
        assert_same(model, before)


def test_a_tensor_of_another_shape_is_an_error_that_names_both_shapes() -> None:
    state = authors_state(panet())
    state["encoder.backbone.features.0.0.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(CheckpointError, match=r"stage1.0.weight is \[4, 1, 3, 3\] and must be \[4, 3, 3, 3\]"):
        load_weights(panet(), state)
    report = load_weights(panet(), state, strict=False)
    assert report.replaced == [("backbone.stage1.0.weight", (4, 1, 3, 3), (4, 3, 3, 3))]
    assert len(report.loaded) == 25


def test_axes_of_length_one_are_reshaped_and_reported() -> None:
    source = panet()
    state = authors_state(source)
    state["encoder.backbone.features.0.0.bias"] = state["encoder.backbone.features.0.0.bias"][:, None]
    model = panet()
    report = load_weights(model, state)
    assert report.reshaped == [("backbone.stage1.0.bias", (4, 1), (4,))]
    assert_same(model, source.state_dict())


def test_a_checkpoint_of_another_model_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"looks like torchvision ResNet weights of resnet, and the model is panet"
    ):
        load_weights(panet(), torchvision_resnet(ResNet(18, norm="batch", width=4)))
    with pytest.raises(CheckpointError, match=r"looks like authors \(kaixin96/PANet\) weights of panet"):
        load_weights(ResNet(18, width=4), authors_state(panet()))
    with pytest.raises(CheckpointError, match=r"no layout known for panet .*first names are transformer.w"):
        load_weights(panet(), {"transformer.w": torch.zeros(2)}, strict=False)


def test_the_report_reads_as_a_table() -> None:
    state = authors_state(panet())
    state.pop("encoder.backbone.features.8.4.bias")
    text = str(load_weights(panet(), state, strict=False))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["layout"].endswith("authors (kaixin96/PANet)")
    assert lines["loaded"].split()[1] == "25"
    assert lines["missing"].split()[1:] == ["1", "backbone.stage5.2.bias"]
    assert "unexpected" not in lines


def test_saving_leaves_no_partial_file_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(panet(), tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saving_asks_for_the_ending_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_weights(panet(), tmp_path / "w.pth")
