"""Cases of vision transformers alone: official DINO, DINOv2 and DINOv3 from random weights on one image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fssops
from fssops.models.backbones.vit import ROTARY_BASE, VIT, VisionTransformer, ViTForm
from parity_cases.case import Case, CaseError, Line, compared, compared_exactly, not_compared, summary_of

MEAN = torch.tensor((0.485, 0.456, 0.406))
STD = torch.tensor((0.229, 0.224, 0.225))


def form_of(description: dict[str, Any]) -> str | None:
    """The row of ``VIT`` that a case's model, or else its name, speaks of; registers count where they are said."""
    prefix = description.get("config", {}).get("prefix_tokens")
    for name, shape, _ in description.get("state", []):
        if name == "register_tokens":
            prefix = 1 + shape[1]
    for said in (str(description.get("model", "")), str(description.get("case", ""))):
        names = [name for name in VIT if name in said and prefix in (None, VIT[name].prefix)]
        names += [f"{name}_reg" for name in VIT if name in said and f"{name}_reg" in VIT and prefix == 5]
        if names:
            return max(names, key=len)
    return None


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is of a vision transformer alone."""
    return not str(description.get("model", "")).startswith("INSID3") and form_of(description) is not None


def official_weights(case: Case, form: ViTForm) -> dict[str, Tensor]:
    """The reference's state dict with what ``state_fixed`` sets by rule.

    Raises:
        CaseError: an entry is fixed by a rule that is not one of DINOv3's two.
    """
    state = case.weights()
    for name in case.description.get("state_fixed", {}):
        if name.endswith("attn.qkv.bias_mask"):
            mask = torch.ones(3, form.width)
            mask[1] = 0
            state.update({f"blocks.{number}.attn.qkv.bias_mask": mask.flatten() for number in range(form.depth)})
        elif name == "rope_embed.periods":
            steps = form.width // form.heads // 4
            state[name] = ROTARY_BASE ** (torch.arange(steps) / steps)
        else:
            raise CaseError(f"{case.folder}: state_fixed must be of bias_mask or rope_embed.periods, got {name}")
    return state


def normalised(image: Tensor) -> Tensor:
    """uint8 [H, W, 3] to the model's input [1, 3, H, W]."""
    return ((image.float() / 255 - MEAN) / STD).permute(2, 0, 1)[None].contiguous()


def _taps(case: Case, depth: int) -> tuple[list[int], bool]:
    """The blocks of the arrays ``intermediate.*``, and whether these are of the patches alone."""
    said = str(case.description.get("arrays", {}).get("intermediate.stats", {}).get("what", ""))
    only_patches = "patch tokens" in said or "all tokens" not in said
    if listed := re.search(r"n=\[([0-9, ]+)\]", said):
        return [int(number) for number in listed[1].split(",")], only_patches
    count = re.search(r"n=(\d+)", said)
    return list(range(depth - (int(count[1]) if count else 4), depth)), only_patches


def computed(case: Case, model: VisionTransformer) -> dict[str, Tensor]:
    """Everything that a case of a vision transformer may hold, by the case's names."""
    form = model.form
    image = normalised(case.tensor("image"))
    taps, only_patches = _taps(case, form.depth)
    # What is no whole patch the reference leaves out, where it does not refuse it; here it would be padded.
    height, width = (length - length % form.patch for length in image.shape[-2:])
    inside = image[..., :height, :width]
    blocks, grid = model.tokens(inside, range(form.depth))
    last = blocks[form.depth - 1]
    normed = model.norm(last)[0]
    found = {
        "tokens_in": model.embed(inside)[0][0],
        "prenorm": last[0],
        "tokens_out": normed,
        "feature_map.channels0_8": normed[form.prefix :].T.unflatten(1, grid)[:8],
        "intermediate.cls": torch.cat([model.norm(blocks[number])[:, 0] for number in taps]),
    }
    wholes = {
        "blocks": [blocks[number] for number in range(form.depth)],
        "intermediate": [model.norm(blocks[number])[:, form.prefix if only_patches else 0 :] for number in taps],
    }
    for kind in ("stats", "sample"):
        found[f"pixel_values.{kind}"] = summary_of(image, kind)
        for name, values in wholes.items():
            found[f"{name}.{kind}"] = torch.stack([summary_of(value.contiguous(), kind) for value in values])
    if form.table:
        positions = model.positions(*grid)[0]
        found["pos_embed_interp"], found["pos_embed_interp.stats"] = positions[:, :32], summary_of(positions, "stats")
    else:
        rotary = model.rope_embed
        assert rotary is not None
        cos, sin = rotary(*grid)
        found["rope.periods"] = rotary.periods
        found["rope.sin"], found["rope.cos"] = torch.cat([sin, sin], 1), torch.cat([cos, cos], 1)
    return found


def run(case: Case) -> Iterator[Line]:
    """Compare every array of the case."""
    name = form_of(case.description)
    if name is None:
        raise CaseError(f"{case.folder}: model must be one of {', '.join(VIT)}, got {case.description.get('model')}")
    model = VisionTransformer(VIT[name]).eval()
    state = official_weights(case, model.form)
    fssops.load_weights(model, state)
    with torch.inference_mode():
        found = computed(case, model)
    close = case.tolerance("default", 2e-5)
    tight = case.tolerance("rope, pos_embed_interp, pixel_values", 1e-5)
    inputs = case.inputs()
    for name, want in case.arrays.items():
        if name in inputs:
            yield not_compared(name, "input of the model")
        elif name not in found:
            yield not_compared(name, "nothing of that name is computed here")
        elif want.dtype.kind in "iub":
            yield compared_exactly(name, found[name], want)
        else:
            exact = name.startswith(("rope.", "pos_embed_interp", "pixel_values"))
            yield compared(name, found[name], want, tight if exact else close)
