"""Names that authors give their tensors and what they become, pair by pair, as read in the published files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fssops.weights.layouts import backbones, efficientnet_lite, msanet, panet, swin, vit

MSANET_RESNET = {
    "layer0.0.weight": "base_learner.backbone.stem.conv1.weight",
    "layer0.4.running_var": "base_learner.backbone.stem.conv2.norm.running_var",
    "layer0.6.weight": "base_learner.backbone.stem.conv3.weight",
    "layer1.0.conv1.weight": "base_learner.backbone.res2.0.conv1.weight",
    "layer2.3.bn2.running_mean": "base_learner.backbone.res3.3.conv2.norm.running_mean",
    "layer3.5.conv3.weight": "base_learner.backbone.res4.5.conv3.weight",
    "layer4.0.downsample.0.weight": "base_learner.backbone.res5.0.shortcut.weight",
    "layer4.0.downsample.1.bias": "base_learner.backbone.res5.0.shortcut.norm.bias",
    "learner_base.0.features.2.1.weight": "base_learner.head.pyramid.2.weight",
    "learner_base.0.features.3.2.running_var": "base_learner.head.pyramid.3.norm.running_var",
    "learner_base.1.0.weight": "base_learner.head.convolution.weight",
    "learner_base.1.1.bias": "base_learner.head.convolution.norm.bias",
    "learner_base.1.4.bias": "base_learner.head.classifier.bias",
    "down_query.0.weight": "query_embedding.convolution.weight",
    "down_supp.0.weight": "support_embedding.convolution.weight",
    "gam.gate.0.weight": "gate.squeeze.weight",
    "gam.gate.2.bias": "gate.expand.bias",
    "hyper_final.0.weight": "similarity.weight",
    "hyper_final.1.running_mean": "similarity.norm.running_mean",
    "init_merge.0.weight": "decoder.merge.weight",
    "ASPP_meta.layer6_0.0.bias": "decoder.aspp.pooled.bias",
    "ASPP_meta.layer6_1.0.bias": "decoder.aspp.branches.0.bias",
    "ASPP_meta.layer6_4.0.weight": "decoder.aspp.branches.3.weight",
    "res1_meta.0.weight": "decoder.reduce.weight",
    "res2_meta.0.weight": "decoder.residual1.weight",
    "res2_meta.2.weight": "decoder.residual2.weight",
    "cls_meta.0.weight": "decoder.convolution.weight",
    "cls_meta.3.bias": "decoder.classifier.bias",
    "gram_merge.weight": "scene_merge.weight",
    "cls_merge.weight": "base_merge.weight",
    "kshot_rw.weight": "shot_scorer.layers.0.weight",
    "kshot_rw.2.weight": "shot_scorer.layers.2.weight",
    "something.else": "something.else",
}
MSANET_VGG = {
    "layer0.0.weight": "base_learner.backbone.stage1.0.weight",
    "layer0.4.bias": "base_learner.backbone.stage1.1.norm.bias",
    "layer2.7.running_var": "base_learner.backbone.stage3.2.norm.running_var",
    "layer4.6.bias": "base_learner.backbone.stage5.2.bias",
}
BASE_LEARNER = {
    "layer1.0.bn3.weight": "backbone.res2.0.conv3.norm.weight",
    "ppm.features.1.1.weight": "head.pyramid.1.weight",
    "ppm.features.0.2.bias": "head.pyramid.0.norm.bias",
    "cls.0.weight": "head.convolution.weight",
    "cls.1.running_mean": "head.convolution.norm.running_mean",
    "cls.4.weight": "head.classifier.weight",
}
PANET = {
    "encoder.backbone.features.0.0.weight": "backbone.stage1.0.weight",
    "encoder.features.2.2.bias": "backbone.stage2.1.bias",
    "encoder.backbone.features.8.4.bias": "backbone.stage5.2.bias",
    "encoder.backbone.features.9.0.bias": "encoder.backbone.features.9.0.bias",
}


def model_of(backbone: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(backbone=backbone))


@pytest.mark.parametrize(
    ("layout", "model", "names"),
    [
        (msanet.LAYOUTS[0], model_of("resnet50"), MSANET_RESNET),
        (msanet.LAYOUTS[0], model_of("vgg16"), MSANET_VGG),
        (msanet.LAYOUTS[1], model_of("resnet101"), BASE_LEARNER),
        (panet.LAYOUTS[0], model_of("vgg16"), PANET),
    ],
    ids=["msanet", "msanet-vgg", "base-learner", "panet"],
)
def test_every_tensor_goes_under_its_name(layout: Any, model: Any, names: dict[str, str]) -> None:
    state = {theirs: torch.tensor(float(number)) for number, theirs in enumerate(names)}
    converted = layout.convert(state, model)
    assert converted == {ours: state[theirs] for theirs, ours in names.items()}


def test_a_layout_is_told_by_names_that_only_it_has() -> None:
    whole, base = msanet.LAYOUTS
    assert whole.recognise(["down_query.0.weight", "learner_base.1.4.weight"])
    assert not whole.recognise(["down_query.0.weight"])
    assert not whole.recognise(["learner_base.1.4.weight"])
    assert base.recognise(["cls.4.weight", "ppm.features.0.1.weight"])
    assert not base.recognise(["cls.4.weight"])
    assert not base.recognise(["ppm.features.0.1.weight"])
    named = list(PANET)[:3]
    assert panet.LAYOUTS[0].recognise([*named, "a", "b", "c"])
    assert not panet.LAYOUTS[0].recognise([*named, "a", "b", "c", "d"])
    assert not panet.LAYOUTS[0].recognise([])
    resnet, detectron2 = backbones.LAYOUTS[1:]
    assert resnet.recognise(["layer1.0.conv1.weight", "layer4.0.conv1.weight"])
    assert not resnet.recognise(["layer1.0.conv1.weight"])
    assert not resnet.recognise(["layer4.0.conv1.weight"])
    ours = ["backbone.bottom_up.stem.conv1.weight", "res2.0.conv1.weight"]
    assert detectron2.recognise([*ours, "a", "b"])
    assert not detectron2.recognise([*ours, "a", "b", "c"])
    assert not detectron2.recognise([*ours[:1], "res3.0.conv1.weight"])


def test_the_list_of_vgg_counts_relu_and_pooling_layers_too() -> None:
    plain, normed = backbones.vgg_positions(norm=False), backbones.vgg_positions(norm=True)
    assert list(plain) == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert (plain[10], plain[28]) == ("stage3.0", "stage5.2")
    assert [index for index, name in normed.items() if "norm" not in name] == [
        0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40,
    ]  # fmt: skip
    assert (normed[8], normed[41]) == ("stage2.0.norm", "stage5.2.norm")


@pytest.mark.parametrize("unbuilt", [("stage3",), ()])
def test_blocks_of_efficientnet_are_counted_through_and_ours_by_stage(unbuilt: tuple[str, ...]) -> None:
    stages = {"stage1": [None], "stage2": [None, None]}
    model: Any = SimpleNamespace(stages=tuple(stages), unbuilt=unbuilt, get_submodule=stages.get)
    names = {
        "_conv_stem.weight": "stem.weight",
        "_bn0.running_mean": "stem.norm.running_mean",
        "_blocks.0._depthwise_conv.weight": "stage1.0.depthwise.weight",
        "_blocks.1._expand_conv.weight": "stage2.0.expand.weight",
        "_blocks.1._bn0.bias": "stage2.0.expand.norm.bias",
        "_blocks.2._bn1.weight": "stage2.1.depthwise.norm.weight",
        "_blocks.2._project_conv.weight": "stage2.1.project.weight",
        "_blocks.2._bn2.running_var": "stage2.1.project.norm.running_var",
        "_blocks.2._other.weight": "_blocks.2._other.weight",
    }
    if not unbuilt:  # a block too many is for the report to name
        names["_blocks.3._bn2.weight"] = "_blocks.3._bn2.weight"
    state = {theirs: torch.tensor(float(number)) for number, theirs in enumerate(names)}
    layout = efficientnet_lite.LAYOUTS[0]
    converted = layout.convert({**state, "_blocks.3._bn2.weight": torch.tensor(99.0)}, model)
    assert converted == {ours: torch.tensor(99.0) if "3._bn2" in ours else state[n] for n, ours in names.items()}
    assert layout.recognise(state)
    assert not layout.recognise(["_conv_stem.weight"])


class Net:
    """What a layout asks of a model: its state, and for a transformer its form."""

    def __init__(self, state: dict[str, Tensor], qkv_bias: str = "all") -> None:
        self._state, self.form = state, SimpleNamespace(qkv_bias=qkv_bias)

    def state_dict(self) -> dict[str, Tensor]:
        return self._state


def test_swins_table_of_another_window_is_resampled_by_offset_and_output_norms_start_plain() -> None:
    """Offsets of a window of 3 are 5 x 5, of one of 4 are 7 x 7: what goes with x goes with x."""
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    column, row = torch.arange(25.0) % 5, torch.arange(25.0) // 5
    table = torch.stack([column, 10 * row], dim=1)
    norm = torch.rand(4)
    model: Any = Net({key: torch.zeros(49, 2), "norm1.weight": norm, "patch_embed.norm.weight": torch.zeros(1)})
    converted = swin.LAYOUTS[0].convert({key: table, "head.weight": torch.ones(1)}, model)
    across, down = converted[key].unflatten(0, (7, 7)).unbind(2)
    torch.testing.assert_close(across, across[:1].expand(7, 7))
    torch.testing.assert_close(down, 10 * across.T)
    assert across[0].diff().min() > 0
    assert float(across[0, 3]) == pytest.approx(2.0)
    assert set(converted) == {key, "head.weight", "norm1.weight"}
    assert torch.equal(converted["norm1.weight"], norm)
    same: Any = Net({key: torch.zeros(25, 2)})
    assert swin.LAYOUTS[0].convert({key: table}, same)[key] is table
    assert not swin.LAYOUTS[0].recognise(["patch_embed.proj.weight"])
    assert not swin.LAYOUTS[0].recognise(["layers.0.blocks.0.attn.qkv.weight"])


BIAS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


@pytest.mark.parametrize(
    ("form", "mask", "wanted"),
    [
        ("all", None, [1, 2, 3, 4, 5, 6]),
        ("no_keys", None, [1, 2, 0, 0, 5, 6]),
        ("no_keys", [0.0, 1, 1, 1, 1, 0.5], [0, 2, 0, 0, 5, 3]),
        ("no_keys", [float("nan")] * 6, [1, 2, 0, 0, 5, 6]),
    ],
)
def test_keys_of_a_transformer_have_a_bias_only_where_its_form_says_so(
    form: str, mask: list[float] | None, wanted: list[float]
) -> None:
    state = {"blocks.0.attn.qkv.bias": BIAS}
    if mask is not None:
        state["blocks.0.attn.qkv.bias_mask"] = torch.tensor(mask)
    model: Any = Net({}, form)
    assert {name: value.tolist() for name, value in vit.LAYOUTS[0].convert(state, model).items()} == {
        "blocks.0.attn.qkv.bias": wanted
    }


def test_official_names_of_transformers_are_ours_but_for_registers_chunks_and_gated_layers() -> None:
    periods = torch.tensor([7.0])
    model: Any = Net({"rope_embed.periods": periods})
    one, two = torch.ones(2, 3), torch.zeros(2, 3)
    state = {
        "storage_tokens": torch.tensor(1.0),
        "blocks.1.17.ls1.gamma": torch.tensor(2.0),
        "blocks.3.mlp.w2.weight": two,
        "blocks.3.mlp.w1.weight": one,
        "norm.weight": torch.tensor(3.0),
    }
    found = vit.LAYOUTS[0].convert(state, model)
    assert set(found) == {
        "register_tokens", "blocks.17.ls1.gamma", "blocks.3.mlp.w12.weight", "norm.weight", "rope_embed.periods",
    }  # fmt: skip
    assert torch.equal(found["blocks.3.mlp.w12.weight"], torch.cat([one, two]))
    assert found["rope_embed.periods"] is periods
    kept = vit.LAYOUTS[0].convert({"rope_embed.periods": torch.tensor([8.0])}, model)
    assert float(kept["rope_embed.periods"]) == 8.0
    names = ["cls_token", "patch_embed.proj.weight", "blocks.0.0.attn.qkv.weight"]
    assert vit.LAYOUTS[0].recognise(names)
    assert not any(vit.LAYOUTS[0].recognise([name for name in names if name != left]) for left in names)


@pytest.mark.parametrize("gated", [False, True])
def test_names_of_transformers_join_queries_keys_and_values_and_the_gate_with_what_it_opens(gated: bool) -> None:
    rows = {name: torch.full((2, 3), float(number)) for number, name in enumerate("qkvgu")}
    block = "model.encoder.layer.4."
    state = {
        f"{block}attention.k_proj.weight": rows["k"],
        f"{block}attention.v_proj.weight": rows["v"],
        f"{block}attention.q_proj.weight": rows["q"],
        f"{block}attention.v_proj.bias": torch.tensor([5.0, 6.0]),
        f"{block}attention.q_proj.bias": torch.tensor([1.0, 2.0]),
        f"{block}attention.o_proj.weight": torch.tensor(20.0),
        f"{block}layer_scale1.lambda1": torch.tensor(21.0),
        f"{block}layer_scale2.lambda1": torch.tensor(22.0),
        f"{block}norm2.bias": torch.tensor(23.0),
        f"{block}mlp.up_proj.weight": rows["u"],
        f"{block}mlp.down_proj.weight": torch.tensor(24.0),
        "dinov2.embeddings.cls_token": torch.tensor(25.0),
        "model.embeddings.patch_embeddings.projection.bias": torch.tensor(26.0),
        "layernorm.weight": torch.tensor(27.0),
        "model.something": torch.tensor(28.0),
    }
    if gated:
        state[f"{block}mlp.gate_proj.weight"] = rows["g"]
    model: Any = Net({})
    layout = vit.LAYOUTS[1]
    found = layout.convert(state, model)
    plain = {name: float(value) for name, value in found.items() if value.dim() == 0}
    assert plain == {
        "blocks.4.attn.proj.weight": 20.0,
        "blocks.4.ls1.gamma": 21.0,
        "blocks.4.ls2.gamma": 22.0,
        "blocks.4.norm2.bias": 23.0,
        f"blocks.4.mlp.{'w3' if gated else 'fc2'}.weight": 24.0,
        "cls_token": 25.0,
        "patch_embed.proj.bias": 26.0,
        "norm.weight": 27.0,
        "model.something": 28.0,
    }
    assert torch.equal(found["blocks.4.attn.qkv.weight"], torch.cat([rows[name] for name in "qkv"]))
    assert found["blocks.4.attn.qkv.bias"].tolist() == [1, 2, 0, 0, 5, 6]
    joined = torch.cat([rows["g"], rows["u"]]) if gated else rows["u"]
    assert torch.equal(found[f"blocks.4.mlp.{'w12' if gated else 'fc1'}.weight"], joined)
    assert layout.recognise(["vit.embeddings.cls_token", f"{block}attention.attention.query.weight"])
    assert layout.recognise(["embeddings.cls_token", "layer.0.attention.q_proj.weight"])
    assert not layout.recognise(["embeddings.cls_token", "layer.0.attention.k_proj.weight"])
    assert not layout.recognise([f"{block}attention.q_proj.weight"])
