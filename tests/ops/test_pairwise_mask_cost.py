"""Matching costs at points, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fssops import ops, reference
from fssops.testing.point_masks import mask_sources

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def _error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


def _cost_inputs(
    queries: int, targets: int, points: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = 4 * torch.randn(queries, points, dtype=dtype, device=device)
    wanted = torch.rand(targets, points, dtype=dtype, device=device)
    class_logits = torch.randn(queries, 11, dtype=dtype, device=device)
    return logits, wanted, class_logits, torch.randint(0, 11, (targets,), device=device)


@pytest.mark.every_isa
@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("queries", "targets", "points"), [(100, 20, 1254), (1, 1, 1), (5, 7, 513), (33, 34, 100)])
def test_cost_equals_the_definition(queries: int, targets: int, points: int, dtype: torch.dtype, device: str) -> None:
    logits, wanted, class_logits, labels = _cost_inputs(queries, targets, points, dtype, device)
    got = ops.pairwise_mask_cost(logits, wanted, class_logits=class_logits, labels=labels, dice_weight=3.0)
    want = reference.pairwise_mask_cost(
        logits.double(), wanted.double(), class_logits=class_logits.double(), labels=labels, dice_weight=3.0
    )
    assert got.dtype == dtype
    assert _error(got, want) < TOLERANCE[dtype]
    without = ops.pairwise_mask_cost(logits, wanted)
    assert _error(without, reference.pairwise_mask_cost(logits.double(), wanted.double())) < TOLERANCE[dtype]


@DEVICES
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("points", [200, 20], ids=["masks_multiplied_out", "features_sampled"])
def test_cost_of_factored_masks_of_a_clip(frames: int, points: int, device: str) -> None:
    embeddings = torch.randn(6, 5, device=device)
    features = torch.randn(frames, 5, 8, 9, device=device)
    masks = torch.rand(4, frames, 30, 31, device=device) > 0.5
    where = torch.rand(points, 2, device=device)
    flat = masks.flatten(0, 1)
    logits = torch.einsum("qc,tchw->tqhw", embeddings, features).double()
    x = torch.cat([reference.sample_points(f, where.double()[None]) for f in logits], dim=1)
    t = reference.sample_points(flat.double(), where.double()[None]).view(4, -1)
    want = reference.pairwise_mask_cost(x, t)
    for source in mask_sources(flat).values():
        got = ops.pairwise_mask_cost(ops.FactoredMasks(embeddings, features), source, where)
        assert _error(got, want) < 4e-6
    again = reference.pairwise_mask_cost(ops.FactoredMasks(embeddings, features), flat, where[None])
    assert _error(again, want) < 4e-6


@DEVICES
def test_cost_of_maps(device: str) -> None:
    maps, masks = torch.randn(6, 8, 9, device=device), torch.rand(4, 20, 22, device=device) > 0.5
    where = torch.rand(50, 2, device=device)
    got = ops.pairwise_mask_cost(maps.half(), masks, where, padded_size=(24, 24))
    want = reference.pairwise_mask_cost(
        maps.half().double(), masks.double(), where.double()[None], padded_size=(24, 24)
    )
    assert got.dtype == torch.float32
    assert _error(got, want) < 2e-6


@DEVICES
@pytest.mark.parametrize(("queries", "targets"), [(0, 3), (3, 0), (0, 0)])
def test_cost_of_nothing_is_empty(queries: int, targets: int, device: str) -> None:
    got = ops.pairwise_mask_cost(torch.zeros(queries, 5, device=device), torch.zeros(targets, 5, device=device))
    assert got.shape == (queries, targets)
    masks = torch.zeros(targets, 4, 4, dtype=torch.bool, device=device)
    got = ops.pairwise_mask_cost(torch.zeros(queries, 6, 6, device=device), masks, torch.rand(5, 2, device=device))
    assert got.shape == (queries, targets)


@DEVICES
def test_cost_shows_bad_logits(device: str) -> None:
    logits, wanted, _, _ = _cost_inputs(3, 2, 40, torch.float32, device)
    logits[1, 7] = math.nan
    got = ops.pairwise_mask_cost(logits, wanted)
    assert torch.isnan(got[1]).all()
    assert torch.isfinite(got[[0, 2]]).all()


@DEVICES
def test_cost_registration_passes_opcheck(device: str) -> None:
    arguments = (*_cost_inputs(5, 3, 40, torch.float32, device), 5.0, 2.0, 5.0)
    assert set(torch.library.opcheck(torch.ops.fssops.pairwise_mask_cost, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(2, 6)}, "targets must have the 5 points"),
        ({"logits": torch.zeros(3, 0)}, r"logits must have shape \[Q, P\] with P at least 1, got \[3, 0\]"),
        ({"class_logits": torch.zeros(3, 4)}, "class_logits and labels must be given together"),
        ({"logits": torch.zeros(3, 4, 4)}, "points must be given for maps, got None"),
        ({"targets": torch.zeros(2, 4, 4)}, "points must be given for masks, got None"),
        (
            {"class_logits": torch.zeros(2, 4), "labels": torch.zeros(2, dtype=torch.int64)},
            r"class_logits must have shape \[3, classes\], got \[2, 4\]",
        ),
        (
            {"class_logits": torch.zeros(3, 4), "labels": torch.zeros(2)},
            r"labels must be int64 \[2\], got torch.float32 \[2\]",
        ),
    ],
)
def test_bad_cost_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"logits": torch.zeros(3, 5), "targets": torch.zeros(2, 5)}
    with pytest.raises(ValueError, match=message):
        ops.pairwise_mask_cost(**{**arguments, **change})  # type: ignore[arg-type]


def test_masks_that_do_not_fill_the_frames_of_a_clip_are_refused() -> None:
    masks = ops.FactoredMasks(torch.zeros(3, 4), torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="targets must be a mask for each of 2 frames, got 5 masks"):
        ops.pairwise_mask_cost(masks, torch.zeros(5, 8, 8), torch.zeros(7, 2))


def test_a_label_that_names_no_class_is_refused() -> None:
    with pytest.raises(RuntimeError, match="labels must be classes of class_logits, got 4"):
        ops.pairwise_mask_cost(
            torch.zeros(3, 5), torch.zeros(1, 5), class_logits=torch.zeros(3, 4), labels=torch.tensor([4])
        )
