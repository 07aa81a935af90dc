"""Backbones of transformers by the name of a folder: maps, padding, colours, and what is told of wrong ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fssops
from fssops.models.backbones.auto_backbone import maps_of
from fssops.models.backbones.build import build_backbone, row_of
from fssops.weights.loading import save_weights

transformers = pytest.importorskip("transformers", reason="needs transformers")

SMALL: dict[str, Any] = {
    "dinov2": ("Dinov2", {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "patch_size": 14}),
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}),
    "swin": ("Swin", {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 4, 8], "window_size": 3}),
}
WIDTHS = {"dinov2": (16,) * 4, "resnet": (8, 16, 24, 32), "convnext": (8, 16, 24, 32), "swin": (8, 16, 32, 64)}


def saved(folder: Path, kind: str) -> tuple[nn.Module, str]:
    """A backbone with random weights, and its name here once it has been saved to a folder."""
    name, options = SMALL[kind]
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Backbone")(config).eval()
    model.save_pretrained(folder / kind)
    return model, f"transformers:{folder / kind}"


@pytest.mark.parametrize("kind", SMALL)
def test_maps_are_the_last_of_each_quarter_of_the_stages(tmp_path: Path, kind: str) -> None:
    theirs, name = saved(tmp_path, kind)
    row = row_of(name)
    stride = (14,) * 4 if kind == "dinov2" else (4, 8, 16, 32)
    assert tuple(row.channels.values()) == WIDTHS[kind]
    assert tuple(row.strides.values()) == stride
    assert row.one_scale == (kind == "dinov2")
    ours = build_backbone(name).eval()
    images = torch.randn(1, 3, 2 * max(stride), 3 * max(stride))
    theirs.config.out_features = [f"stage{n}" for n in ((2, 4, 6, 8) if kind == "dinov2" else (1, 2, 3, 4))]
    theirs = type(theirs).from_pretrained(tmp_path / kind, config=theirs.config).eval()
    with torch.no_grad():
        maps, wanted = ours(images), theirs(images).feature_maps
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    for x, y in zip(maps.values(), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    (last,) = build_backbone(name, taps=("res5",)).eval()(images).values()
    torch.testing.assert_close(last, maps["res5"], rtol=1e-5, atol=1e-5)


def test_images_are_padded_to_the_patch_and_maps_cover_them_alone(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "dinov2")
    backbone = build_backbone(name).eval()
    with pytest.warns(UserWarning, match="TransformersBackbone: images should have sides that are multiples .*, 14"):
        maps = backbone(torch.randn(1, 3, 30, 41))
    assert {tuple(x.shape[-2:]) for x in maps.values()} == {(3, 3)}


def test_colours_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    theirs, name = saved(tmp_path, "resnet")
    colours = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(said))
    wanted = (colours - torch.tensor(said["image_mean"]).view(3, 1, 1)) / torch.tensor(said["image_std"]).view(3, 1, 1)
    ours = build_backbone(name, taps=("res5",)).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours((colours - mean) / std)["res5"], theirs(wanted).feature_maps[-1])


def test_all_of_it_can_be_frozen_but_not_a_part(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "convnext")
    backbone = build_backbone(name).train()
    with pytest.raises(ValueError, match="layers of transformers must be 0 or all, since it counts none, got 2"):
        backbone.freeze(2)
    backbone.freeze("all")
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())


def test_a_saved_system_comes_back_with_its_own_weights(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "resnet")
    model = fssops.create_model("panet", backbone=name)
    nn.init.normal_(next(model.backbone.parameters()))
    save_weights(model, tmp_path / "panet.safetensors")
    again = fssops.create_model("panet", backbone=name)
    assert fssops.load_weights(again, tmp_path / "panet.safetensors").complete
    for ours, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_backbone_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a name on the hub or a folder with a config\.json, got") as told:
        row_of(f"transformers:{tmp_path / 'nothing'}")
    assert "\n" not in str(told.value)
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="must be a backbone of transformers' own, got a bert"):
        row_of(f"transformers:{tmp_path / 'bert'}")
    transformers.Dinov2Config(num_hidden_layers=3).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="must have at least 4 stages, got 3"):
        row_of(f"transformers:{tmp_path / 'short'}")


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ValueError, match="must be a name on the hub or a folder with a config"):
        row_of(f"transformers:{folder}")
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_or_with_others_is_refused(tmp_path: Path) -> None:
    _, name = saved(tmp_path, "resnet")
    folder = tmp_path / "resnet"
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must have weights of its resnet, got none for \d+ of \d+ tensors, e\.g\. "):
        build_backbone(name)
    (folder / "model.safetensors").unlink()
    torch.save({"other.weight": torch.zeros(3)}, folder / "pytorch_model.bin")  # is not read: it could run code
    with pytest.raises(ValueError, match="must have weights as safetensors, got"):
        build_backbone(name)


def test_without_transformers_one_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    maps_of.cache_clear()
    with pytest.raises(ValueError, match=r"needs the package transformers: pip install 'fssops\[transformers\]'"):
        fssops.create_model("panet", backbone="transformers:facebook/dinov2-small")
