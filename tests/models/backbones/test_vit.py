"""Vision transformers: positions and rotations written out, padding, freezing, layouts, the authors' cases."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import parity
import pytest
import torch
from torch import Tensor, nn

import fssops
from fssops.models.backbones.vit import VIT, RotaryPositions, VisionTransformer, ViTForm, upsample_to_image
from fssops.models.layers.stochastic_depth import drop_path
from fssops.weights.reading import CheckpointError

DINO = ViTForm(8, 32, 3, 2, 64, layer_scale=False, table=5)
DINOV2 = ViTForm(14, 32, 3, 2, 64, table=5)
DINOV2_REG = replace(DINOV2, registers=4, table_resize="antialias")
DINOV3 = ViTForm(16, 32, 3, 2, 64, registers=4, norm_eps=1e-5, qkv_bias="no_key")
FORMS = {
    "dino": DINO,
    "dinov2": DINOV2,
    "dinov2_reg": DINOV2_REG,
    "dinov2_giant": replace(DINOV2, swiglu=True),
    "dinov3": DINOV3,
    "dinov3_plus": replace(DINOV3, swiglu=True),
    "dinov3_7b": replace(DINOV3, swiglu=True, qkv_bias="none"),
}


def network(form: ViTForm, **options: Any) -> VisionTransformer:
    """A small one in eval mode whose every parameter matters: nothing is zero or one."""
    torch.manual_seed(3)
    model = VisionTransformer(form, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
    return model.eval()


def picture(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def published_sizes() -> dict[str, int]:
    """Parameters of the official models, mask token included (the fact sheet's table)."""
    return {
        "dino_vits16": 21_665_664,
        "dino_vits8": 21_670_272,
        "dino_vitb16": 85_798_656,
        "dino_vitb8": 85_807_872,
        "dinov2_vits14": 22_056_576,
        "dinov2_vits14_reg": 22_058_112,
        "dinov2_vitb14": 86_580_480,
        "dinov2_vitb14_reg": 86_583_552,
        "dinov2_vitl14": 304_368_640,
        "dinov2_vitl14_reg": 304_372_736,
        "dinov2_vitg14": 1_136_480_768,
        "dinov2_vitg14_reg": 1_136_486_912,
        "dinov3_vits16": 21_601_152,
        "dinov3_vits16plus": 28_697_472,
        "dinov3_vitb16": 85_669_632,
        "dinov3_vitl16": 303_154_176,
        "dinov3_vitl16plus": 403_915_776,
        "dinov3_vith16plus": 840_633_600,
        "dinov3_vit7b16": 6_716_043_264,
    }


@pytest.mark.parametrize("name", VIT)
def test_published_sizes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(VIT[name])
    mask_token = 0 if name.startswith("dino_") else VIT[name].width
    # The 7B model also has a norm of the class token, which only its training uses.
    training_only = 2 * 4096 if name == "dinov3_vit7b16" else 0
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert ours + mask_token + training_only == published_sizes()[name]


def cubic(distance: float, a: float) -> float:
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resize_matrix(old: int, new: int, rule: str) -> np.ndarray[Any, Any]:
    """[new, old] weights of one direction, written out."""
    weights = np.zeros((new, old))
    for target in range(new):
        if rule == "offset":
            source = (target + 0.5) * old / (new + 0.1) - 0.5
            for tap in range(math.floor(source) - 1, math.floor(source) + 3):
                weights[target, min(max(tap, 0), old - 1)] += cubic(source - tap, -0.75)
        else:
            stretch = max(old / new, 1.0)
            centre = (target + 0.5) * old / new
            taps = range(max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), old))
            values = [cubic((tap - centre + 0.5) / stretch, -0.5) for tap in taps]
            weights[target, list(taps)] = np.array(values) / sum(values)
    return weights


@pytest.mark.parametrize("grid", [(3, 7), (9, 4), (1, 25), (25, 1), (12, 12), (5, 6)])
@pytest.mark.parametrize("rule", ["offset", "antialias"])
def test_position_table_is_resized_as_the_official_code_does(rule: str, grid: tuple[int, int]) -> None:
    model = network(DINOV2 if rule == "offset" else DINOV2_REG)
    table = model.pos_embed
    assert table is not None
    old = table[0, 1:].detach().double().numpy().reshape(5, 5, -1)
    down, across = resize_matrix(5, grid[0], rule), resize_matrix(5, grid[1], rule)
    expected = np.einsum("yY,xX,YXd->yxd", down, across, old)
    positions = model.positions(*grid)[0]
    assert torch.equal(positions[0], table[0, 0])
    got = positions[1:].detach().double().numpy().reshape(*grid, -1)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


def test_position_table_of_its_own_size_is_used_as_it_is() -> None:
    model = network(DINOV2)
    assert model.positions(5, 5) is model.pos_embed


def test_rotary_positions_turn_rows_and_columns_by_angles_that_span_the_image() -> None:
    rotary = RotaryPositions(16)
    cos, sin = rotary(2, 3, prefix=2)
    assert cos.shape == sin.shape == (2 + 6, 8)
    assert torch.equal(cos[:2], torch.ones(2, 8))
    assert torch.equal(sin[:2], torch.zeros(2, 8))
    for row in range(2):
        for column in range(3):
            y, x = 2 * (row + 0.5) / 2 - 1, 2 * (column + 0.5) / 3 - 1
            angles = [2 * math.pi * at / 100 ** (step / 4) for at in (y, x) for step in range(4)]
            place = 2 + 3 * row + column
            assert torch.allclose(sin[place], torch.tensor(angles).sin(), atol=1e-6)
            assert torch.allclose(cos[place], torch.tensor(angles).cos(), atol=1e-6)


def by_hand(model: VisionTransformer, images: Tensor) -> Tensor:
    """Normed tokens of the last block, with attention and rotation written out."""
    form = model.form
    tokens, grid = model.embed(images)
    for block in model.blocks:
        assert isinstance(block, nn.Module)
        inner: Any = block
        x = inner.norm1(tokens)
        weight, bias = inner.attn.qkv.weight, inner.attn.qkv.bias
        bias = torch.zeros(3 * form.width, dtype=x.dtype) if bias is None else bias.clone()
        if form.qkv_bias != "all":
            bias[form.width : 2 * form.width] = 0
        q, k, v = (x @ weight.T + bias).chunk(3, dim=-1)
        heads = []
        for head in range(form.heads):
            d = form.width // form.heads
            part = slice(head * d, (head + 1) * d)
            a, b = q[..., part], k[..., part]
            if not form.table:
                assert model.rope_embed is not None
                cos, sin = (torch.cat([t, t], 1) for t in model.rope_embed(*grid))
                a, b = (rotated(t, cos, sin, form.prefix) for t in (a, b))
            heads.append((a @ b.transpose(1, 2) / math.sqrt(d)).softmax(-1) @ v[..., part])
        out = inner.attn.proj(torch.cat(heads, -1))
        tokens = tokens + (out * inner.ls1.gamma if form.layer_scale else out)
        x = inner.norm2(tokens)
        if form.swiglu:
            first, second = inner.mlp.w12(x).chunk(2, dim=-1)
            out = inner.mlp.w3(first * torch.sigmoid(first) * second)
        else:
            out = inner.mlp.fc1(x)
            out = inner.mlp.fc2(0.5 * out * (1 + torch.erf(out / math.sqrt(2))))
        tokens = tokens + (out * inner.ls2.gamma if form.layer_scale else out)
    normed: Tensor = model.norm(tokens)
    return normed


def rotated(x: Tensor, cos: Tensor, sin: Tensor, prefix: int) -> Tensor:
    patches = x[:, prefix:]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([x[:, :prefix], patches * cos + torch.cat([-second, first], -1) * sin], dim=1)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_features_are_the_patch_tokens_of_the_blocks_written_out(form: ViTForm) -> None:
    model = network(form).double()
    images = picture(3 * form.patch, 4 * form.patch).double()
    features = model(images)
    assert list(features) == ["block2"]
    assert model.taps == ("block2",)
    assert set(model.channels) == {"block0", "block1", "block2", "res2", "res3", "res4", "res5"}
    assert set(model.channels.values()) == {32}
    assert set(model.strides.values()) == {form.patch}
    expected = by_hand(model, images)[:, form.prefix :].transpose(1, 2).unflatten(2, (3, 4))
    assert torch.allclose(features["block2"], expected, atol=1e-10)


def test_registers_stand_after_the_class_token_and_have_no_position() -> None:
    model = network(DINOV2_REG)
    assert model.register_tokens is not None
    tokens, _ = model.embed(picture(28, 42))
    assert tokens.shape == (2, 1 + 4 + 6, 32)
    assert torch.equal(tokens[0, 1:5], model.register_tokens[0])


def test_taps_are_the_outputs_of_the_numbered_blocks() -> None:
    images = picture(32, 48)
    model = network(DINOV3, taps=("block0", "block2"))
    raw = network(DINOV3, taps=("block0", "block2"), norm_outputs=False)
    outputs, grid = model.tokens(images, (0, 1, 2))
    assert grid == (2, 3)
    for number in (0, 2):
        patches = outputs[number][:, 5:]
        assert torch.equal(model(images)[f"block{number}"].permute(0, 2, 3, 1).flatten(1, 2), model.norm(patches))
        assert torch.equal(raw(images)[f"block{number}"].permute(0, 2, 3, 1).flatten(1, 2), patches)


def test_blocks_after_the_last_tap_are_not_run() -> None:
    model = network(DINOV2, taps=("block0",))
    calls: list[int] = []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    model(picture(28, 28))
    assert calls == [0]
    assert [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("blocks.1")] == []


@pytest.mark.parametrize("form", [DINOV2, DINOV3], ids=["table", "rotary"])
def test_sides_that_the_patch_does_not_divide_are_padded_and_said(form: ViTForm) -> None:
    model = network(form)
    images = picture(2 * form.patch + 3, 3 * form.patch - 1)
    padded = torch.zeros(2, 3, 3 * form.patch, 3 * form.patch)
    padded[..., : images.shape[2], : images.shape[3]] = images
    with pytest.warns(UserWarning, match=rf"multiples of the patch, {form.patch}, got {2 * form.patch + 3} x"):
        features = model(images)["block2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(features, model(padded)["block2"])


def test_maps_of_a_padded_image_come_back_at_its_own_pixels() -> None:
    rows = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 2)
    image = upsample_to_image(rows, (37, 25), 14)
    assert image.shape == (1, 1, 37, 25)
    centres = image[0, 0, [6, 7, 20, 21], 3]
    assert torch.allclose(centres, torch.tensor([0.0, 0.0357, 0.9643, 1.0357]), atol=1e-3)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients_of_every_parameter_agree_with_finite_differences(form: ViTForm) -> None:
    model = network(form).double()
    images = picture(2 * form.patch, 3 * form.patch, 1).double()
    weights = torch.randn(1, 32, 2, 3, dtype=torch.float64)

    def value() -> Tensor:
        return (model(images)["block2"] * weights).sum()

    value().backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step * direction
            above = value()
            parameter -= 2 * step * direction
            below = value()
            parameter += step * direction
        expected = float((above - below) / (2 * step))
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_keys_have_no_bias_in_dinov3() -> None:
    model = network(DINOV3)
    images = picture(32, 48)
    before = model(images)["block2"]
    for block in model.blocks:
        bias: Any = block.get_parameter("attn.qkv.bias")
        bias.data[32:64] = 100.0
    assert torch.equal(model(images)["block2"], before)
    model(images)["block2"].square().sum().backward()
    gradient = model.get_parameter("blocks.0.attn.qkv.bias").grad
    assert gradient is not None
    assert torch.equal(gradient[32:64], torch.zeros(32))
    assert bool((gradient[:32] != 0).all())


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (0, {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "blocks.2", "norm"}),
        (1, {"blocks.0", "blocks.1", "blocks.2", "norm"}),
        (3, {"blocks.2", "norm"}),
        (4, {"norm"}),
        ("all", set()),
    ],
)
def test_the_first_layers_are_frozen_embeddings_first(layers: Any, trained: set[str]) -> None:
    model = network(DINOV2, drop_path=0.5).train()
    model.freeze(layers)
    open_names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    stems = {".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0] for name in open_names}
    assert stems == trained
    # Whatever is frozen stays in evaluation mode, so that no path of it drops.
    assert [block.training for block in model.train().blocks] == [f"blocks.{n}" in trained for n in range(3)]


def test_blocks_after_the_last_map_are_neither_run_nor_trained() -> None:
    model = network(DINOV2, taps=("block1",))
    assert {n.split(".")[1] for n, p in model.named_parameters() if n.startswith("blocks") and p.requires_grad} == {
        "0",
        "1",
    }
    model.blocks[2] = torch.nn.Identity()  # would fail if it were called with two arguments
    assert list(model(picture(28, 28))) == ["block1"]


def test_levels_are_the_last_blocks_of_the_quarters() -> None:
    form = replace(DINOV2, depth=12)
    levels = network(form, taps=("res2", "res3", "res4", "res5"))
    blocks = network(form, taps=("block2", "block5", "block8", "block11"))
    images = picture(28, 42)
    for level, block in zip(levels(images).values(), blocks(images).values(), strict=True):
        assert torch.equal(level, block)
    assert levels.layer_counts == {"res2": 3, "res3": 3, "res4": 3, "res5": 3}


def test_levels_of_a_padded_image_cover_it_and_nothing_more() -> None:
    model = network(DINOV2, taps=("res5", "block2"))
    with pytest.warns(UserWarning, match="padded"):
        maps = model(picture(30, 28))
    assert maps["block2"].shape[-2:] == maps["res5"].shape[-2:] == (3, 2)
    # By hand: cell i of 3 spans 10 pixels, so its centre lies at 10 i + 5, in cells of 14 at (10 i + 5) / 14 - 1/2.
    rows = maps["block2"]
    for i in range(3):
        place = max((10 * i + 5) / 14 - 0.5, 0.0)
        low = int(place)
        wanted = rows[:, :, low] * (1 - place + low) + rows[:, :, min(low + 1, 2)] * (place - low)
        assert torch.allclose(maps["res5"][:, :, i], wanted, atol=1e-5)


def test_watchers_see_every_block_of_their_quarter() -> None:
    form = replace(DINOV2, depth=8)
    seen: dict[str, list[Tensor]] = {"res3": [], "res5": []}
    images = picture(28, 28)
    maps = network(form, taps=("res5",))(images, {name: taken.append for name, taken in seen.items()})
    every = network(form, taps=tuple(f"block{n}" for n in range(8)))(images)
    for name, numbers in (("res3", (2, 3)), ("res5", (6, 7))):
        assert len(seen[name]) == 2
        assert all(torch.equal(x, every[f"block{n}"]) for x, n in zip(seen[name], numbers, strict=True))
    assert torch.equal(maps["res5"], seen["res5"][-1])


def test_learning_rates_may_decay_by_layer() -> None:
    model = network(DINOV2_REG)
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["cls_token"] == layers["pos_embed"] == layers["patch_embed.proj.weight"] == 0
    assert layers["register_tokens"] == 0
    assert [layers[f"blocks.{number}.norm1.weight"] for number in range(3)] == [1, 2, 3]
    assert layers["norm.bias"] == 4


def test_branches_drop_in_training_only_and_keep_their_mean() -> None:
    model = network(DINOV2, drop_path=0.4, taps=("block2",))
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    images = picture(28, 28, 1)
    still = network(DINOV2)(images)["block2"]
    assert torch.equal(model(images)["block2"], still)
    assert not torch.equal(model.train()(images)["block2"], still)
    ones = torch.ones(4000, 1, 1)
    dropped = drop_path(ones, 0.4, training=True)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 1 / 0.6])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)


def test_rotary_coordinates_are_rescaled_in_training_only() -> None:
    images = picture(32, 48)
    still, moved = network(DINOV3), network(DINOV3, rope_rescale=2.0)
    assert torch.equal(still(images)["block2"], moved(images)["block2"])
    still.train()
    moved.train()
    assert torch.equal(still(images)["block2"], still.eval()(images)["block2"])
    assert not torch.equal(moved(images)["block2"], moved(images)["block2"])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_half_precision_stays_close(form: ViTForm) -> None:
    model = network(form)
    images = picture(3 * form.patch, 2 * form.patch)
    exact = model(images)["block2"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)["block2"]
    whole = model.bfloat16()(images.bfloat16())["block2"]
    assert (mixed.float() - exact).abs().max() <= 0.1 * exact.abs().max()
    assert (whole.float() - exact).abs().max() <= 0.2 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ("block3",)}, "taps must be among block0 to block2"),
        ({"taps": ()}, "taps must be among block0 to block2"),
        ({"taps": ("res1",)}, "taps must be among block0 to block2 and res2, res3, res4, res5"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and less than 1"),
        ({"rope_rescale": 0.5}, "rope_rescale must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionTransformer(DINOV2, **options)


def official_state(model: VisionTransformer) -> dict[str, Tensor]:
    """The model's weights under the names of the official files."""
    state: dict[str, Tensor] = {}
    v3 = not model.form.table
    for name, value in model.state_dict().items():
        if name == "register_tokens" and v3:
            state["storage_tokens"] = value
        elif ".mlp.w12." in name and v3:
            state[name.replace("w12", "w1")], state[name.replace("w12", "w2")] = value.chunk(2)
        else:
            state[name] = value.clone()
        if name.endswith("attn.qkv.bias") and v3:
            mask = torch.ones(3, value.numel() // 3)
            mask[1] = 0
            state[f"{name}_mask"] = mask.flatten()
    if model.form.layer_scale:
        state["mask_token"] = torch.randn(1, model.form.width)
    return state


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("chunked", [False, True], ids=["flat", "chunked"])
def test_official_files_fit_whole(form: ViTForm, chunked: bool) -> None:
    source, target = network(form), VisionTransformer(form).eval()
    state = official_state(source)
    if chunked:
        state = {name.replace("blocks.", "blocks.0.", 1): value for name, value in state.items()}
    report = fssops.load_weights(target, state)
    assert report.complete
    images = picture(2 * form.patch, 3 * form.patch)
    assert torch.equal(target(images)["block2"], source(images)["block2"])


@pytest.mark.parametrize("mask", ["missing", "nan"])
def test_a_missing_mask_of_biases_means_that_keys_have_none(mask: str) -> None:
    source, target = network(DINOV3), VisionTransformer(DINOV3)
    state = official_state(source)
    for name in [name for name in state if name.endswith("bias_mask")]:
        if mask == "missing":
            del state[name]
        else:
            state[name] = torch.full_like(state[name], math.nan)
    fssops.load_weights(target, state)
    loaded = target.get_parameter("blocks.1.attn.qkv.bias")
    expected = source.get_parameter("blocks.1.attn.qkv.bias")
    assert torch.equal(loaded[:32], expected[:32])
    assert torch.equal(loaded[32:64], torch.zeros(32))


def test_stored_periods_are_used() -> None:
    state = official_state(network(DINOV3))
    state["rope_embed.periods"] = state["rope_embed.periods"].bfloat16().float()
    model = VisionTransformer(DINOV3)
    fssops.load_weights(model, state)
    assert model.rope_embed is not None
    assert torch.equal(model.rope_embed.periods, state["rope_embed.periods"])


def test_weights_of_another_size_are_refused_by_shape() -> None:
    state = official_state(network(DINOV2))
    with pytest.raises(CheckpointError, match=r"of another shape, e\.g\. pos_embed is"):
        fssops.load_weights(VisionTransformer(replace(DINOV2, table=4)), state)
    with pytest.raises(CheckpointError, match=r"missing, e\.g\. register_tokens"):
        fssops.load_weights(VisionTransformer(DINOV2_REG), state)


def transformers_model(kind: str) -> tuple[Any, ViTForm, tuple[int, int]]:
    """A small model of transformers with random weights, our form of it, and an image size at which both agree."""
    transformers = pytest.importorskip("transformers")
    shared = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    if kind.startswith("dinov3"):
        plus = kind == "dinov3_plus"
        config = transformers.DINOv3ViTConfig(
            **{**shared, "layer_norm_eps": 1e-5, "hidden_act": "silu" if plus else "gelu"},
            intermediate_size=64,
            patch_size=16,
            image_size=80,
            num_register_tokens=4,
            use_gated_mlp=plus,
        )
        return transformers.DINOv3ViTModel(config), FORMS[kind], (48, 64)
    if kind == "dino":
        config = transformers.ViTConfig(**shared, intermediate_size=64, patch_size=8, image_size=40, qkv_bias=True)
        return transformers.ViTModel(config), DINO, (40, 40)
    giant = kind == "dinov2_giant"
    options = {**shared, "mlp_ratio": 2, "patch_size": 14, "image_size": 70, "use_swiglu_ffn": giant}
    if kind == "dinov2_reg":
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=4)
        return transformers.Dinov2WithRegistersModel(config), DINOV2_REG, (42, 98)
    form = replace(DINOV2, swiglu=True, hidden=48) if giant else DINOV2
    return transformers.Dinov2Model(transformers.Dinov2Config(**options)), form, (70, 70)


@pytest.mark.parametrize("prefix", ["", "backbone_of_transformers"])
@pytest.mark.parametrize("kind", ["dino", "dinov2", "dinov2_reg", "dinov2_giant", "dinov3", "dinov3_plus"])
def test_models_of_transformers_give_the_same_tokens(kind: str, prefix: str) -> None:
    theirs, form, size = transformers_model(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    stem = {"dino": "vit.", "dinov3": "model.", "dinov3_plus": "model."}.get(kind, "dinov2.") if prefix else ""
    if kind == "dinov2_reg" and prefix:
        stem = "dinov2_with_registers."
    state = {stem + name: value for name, value in theirs.eval().state_dict().items()}
    ours = VisionTransformer(form).eval()
    report = fssops.load_weights(ours, state)
    assert report.complete
    assert report.layout.startswith("transformers")
    images = picture(*size)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        outputs, _ = ours.tokens(images, (2,))
        got = ours.norm(outputs[2])
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["vit_dinov2_vits14", "vit_dinov3_vits16"])
def test_parity_with_the_authors_code(oracle_root: Any, name: str) -> None:
    lines = list(parity.lines_of(oracle_root / name))
    compared = {line.name for line in lines if line.error is not None}
    assert {"tokens_in", "tokens_out", "intermediate.sample", "intermediate.cls"} <= compared
    assert ("pos_embed_interp" in compared) == ("dinov2" in name)
    assert ("rope.sin" in compared) == ("dinov3" in name)
    assert not [str(line) for line in lines if line.out]
