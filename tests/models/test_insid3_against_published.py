"""INSID3 against its published composition written out, in what the open parity case does not show.

Several shots, every family of vision transformers, no candidate at all, masks that vanish, refined outlines. Discrete
results are equal, others within the tolerances of the parity cases.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from parity_cases.case import Case
from parity_cases.insid3 import model_of, same_partition
from PIL import Image
from torch import Tensor

import fssops
from fssops.models.backbones.vit import VIT
from fssops.models.insid3 import INSID3
from fssops.models.insid3.debiasing import unit
from fssops.models.insid3.matching import backward_votes, forward_matches
from fssops.models.insid3.refinement import refine_masks
from fssops.testing.published_insid3 import PublishedINSID3, refined

FILL = """
import zlib
import numpy as np

def fill(key, shape, salt=""):
    rng = np.random.RandomState(zlib.crc32((salt + "|" + key).encode()))
    scale = 0.35 if len(shape) > 1 else 0.2
    return (rng.standard_normal(tuple(shape)) * scale + float("norm" in key and "weight" in key)).astype(np.float32)
"""
FAMILIES = ["dino_vits8", "dino_vitb16", "dinov2_vits14", "dinov2_vitb14_reg", "dinov3_vits16", "dinov3_vits16plus"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family keeps its details, but is 32 channels wide and two blocks deep."""
    for name in FAMILIES:
        form = VIT[name]
        table = 5 if form.table else 0
        monkeypatch.setitem(VIT, name, replace(form, width=32, depth=2, heads=2, hidden=64, table=table))


def blob(size: tuple[int, int], seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A uint8 picture [H, W, 3] of flat regions with one blob of its own colour, and the blob's mask [H, W]."""
    rng = np.random.default_rng(seed)
    height, width = size
    regions = rng.integers(60, 140, (4, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(regions).resize((width, height), Image.Resampling.NEAREST)).astype(float)
    y, x = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.35, 0.65, 2)
    mask = ((y / height - centre[0]) ** 2 + (x / width - centre[1]) ** 2) < 0.05
    picture[mask] = (230, 40, 200)
    return (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def official_rows(model: INSID3) -> list[list[Any]]:
    """Names and shapes of the official state dict of a model's backbone."""
    rows: list[list[Any]] = []
    registers = "storage_tokens" if model.backbone.form.table == 0 else "register_tokens"
    for name, value in model.backbone.state_dict().items():
        if ".w12." in name:
            half = [len(value) // 2, *value.shape[1:]]
            rows += [[name.replace("w12", part), half, "float32"] for part in ("w1", "w2")]
        else:
            rows.append([name.replace("register_tokens", registers), list(value.shape), "float32"])
    if model.backbone.form.qkv_bias == "no_key":
        rows += [[f"blocks.{n}.attn.qkv.bias_mask", [96], "float32"] for n in range(2)]
    return rows


def write_case(folder: Path, backbone: str, shots: int, components: int = 4, refiner: str = "bilinear") -> set[str]:
    """A case whose expected arrays are the published composition's; returns their names."""
    folder.mkdir(parents=True)
    (folder.parent / "oracle_weights.py").write_text(FILL)
    patch = VIT[backbone].patch
    side = (4 if refiner == "crf" else 8) * patch
    names = [*(f"ref{shot}" for shot in range(shots)), "target"]
    pictures = {name: blob((90, 120), number) for number, name in enumerate(names)}
    arrays = {f"{name}.image": image for name, (image, _) in pictures.items()}
    arrays |= {f"{name}.mask": mask for name, (_, mask) in pictures.items() if name != "target"}
    config = {"image_size": side, "shots": shots, "svd_components": components, "tau": 0.6, "merge_threshold": 0.05}
    description: dict[str, Any] = {
        "case": folder.name,
        "model": f"INSID3 with {backbone.split('_')[0]}",
        "config": {**config, "mask_refiner": refiner},
        "salt": "",
        "state": official_rows(fssops.create_model("insid3", backbone=backbone)),  # type: ignore[arg-type]
        "arrays": {name: {"role": "input"} for name in arrays},
    }
    if VIT[backbone].qkv_bias == "no_key":
        description["state_fixed"] = {"blocks.*.attn.qkv.bias_mask": "", "rope_embed.periods": ""}
    (folder / "case.json").write_text(json.dumps(description))
    np.savez(folder / "arrays.npz", **arrays)
    model = model_of(Case.read(folder))
    published = PublishedINSID3(model, side)
    images = torch.stack([_normalised(image, side) for image, _ in pictures.values()])
    masks = torch.stack([torch.from_numpy(pictures[name][1]) for name in names[:-1]])[:, None].float()
    small = F.interpolate(masks, size=(side, side), mode="nearest")[:, 0]
    whole, resized = (published(images[:-1], small, images[-1], size=size) for size in (None, (90, 120)))
    steps = {name: value.float() if value.dtype == torch.float64 else value for name, value in published.steps.items()}
    steps["features"] = published.encoded(images)
    steps["debiased"] = steps["debiased"].unflatten(2, (side // patch, -1))
    for name in ("sim_fwd", "votes", "candidates", "cluster_labels", "mask_low"):
        steps[name] = steps[name].unflatten(0, (side // patch, -1))
    for name in ("max_fg", "max_bg", "ref_mask_feat"):
        steps[name] = steps[name].unflatten(1, (side // patch, -1))
    del steps["forward"]
    arrays |= {name: value.numpy() for name, value in steps.items()}
    arrays |= {"mask_S": np.packbits(whole.numpy()), "mask_final": np.packbits(resized.numpy())}
    np.savez(folder / "arrays.npz", **arrays)
    assert 0 < whole.float().mean() < 1
    return set(steps) | {"mask_S", "mask_final"}


def _normalised(image: np.ndarray[Any, Any], side: int) -> Tensor:
    from parity_cases.vit import normalised

    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return normalised(torch.from_numpy(np.array(resized)))[0]


@pytest.mark.parametrize(
    ("backbone", "shots"), [*((name, 1) for name in FAMILIES), ("dinov3_vits16", 2), ("dinov2_vitb14_reg", 5)]
)
def test_cases_of_every_family_and_number_of_shots_pass(tmp_path: Path, backbone: str, shots: int) -> None:
    folder = tmp_path / f"insid3_{backbone}_{shots}shot"
    expected = write_case(folder, backbone, shots)
    lines = {line.name: line for line in parity.lines_of(folder)}
    assert not [str(line) for line in lines.values() if line.out]
    assert expected <= {name for name, line in lines.items() if line.error is not None}


def test_a_case_with_refined_outlines_passes(tmp_path: Path) -> None:
    folder = tmp_path / "insid3_dino_vits8_1shot_crf"
    write_case(folder, "dino_vits8", 1, refiner="crf")
    lines = {line.name: line for line in parity.lines_of(folder)}
    assert not [str(line) for line in lines.values() if line.out]


def scattered(shots: int, seed: int, pull: float) -> tuple[Tensor, Tensor]:
    """Smooth features [K + 1, 32, 8, 8], the target's drawn to the mean of the masks', and masks [K, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    fields = F.interpolate(torch.randn(shots + 1, 32, 3, 3, generator=generator), size=(8, 8), mode="bicubic")
    fields = fields + 0.2 * torch.randn(fields.shape, generator=generator)
    masks = torch.zeros(shots, 8, 8, dtype=torch.bool)
    for shot in range(shots):
        kind = (seed + shot) % 4
        if kind == 0:
            masks[shot] = True  # no background
        elif kind == 1:
            masks[shot, seed % 8, shot] = True  # one position
        else:
            masks[shot] = torch.rand(8, 8, generator=generator) < 0.2 * kind
    masks[:, 0, 0] |= ~masks.flatten(1).any(1)
    middle = torch.stack([field[:, mask].mean(1) for field, mask in zip(fields, masks, strict=False)]).mean(0)
    fields[-1] += pull * F.normalize(middle, dim=0)[:, None, None] * fields[-1].norm(dim=0).mean()
    return fields, masks


@pytest.mark.parametrize("shots", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("pull", [0.0, 0.7, -4.0], ids=["as it is", "alike", "all against"])
def test_steps_from_features_on_are_the_published_ones(shots: int, pull: float) -> None:
    torch.manual_seed(3)
    model = fssops.create_model(
        "insid3", backbone="dino_vits8", components=0 if pull < 0 else 4, behaviour="published", merge_threshold=0.1
    )
    assert isinstance(model, INSID3)
    published = PublishedINSID3(model, 64)
    kinds = set()
    for seed in range(12):
        fields, masks = scattered(shots, seed, pull)
        low = published.segment(fields, masks)
        steps = published.steps
        tokens = unit(fields.permute(0, 2, 3, 1))
        debiased = model._debiased(tokens)
        full = masks.float().repeat_interleave(8, 1).repeat_interleave(8, 2)[None, None]
        support = model.summarise({"debiased": debiased[:-1]}, full, 1 - full)
        target = {"tokens": tokens[-1], "debiased": debiased[-1]}
        rows = debiased[-1].flatten(0, 1)
        candidates, similarity = model.candidates(support, 0, 0, rows)
        assert torch.allclose(similarity, steps["sim_fwd"], atol=2e-5)
        assert torch.equal(forward_matches(similarity), steps["forward"])
        votes = backward_votes(rows, support.references[0, 0], support.foreground[0, 0], support.compared[0, 0])
        assert torch.equal(votes, steps["votes"])
        assert torch.equal(candidates, steps["candidates"])
        labels = model.query_features({name: value[None] for name, value in target.items()})["labels"][0]
        scores = model.score_way(support, 0, 0, {**target, "labels": labels})
        assert torch.equal((scores > -torch.inf).view(8, 8), low)
        if "cluster_labels" in steps:
            assert same_partition(labels.flatten().numpy(), steps["cluster_labels"].numpy())
        kinds.add((bool((steps["sim_fwd"] > 0).any()), bool(candidates.any()), bool(low.any())))
    # With all against, no position lies on the prototype's side: the best tenth is taken.
    assert {forward for forward, _, _ in kinds} == {pull >= 0}
    assert any(found for _, found, _ in kinds)


def test_no_candidate_gives_no_mask() -> None:
    model = fssops.create_model("insid3", backbone="dino_vits8", components=0, behaviour="published")
    assert isinstance(model, INSID3)
    fields = torch.zeros(2, 32, 8, 8)
    fields[0, 0], fields[0, 1, 0, 0], fields[0, 0, 0, 0] = 1, 1, 0
    fields[1, 0], fields[1, 1] = 1, 0.1  # on the prototype's side, but nearer to the background
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0] = True
    published = PublishedINSID3(model, 64)
    assert not bool(published.segment(fields, masks).any())
    assert bool(published.steps["forward"].all())
    tokens = unit(fields.permute(0, 2, 3, 1))
    full = masks.float().repeat_interleave(8, 1).repeat_interleave(8, 2)[None, None]
    for behaviour in ("published", "sound"):
        model = fssops.create_model("insid3", backbone="dino_vits8", components=0, behaviour=behaviour)
        assert isinstance(model, INSID3)
        support = model.summarise({"debiased": tokens[:1]}, full, 1 - full)
        features = {"tokens": tokens[1:], "debiased": tokens[1:], "size": torch.tensor([[64, 64]])}
        assert not bool(model.match(support, features, (64, 64))[0, 0].argmax(0).any())


@pytest.mark.parametrize("seed", range(3))
def test_refined_masks_are_those_of_a_lattice_filled_pixel_by_pixel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fssops.models.insid3.refinement.REFERENCE_SIDE", 96)
    generator = torch.Generator().manual_seed(seed)
    regions = F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), size=(24, 24), mode="nearest")[0]
    colours = (0.1 + 0.8 * regions + 0.04 * torch.randn(3, 24, 24, generator=generator)).clamp(0, 1)
    mask = F.interpolate(torch.rand(1, 1, 4, 4, generator=generator), size=(24, 24), mode="bilinear")[0, 0] > 0.5
    expected = refined(mask, colours, reference_side=96)
    assert not torch.equal(expected, mask)
    assert torch.equal(refine_masks(torch.stack([mask, ~mask]), colours)[0], expected)
