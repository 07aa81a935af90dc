"""Every system on backbones that it was not published with: it trains, what is frozen stays, learning rates decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_systems import SYSTEMS, tiny_settings
from torch import Tensor, nn

from fssops.engine.optimizers import build_optimizer, parameter_groups
from fssops.engine.settings import Settings, SettingsError
from fssops.models.backbones.build import BACKBONES, swin_row, vit_row
from fssops.models.backbones.swin import SwinForm
from fssops.models.backbones.vit import ViTForm
from fssops.structures import FewShotBatch
from fssops.tasks import task_of
from fssops.tasks.trained_models import build_model

TINY = {
    "tiny_vit": vit_row(ViTForm(14, 16, 4, 2, 32, table=3)),  # images of 48 and 64 pixels are padded
    "tiny_vit16": vit_row(ViTForm(16, 16, 8, 2, 32, registers=4, qkv_bias="no_key")),
    "tiny_swin": swin_row(SwinForm(8, (1, 1, 2, 1), (1, 2, 4, 8), 3)),
}
FEW_SHOT = ("panet", "msanet", "pspnet", "mm_former_segmenter", "mm_former")
OTHERS = tuple(name for name in SYSTEMS if name not in FEW_SHOT)
FROZEN = ("msanet", "mm_former")
"""Systems whose backbone is never trained: it comes from their first stage."""

pytestmark = pytest.mark.filterwarnings("ignore:.*multiples of the patch:UserWarning")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in TINY.items():
        monkeypatch.setitem(BACKBONES, name, row)


def settings_on(system: str, backbone: str, *overrides: str) -> Settings:
    """The tiny recipe of a system on another backbone, all of which is trained where the system can."""
    published = {"backbone_width": "64", "tuning": "all", "last_stage": "res5"}
    changes = [f"model.{option}={value}" for option, value in published.items() if option in SYSTEMS[system]["model"]]
    return tiny_settings(system, f"model.backbone={backbone}", *changes, *overrides)


def model_and_batch(settings: Settings) -> tuple[Any, Any]:
    task = task_of(settings)
    dataset, _ = task.training_data()
    torch.manual_seed(0)
    model = build_model(settings).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model, task.collate([dataset[index] for index in range(2)])


def total(model: Any, batch: Any) -> Tensor:
    torch.manual_seed(1)  # the same points in every step
    return torch.stack([loss for loss in model.losses(batch).values() if loss.requires_grad]).sum()


CASES = [(system, "tiny_vit") for system in SYSTEMS]
CASES += [(system, backbone) for system in FEW_SHOT for backbone in ("tiny_swin", "efficientnet_lite0")]
CASES += [("panet", "tiny_vit16"), ("msanet", "tiny_vit16"), ("mask2former", "tiny_vit16")]


@pytest.mark.parametrize(("system", "backbone"), CASES)
def test_a_system_trains_on_a_backbone_that_it_was_not_published_with(system: str, backbone: str) -> None:
    settings = settings_on(system, backbone, "optim.name=adamw", "optim.lr=0.003")
    model, batch = model_and_batch(settings)
    optimizer = build_optimizer(model, settings.optim)
    losses = []
    for _ in range(6):
        loss = total(model, batch)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            lost = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not lost
            in_backbone = [p for p in model.backbone.parameters() if p.grad is not None and bool((p.grad != 0).any())]
            assert bool(in_backbone) == (system not in FROZEN)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-2:]) < losses[0]
    if isinstance(batch, FewShotBatch):
        episodes, queries, _, height, width = batch.query_images.shape
        with torch.no_grad():
            logits = model.eval()(batch)
        assert logits.shape == (episodes, queries, 1 + batch.support_images.shape[1], height, width)
        assert bool(logits.isfinite().all())


@pytest.mark.parametrize("system", OTHERS)
def test_results_on_a_transformer_have_the_size_of_the_image(system: str) -> None:
    model, batch = model_and_batch(settings_on(system, "tiny_vit"))
    found = model.eval().segment(batch)
    for result, image in zip(found, batch.images, strict=True):
        if result.semantic is not None:
            assert result.semantic.scores.shape[-2:] == image.shape[-2:]
        else:
            assert all(mask.shape[-2:] == image.shape[-2:] for frame in result.instance.masks for mask in frame)


def test_the_first_layers_get_no_gradient_and_no_update() -> None:
    settings = settings_on("mask2former", "tiny_vit", "optim.frozen_layers=3")
    model, batch = model_and_batch(settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, settings.optim)
    total(model, batch).backward()
    optimizer.step()
    frozen = (
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.patch_embed.",
        "backbone.blocks.0.",
        "backbone.blocks.1.",
    )
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
        if name.startswith(frozen):
            assert torch.equal(parameter, before[name])
    assert not torch.equal(model.backbone.blocks[2].mlp.fc1.weight, before["backbone.blocks.2.mlp.fc1.weight"])


def test_learning_rates_decay_from_layer_to_layer() -> None:
    overrides = ("optim.lr=1.0", "optim.layer_decay=0.5", "optim.backbone_lr_scale=0.1")
    settings = settings_on("mask2former", "tiny_vit", *overrides)
    model, _ = model_and_batch(settings)
    rates = {name: group["lr"] for group in parameter_groups(model, settings.optim) for name in group["names"]}
    wanted = {
        "backbone.pos_embed": 0.1 / 32,
        "backbone.patch_embed.proj.weight": 0.1 / 32,
        "backbone.blocks.0.attn.qkv.weight": 0.1 / 16,
        "backbone.blocks.3.mlp.fc2.bias": 0.1 / 2,
        "backbone.norm.weight": 0.1,
        "pyramid.res2.0.weight": 1.0,
        "pixel_decoder.mask_features.weight": 1.0,
    }
    assert {name: rates[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("system", "override", "told"),
    [
        ("panet", "optim.frozen_layers=6", "optim.frozen_layers: layers of vit must be at most 5 or all, got 6"),
        ("msanet", "optim.layer_decay=0.5", "optim.layer_decay must be 1 without a trained backbone that counts its"),
    ],
)
def test_layers_that_are_not_there_are_told(system: str, override: str, told: str) -> None:
    settings = settings_on(system, "tiny_vit", override)
    with pytest.raises(SettingsError, match=told):
        build_optimizer(build_model(settings), settings.optim)


@pytest.mark.parametrize(
    ("system", "overrides", "told"),
    [
        ("panet", ["model.backbone=dinov2_vits15"], "backbone must be one of .*; did you mean 'dinov2_vits14'"),
        ("panet", ["model.drop_path=0.1"], "drop_path of resnet18 must be 0, since it has none, got 0.1"),
        ("mask2former", ["model.backbone=vgg16"], "backbone must have maps at strides 4, 8, 16, 32, or of one scale"),
        ("mm_former", ["model.backbone=dino_vits16", "model.backbone_width=64"], "tuning must be none or all with a b"),
        ("panet", ["optim.layer_decay=1.5"], "optim.layer_decay must be less than or equal to 1, got 1.5"),
        ("panet", ["optim.frozen_layers=-1"], "optim.frozen_layers must be at least 0, or all, got -1"),
    ],
)
def test_settings_that_a_backbone_cannot_have_are_told(system: str, overrides: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tiny_settings(system, *overrides)
