"""The authors' checkpoints of MM-Former: both steps, names gone wrong, products of singular values, other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fssops
from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.singular_values import SingularValueConv, decomposed
from fssops.weights.layouts.mm_former import our_name, segmenter_name
from fssops.weights.reading import CheckpointError

OPTIONS: dict[str, Any] = {
    "backbone": "resnet50",
    "backbone_width": 4,
    "num_queries": 6,
    "channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_hidden": 16,
    "decoder_layers": 2,
    "decoder_hidden": 16,
}
MATCHING = {"align_heads": 2, "align_hidden": 16, "matching_hidden": 8}

_STAGE = {"stem": "layer0", "res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


def _backbone(model: torch.nn.Module) -> dict[str, Tensor]:
    """A backbone under the authors' names, every kernel as three factors."""
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, ConvNorm):
            continue
        parts = name.split(".")
        if parts[0] == "stem":
            place, norm = f"layer0.{3 * (int(parts[1][-1]) - 1)}", f"layer0.{3 * (int(parts[1][-1]) - 1) + 1}"
        elif parts[2] == "shortcut":
            place, norm = (f"{_STAGE[parts[0]]}.{parts[1]}.downsample.{n}" for n in (0, 1))
        else:
            place, norm = (f"{_STAGE[parts[0]]}.{parts[1]}.{kind}{parts[2][-1]}" for kind in ("conv", "bn"))
        if isinstance(layer, SingularValueConv):
            left, values, right = layer.left, layer.singular_values, layer.right
        else:
            left, values, right = decomposed(layer.weight)
        found[f"{place}.conv_U.weight"] = left[:, :, None, None]
        found[f"{place}.vector_S"] = values.detach()[None, :, None, None]
        found[f"{place}.conv_V.weight"] = right
        assert layer.norm is not None
        for key, value in layer.norm.state_dict().items():
            found[f"{norm}.{key}"] = value
    return found


def authors_state(model: Any) -> dict[str, Tensor]:
    """Our model's tensors as the authors' file holds them."""
    whole = hasattr(model, "segmenter")
    segmenter = model.segmenter if whole else model
    theirs = _backbone(segmenter.backbone)
    from fssops.weights.layouts.mm_former import _MATCHING
    from fssops.weights.layouts.universal import MASK2FORMER

    for name, value in segmenter.state_dict().items():
        if not name.startswith("backbone."):
            theirs[str(MASK2FORMER.theirs(name))] = value
    if whole:
        for name, value in model.state_dict().items():
            if not name.startswith("segmenter."):
                theirs[str(_MATCHING.theirs(name))] = value
        theirs["crossat_3.transformer_ffn_layers.0.norm.weight"] = torch.ones(32)
    theirs["criterion.empty_weight"] = torch.ones(151)
    return theirs


def model(name: str, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    return fssops.create_model(name, **OPTIONS, **options).eval()


@pytest.mark.parametrize("wrong", ["", "twice", "missing", "module"])
def test_the_whole_system_loads_whatever_became_of_its_names(wrong: str) -> None:
    source, target = model("mm_former", 0, **MATCHING), model("mm_former", 1, **MATCHING)
    state = authors_state(source)
    if wrong == "twice":
        state = {
            k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.pixel_decoder.pixel_decoder."): v
            for k, v in state.items()
        }
    elif wrong == "missing":
        state = {k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in state.items()}
    elif wrong == "module":
        state = {f"module.{k}": v for k, v in state.items()}
    report = fssops.load_weights(target, {"model": state})
    assert report.complete
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for name, value in source.encode(x).items():
            torch.testing.assert_close(target.encode(x)[name], value, rtol=1e-3, atol=1e-3)


def test_a_segmenter_file_fills_the_segmenter_of_either_kind_and_of_the_system() -> None:
    source = model("mm_former_segmenter", 0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = source(x)
        for name, options in (
            ("mm_former_segmenter", {}),
            ("mm_former_segmenter", {"tuning": "singular_values"}),
            ("mm_former", MATCHING),
        ):
            target = model(name, 1, **options)
            report = fssops.load_weights(target, authors_state(source))
            assert "step 1" in report.layout
            found = (target.segmenter if name == "mm_former" else target)(x)
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_tuned_singular_values_come_as_they_are() -> None:
    source = model("mm_former_segmenter", 0, tuning="singular_values")
    with torch.no_grad():
        for name, value in source.named_parameters():
            if name.endswith("singular_values"):
                value.mul_(1.3)
    target = model("mm_former_segmenter", 1, tuning="singular_values")
    fssops.load_weights(target, authors_state(source))
    for name, value in source.state_dict().items():
        if name.endswith(("singular_values", "left", "right")):
            assert torch.equal(target.state_dict()[name], value)


def test_a_stem_of_lower_rank_is_multiplied_out() -> None:
    source = model("mm_former_segmenter", 0)
    state = authors_state(source)
    for name, cut in (("conv_U.weight", 1), ("vector_S", 1), ("conv_V.weight", 0)):
        key = f"layer0.0.{name}"
        state[key] = state[key].narrow(cut, 0, 2)
    target = model("mm_former_segmenter", 1)
    fssops.load_weights(target, state)
    kernel = target.backbone.stem.conv1.weight.flatten(1)
    assert torch.linalg.matrix_rank(kernel) == 2


def test_a_file_of_another_model_is_refused_and_changes_nothing() -> None:
    other = fssops.create_model("panet", backbone="resnet18", backbone_width=8)
    for name, options in (("mm_former", MATCHING), ("mm_former_segmenter", {})):
        target = model(name, 0, **options)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        with pytest.raises(CheckpointError):
            fssops.load_weights(target, other.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_converted_files_load_again(tmp_path: Path) -> None:
    from fssops.weights import save_weights

    source, target = model("mm_former", 0, **MATCHING), model("mm_former", 1, **MATCHING)
    fssops.load_weights(source, authors_state(model("mm_former", 2, **MATCHING)))
    save_weights(source, tmp_path / "mm_former.safetensors")
    assert fssops.load_weights(target, tmp_path / "mm_former.safetensors").complete
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_names_map_to_ours() -> None:
    assert segmenter_name("layer2.0.downsample.0.conv_V.weight") == "backbone.res3.0.shortcut.right"
    assert our_name("layer0.4.running_mean") == "segmenter.backbone.stem.conv2.norm.running_mean"
    assert our_name("crossat_1.transformer_ffn_layers.1.norm.bias") == "cross_alignment.1.layers.1.ffn_norm.bias"
    assert our_name("fc2.weight") == "merge.layers.1.weight"
