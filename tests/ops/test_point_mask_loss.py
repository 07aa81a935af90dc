"""Losses and costs at points, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fssops import ops, reference
from fssops.testing.cases import POINT_MASK_LOSS, PointLossCase
from fssops.testing.point_masks import mask_sources, point_inputs

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
CASES = pytest.mark.parametrize("case", POINT_MASK_LOSS, ids=lambda c: c.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
# Of the losses; gradients of half types are rounded once more.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 2e-6, torch.bfloat16: 2e-6}
GRAD_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _error(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None
    assert expected is not None
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


@pytest.mark.every_isa
@DEVICES
@DTYPES
@CASES
def test_losses_and_gradient_equal_the_definition(case: PointLossCase, dtype: torch.dtype, device: str) -> None:
    logits, masks, points, index = point_inputs(case, dtype, device)
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    reduction = "none" if case.name == "per_mask" else "sum"
    got = ops.point_mask_loss(x, masks, points, 3.0, target_index=index, reduction=reduction)
    want = reference.point_mask_loss(y, masks.double(), points.double(), 3.0, target_index=index, reduction=reduction)
    weights = torch.rand(2, *want[0].shape, dtype=torch.float64, device=device)
    for i in range(2):
        assert got[i].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got[i].shape == want[i].shape
        assert _error(got[i].detach(), want[i].detach()) < TOLERANCE[dtype]
    sum((g * w).sum() for g, w in zip(got, weights, strict=True)).backward()  # type: ignore[union-attr]
    sum((g * w).sum() for g, w in zip(want, weights, strict=True)).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert _error(x.grad, y.grad) < GRAD_TOLERANCE[dtype]


@DEVICES
@CASES
def test_gradient_passes_gradcheck(case: PointLossCase, device: str) -> None:
    if case.points > 1000:
        pytest.skip("the same code as the smaller cases, for minutes")
    logits, masks, points, index = point_inputs(case, torch.float64, device)

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.point_mask_loss(x, masks, points, 2.0, target_index=index)

    assert torch.autograd.gradcheck(losses, logits.requires_grad_())


@pytest.mark.every_isa
@DEVICES
@CASES
def test_every_form_of_targets_gives_the_same_loss(case: PointLossCase, device: str) -> None:
    logits, masks, points, index = point_inputs(case, torch.float32, device)
    want = reference.point_mask_loss(logits.double(), masks.double(), points.double(), target_index=index)
    for name, source in mask_sources(masks).items():
        got = ops.point_mask_loss(logits, source, points, target_index=index)
        for value, expected in zip(got, want, strict=True):
            assert _error(value, expected) < 2e-6, name


@DEVICES
def test_values_at_points_are_taken_as_they_are(device: str) -> None:
    x = torch.randn(4, 333, device=device, requires_grad=True)
    t = torch.rand(4, 333, device=device)
    y = x.detach().double().requires_grad_()
    got, want = ops.point_mask_loss(x, t, None, 4.0), reference.point_mask_loss(y, t.double(), None, 4.0)
    for value, expected in zip(got, want, strict=True):
        assert _error(value.detach(), expected.detach()) < 2e-6
    (got[0] + 2 * got[1]).backward()
    (want[0] + 2 * want[1]).backward()
    assert _error(x.grad, y.grad) < 2e-6


@DEVICES
def test_maps_are_compared_with_sampled_targets(device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    sampled = ops.sample_points(masks, points)
    for value, expected in zip(
        ops.point_mask_loss(logits, sampled, points), ops.point_mask_loss(logits, masks, points), strict=True
    ):
        torch.testing.assert_close(value, expected)


@DEVICES
def test_targets_may_fill_the_corner_of_a_padded_image(device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    padded = torch.zeros(len(masks), 70, 101, dtype=torch.bool, device=device)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    want = ops.point_mask_loss(logits, padded, points)
    for source in mask_sources(masks).values():
        got = ops.point_mask_loss(logits, source, points, padded_size=(70, 101))
        for value, expected in zip(got, want, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@DEVICES
@pytest.mark.parametrize("points", [64, 2], ids=["masks_multiplied_out", "features_sampled"])
def test_factored_masks_give_gradients_to_embeddings_and_features(points: int, device: str) -> None:
    counts, channels, size = (2, 0, 3), 6, (9, 11)
    embeddings = torch.randn(5, channels, device=device, dtype=torch.float64).requires_grad_()
    features = torch.randn(3, channels, *size, device=device, dtype=torch.float64).requires_grad_()
    masks, where = torch.rand(5, 20, 24, device=device) > 0.5, torch.rand(5, points, 2, device=device).double()
    factored = ops.FactoredMasks(embeddings, features, counts)
    got = ops.point_mask_loss(factored, masks, where, 5.0)
    image = torch.tensor([0, 0, 2, 2, 2], device=device)
    logits = torch.einsum("nc,nchw->nhw", embeddings, features[image])
    want = reference.point_mask_loss(logits, masks.double(), where, 5.0)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected)
    mine = torch.autograd.grad(got[0] + 2 * got[1], (embeddings, features))
    theirs = torch.autograd.grad(want[0] + 2 * want[1], (embeddings, features))
    for value, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, expected)


@DEVICES
def test_number_of_masks_may_be_a_tensor(device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    x = logits.requires_grad_()
    got = ops.point_mask_loss(x, masks, points, torch.tensor(7, device=device))
    want = ops.point_mask_loss(x, masks, points, 7.0)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected)
    grads = [torch.autograd.grad(a + b, x)[0] for a, b in (got, want)]
    torch.testing.assert_close(grads[0], grads[1])


@DEVICES
def test_hand_derived_losses(device: str) -> None:
    # One pixel, one point at its centre, x = log 3, t = 1: s = 0.75; softplus(x) - x = log(4 / 3);
    # dice = 1 - (1.5 + 1) / (0.75 + 1 + 1).
    logits = torch.full((1, 1, 1), math.log(3.0), device=device)
    points = torch.full((1, 1, 2), 0.5, device=device)
    mask, dice = ops.point_mask_loss(logits, torch.ones(1, 1, 1, dtype=torch.bool, device=device), points, 2.0)
    torch.testing.assert_close(mask, torch.tensor(math.log(4 / 3) / 2, device=device))
    torch.testing.assert_close(dice, torch.tensor((1 - 2.5 / 2.75) / 2, device=device))


@DEVICES
def test_no_masks_give_zero_and_keep_the_graph(device: str) -> None:
    x = torch.randn(0, 5, 6, device=device, requires_grad=True)
    got = ops.point_mask_loss(
        x, torch.zeros(0, 9, 9, dtype=torch.bool, device=device), torch.rand(0, 8, 2, device=device)
    )
    assert [float(v.detach()) for v in got] == [0.0, 0.0]
    (got[0] + got[1]).backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 5, 6)
    embeddings = torch.randn(0, 3, device=device, requires_grad=True)
    features = torch.randn(1, 3, 5, 6, device=device, requires_grad=True)
    factored = ops.FactoredMasks(embeddings, features)
    got = ops.point_mask_loss(factored, torch.zeros(0, 8, device=device), torch.rand(0, 8, 2, device=device))
    (got[0] + got[1]).backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


@DEVICES
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_logits_stay_visible(value: float, device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    logits[1] = value
    mask, dice = ops.point_mask_loss(logits.requires_grad_(), masks, points, reduction="none")
    assert torch.isfinite(mask[0])
    assert not torch.isfinite(mask[1])
    (mask.sum() + dice.sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad[0]).all()


@DEVICES
def test_points_that_are_no_numbers_do_not_crash(device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    points[0, 0] = math.nan
    points[1, 0] = math.inf
    points[2, 0] = -1e30
    for source in mask_sources(masks).values():
        x = logits.clone().requires_grad_()
        mask, dice = ops.point_mask_loss(x, source, points, reduction="none")
        assert torch.isnan(mask[0])
        assert torch.isfinite(mask[2])
        (mask + dice)[2].backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad[2]).all()


@DEVICES
def test_deterministic_algorithms_are_honoured(device: str) -> None:
    logits, masks, points, _ = point_inputs(PointLossCase("large", 3, (20, 20), (80, 80), 3000), torch.float32, device)
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(sum(ops.point_mask_loss(x, masks, points)), x)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    want = torch.autograd.grad(sum(reference.point_mask_loss(y, masks.double(), points.double())), y)[0]
    assert torch.equal(runs[0], runs[1])
    assert _error(runs[0], want) < 2e-6


@DEVICES
@pytest.mark.parametrize("form", ["bool", "float32", "bits", "runs"])
def test_registration_passes_opcheck(form: str, device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    source = mask_sources(masks)[form]
    data, columns, kind = source, None, 0
    if isinstance(source, ops.PackedMasks):
        data, kind = source.bits, 1
    elif isinstance(source, ops.RunLengthMasks):
        data, columns, kind = source.ends, source.columns, 2
    index = torch.tensor([2, 0, 1], device=device)
    tail = (None, 2.0, True, True)
    arguments = (logits.requires_grad_(), data, columns, index, kind, [64, 80, 64, 80], points, *tail)
    # Raises if the schema, the fake kernel or the autograd registration disagree with the kernel.
    assert set(torch.library.opcheck(torch.ops.fssops.point_mask_loss, arguments).values()) == {"SUCCESS"}
    outputs = torch.ops.fssops.point_mask_loss(*arguments)
    grads = (torch.ones((), device=device), torch.ones((), device=device))
    kept = tuple(v.detach() for v in outputs[2:])
    backward = (*grads, *kept, [16, 20], 0, points, None, 2.0, True, True)
    assert set(torch.library.opcheck(torch.ops.fssops.point_mask_loss_backward, backward).values()) == {"SUCCESS"}


@DEVICES
def test_compiles_without_graph_break(device: str) -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.float32, device)
    logits.requires_grad_()

    def losses(x: Tensor) -> Tensor:
        mask, dice = ops.point_mask_loss(x * 2, masks, points, 3.0)
        return 5 * mask + 5 * dice

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(logits)
    (grad,) = torch.autograd.grad(compiled, logits)
    eager = losses(logits)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(grad, torch.autograd.grad(eager, logits)[0])


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    logits, masks, points, _ = point_inputs(POINT_MASK_LOSS[0], torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.point_mask_loss(logits, masks, points)
        cost = ops.pairwise_mask_cost(logits.flatten(1), torch.rand(2, 320))
    assert {v.dtype for v in (*got, cost)} == {torch.float32}
    want = reference.point_mask_loss(logits.double(), masks.double(), points.double())
    for value, expected in zip(got, want, strict=True):
        assert _error(value, expected) < 2e-6


def test_backend_reference_is_chosen_on_purpose() -> None:
    for case in POINT_MASK_LOSS[:3]:
        logits, masks, points, index = point_inputs(case, torch.float32)
        got = ops.point_mask_loss(logits, masks, points, target_index=index, backend="reference")
        want = reference.point_mask_loss(logits, masks, points, target_index=index)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="backend must be one of native, reference, got 'cuda'"):
        ops.point_mask_loss(logits, masks, points, backend="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 1, 4, 4)}, r"logits must have shape \[N, h, w\] or \[N, P\], got \[2, 1, 4, 4\]"),
        ({"logits": torch.zeros(2, 0, 4)}, r"logits must have at least one pixel, got \[2, 0, 4\]"),
        ({"points": torch.zeros(3, 5, 2)}, r"points must have shape \[2 or 1, P, 2\], got \[3, 5, 2\]"),
        ({"points": torch.zeros(2, 0, 2)}, "points must be at least one a mask, got 0"),
        ({"points": None}, "points must be given for maps, got None"),
        ({"targets": torch.zeros(3, 4, 4)}, "targets must be 2 masks unless target_index is given, got 3"),
        ({"targets": torch.zeros(2, 6)}, r"targets must have shape \[2, 5\], got \[2, 6\]"),
        ({"target_index": torch.zeros(3, dtype=torch.int64)}, r"target_index must be int64 \[2\]"),
        ({"padded_size": (3, 9)}, r"padded_size must be at least the size of targets, 4 x 4, got \(3, 9\)"),
        ({"reduction": "mean"}, "reduction must be sum or none, got 'mean'"),
        ({"num_masks": torch.ones(2)}, r"num_masks must be one number, got shape \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "logits": torch.zeros(2, 4, 4),
        "targets": torch.zeros(2, 4, 4),
        "points": torch.zeros(2, 5, 2),
    }
    with pytest.raises(ValueError, match=message):
        ops.point_mask_loss(**{**arguments, **change})  # type: ignore[arg-type]


def test_points_of_factored_masks_are_checked_before_features_are_sampled() -> None:
    # More pixels than _factored_logits multiplies out for so few points.
    masks = ops.FactoredMasks(torch.zeros(4, 3), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"point_mask_loss: points must have shape \[4 or 1, P, 2\], got \[3, 5, 2\]"):
        ops.point_mask_loss(masks, torch.zeros(4, 8, 8), torch.zeros(3, 5, 2))


def test_runs_that_are_not_there_are_refused() -> None:
    masks = ops.RunLengthMasks.from_coco([{"size": [4, 4], "counts": [3, 5, 8]}])
    columns = masks.columns.clone()
    columns[0, 2] = 9
    with pytest.raises(RuntimeError, match="point_mask_loss: columns must name runs that exist, got 9"):
        ops.point_mask_loss(torch.zeros(1, 4, 4), replace(masks, columns=columns), torch.zeros(1, 5, 2))


def test_index_of_a_missing_map_is_refused() -> None:
    with pytest.raises(RuntimeError, match="point_mask_loss: index must name maps that exist, got 7"):
        ops.point_mask_loss(
            torch.zeros(1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 5, 2), target_index=torch.tensor([7])
        )


# ---- the authors' numbers --------------------------------------------------------------------------------------------


@DEVICES
def test_costs_assignments_points_and_losses_of_the_published_code(oracle_root: Path, device: str) -> None:
    folder = oracle_root / "mask2former_r50_panoptic"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    case = json.loads((folder / "case.json").read_text())
    with np.load(folder / "arrays.npz") as arrays:
        wanted = ("pts_", "cost", "assign", "loss/", "pred_", "gt_")
        data = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(wanted)}
    padded = (96, 128)
    masks = []
    for image, size in enumerate(case["sizes"]):
        bits = np.unpackbits(data[f"gt_masks{image}"].numpy(), axis=-1)[:, : size[0] * size[1]]
        masks.append(torch.from_numpy(bits).view(-1, *size).bool().to(device))
    num_masks = sum(len(m) for m in masks)
    logits, classes = data["pred_masks"].to(device), data["pred_logits"].to(device)
    heads = len(logits)
    for call, head in enumerate([heads - 1, *range(heads - 1)]):
        costs = []
        for image in range(2):
            cost = ops.pairwise_mask_cost(
                logits[head, image], masks[image], data["pts_match"][2 * call + image].to(device),
                class_logits=classes[head, image], labels=data[f"gt_labels{image}"].to(device), padded_size=padded,
            )  # fmt: skip
            assert _error(cost.cpu(), data[f"cost{image}"][call]) < 3e-6
            costs.append(cost)
        matched, targets = [], []
        for image, (queries, chosen) in enumerate(ops.assign(costs)):
            assert torch.equal(torch.stack((queries, chosen)).cpu(), data[f"assign{image}"][call])
            matched.append(logits[head, image][queries])
            padded_masks = torch.zeros(len(chosen), *padded, dtype=torch.bool, device=device)
            padded_masks[:, : masks[image].shape[1], : masks[image].shape[2]] = masks[image][chosen]
            targets.append(padded_masks)
        maps = torch.cat(matched)
        draws = (data["pts_over"][call].to(device), data["pts_rand"][call].to(device))
        points = ops.uncertain_points(maps, 256, given_draws=draws)
        mine = {tuple(p) for p in points.cpu().reshape(-1, 2).tolist()}
        theirs = {tuple(p) for p in data["pts_final"][call].reshape(-1, 2).tolist()}
        assert mine == theirs
        mask, dice = ops.point_mask_loss(maps, torch.cat(targets), points, num_masks)
        suffix = "" if call == 0 else f"_{call - 1}"
        assert _error(5 * mask.cpu(), data[f"loss/loss_mask{suffix}"]) < 3e-6
        assert _error(5 * dice.cpu(), data[f"loss/loss_dice{suffix}"]) < 3e-6
