"""Sampling of maps and masks at points, and the choice of uncertain points."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops, reference
from fssops.reference.mask_sources import PackedMasks, RunLengthMasks
from fssops.testing.point_masks import mask_sources, run_lengths

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _error(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None
    assert expected is not None
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


def _points(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Points in and around the map."""
    return (torch.rand(*shape, 2, dtype=torch.float64) * 1.4 - 0.2).to(device, dtype)


@pytest.mark.every_isa
@DEVICES
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", [(7, 9), (1, 1), (1, 6), (6, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own_points", "shared_points"])
def test_samples_and_gradient_equal_grid_sample(
    shared: bool, size: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    maps = torch.randn(3, 11, *size, dtype=torch.float64).to(device, dtype)
    points = _points(
        1 if shared else 3, 300, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device
    )
    x, y = maps.clone().requires_grad_(), maps.double().requires_grad_()
    got = ops.sample_points(x, points)
    grid = (2 * points.double() - 1)[:, None].expand(3, -1, -1, -1)
    want = F.grid_sample(y, grid, padding_mode="zeros", align_corners=False)[:, :, 0]
    assert got.dtype == dtype
    assert _error(got.detach(), want.detach()) < TOLERANCE[dtype]
    grad = torch.randn_like(want).to(dtype)
    got.backward(grad)
    want.backward(grad.double())
    assert _error(x.grad, y.grad) < TOLERANCE[dtype]


@DEVICES
def test_gradient_passes_gradcheck(device: str) -> None:
    maps = torch.randn(2, 3, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    points = _points(2, 40, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(lambda m: ops.sample_points(m, points), maps)


@pytest.mark.every_isa
@DEVICES
@pytest.mark.parametrize("padded", [None, (20, 41)], ids=["own_size", "padded"])
def test_every_form_of_masks_is_sampled_alike(padded: tuple[int, int] | None, device: str) -> None:
    masks = torch.rand(6, 17, 35) > 0.5
    masks[3], masks[4] = False, True
    masks[5, :, :20] = False  # runs that span columns
    masks = masks.to(device)
    index = torch.tensor([5, 4, 3, 0, 5, 2], device=device)
    points = _points(6, 400, device=device)
    want = reference.sample_points(masks.double(), points.double(), index=index, padded_size=padded)
    for name, source in mask_sources(masks).items():
        got = ops.sample_points(source, points, index=index, padded_size=padded)
        assert _error(got, want) < TOLERANCE[got.dtype], name


@DEVICES
def test_pixel_centres_give_the_pixels(device: str) -> None:
    masks = torch.rand(2, 8, 16, device=device) > 0.5
    y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(16) + 0.5) / 16, indexing="ij")
    centres = torch.stack((x, y), dim=-1).view(1, -1, 2).to(device)
    for source in mask_sources(masks).values():
        assert torch.equal(
            ops.sample_points(source, centres), masks.flatten(1).to(ops.sample_points(source, centres).dtype)
        )


@DEVICES
def test_points_without_a_batch_axis_are_shared(device: str) -> None:
    maps, points = torch.randn(3, 5, 6, device=device), _points(10, device=device)
    assert torch.equal(ops.sample_points(maps, points), ops.sample_points(maps, points.expand(3, -1, -1)))


@DEVICES
@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=["no_maps", "no_channels", "no_points"])
def test_empty_dimensions_give_empty_results(shape: tuple[int, int, int], device: str) -> None:
    count, channels, points = shape
    maps = torch.randn(count, channels, 4, 5, device=device, requires_grad=True)
    got = ops.sample_points(maps, torch.rand(count, points, 2, device=device))
    assert got.shape == shape
    got.sum().backward()
    assert maps.grad is not None
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@DEVICES
def test_non_contiguous_inputs_give_the_same_result(device: str) -> None:
    maps = torch.randn(2, 6, 7, 4, device=device).permute(0, 3, 1, 2)
    points = torch.rand(2, 2, 30, device=device).transpose(1, 2)
    assert torch.equal(ops.sample_points(maps, points), ops.sample_points(maps.contiguous(), points.contiguous()))


@DEVICES
def test_registration_passes_opcheck(device: str) -> None:
    maps = torch.randn(2, 3, 5, 6, device=device, requires_grad=True)
    arguments = (maps, None, None, 0, [5, 6, 5, 6], torch.rand(2, 9, 2, device=device))
    assert set(torch.library.opcheck(torch.ops.fssops.sample_points, arguments).values()) == {"SUCCESS"}
    backward = (torch.randn(2, 3, 9, device=device), [5, 6, 5, 6], torch.rand(2, 9, 2, device=device), True)
    assert set(torch.library.opcheck(torch.ops.fssops.sample_points_backward, backward).values()) == {"SUCCESS"}
    draws = (torch.rand(2, 9, 2, device=device), torch.rand(2, 4, 2, device=device))
    chosen = (torch.randn(2, 5, 6, device=device), *draws, 5)
    assert set(torch.library.opcheck(torch.ops.fssops.uncertain_points, chosen).values()) == {"SUCCESS"}


@DEVICES
def test_compiles_without_graph_break(device: str) -> None:
    maps, points = torch.randn(2, 3, 5, 6, device=device, requires_grad=True), torch.rand(2, 9, 2, device=device)

    def work(m: Tensor, p: Tensor) -> Tensor:
        return ops.sample_points(m * 2, p).square().sum()

    compiled = torch.compile(work, fullgraph=True, backend="aot_eager")(maps, points)
    (grad,) = torch.autograd.grad(compiled, maps)
    torch.testing.assert_close(grad, torch.autograd.grad(work(maps, points), maps)[0])


@DEVICES
def test_deterministic_algorithms_are_honoured(device: str) -> None:
    maps, points = torch.randn(1, 9, 30, 30, device=device, requires_grad=True), torch.rand(1, 5000, 2, device=device)
    grad = torch.randn(1, 9, 5000, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(ops.sample_points(maps, points), maps, grad)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0], torch.autograd.grad(ops.sample_points(maps, points), maps, grad)[0])


# ---- forms of masks --------------------------------------------------------------------------------------------------


def test_packed_masks_are_those_of_numpy() -> None:
    masks = torch.rand(3, 5, 19) > 0.5
    packed = PackedMasks.pack(masks)
    import numpy as np

    assert torch.equal(packed.bits, torch.from_numpy(np.packbits(masks.numpy(), axis=-1)))
    assert torch.equal(packed.unpack(), masks)
    assert packed.shape == (3, 5, 19)


def test_run_lengths_of_pycocotools_are_read() -> None:
    import numpy as np
    from pycocotools import mask as coco

    masks = torch.rand(5, 40, 37) > 0.7
    masks[1], masks[2] = False, True
    masks[3, 10:30, 5:9] = True
    rles = [coco.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    runs = RunLengthMasks.from_coco(rles)
    assert torch.equal(runs.unpack(), masks)
    assert torch.equal(RunLengthMasks.from_coco([{**r, "counts": r["counts"].decode()} for r in rles]).unpack(), masks)
    assert torch.equal(run_lengths(masks).unpack(), masks)
    assert torch.equal(run_lengths(masks).columns, runs.columns)


def test_runs_of_length_zero_are_read() -> None:
    # 2 x 3 pixels, down the columns: 0 0 | 1 0 | 0 1
    counts = [2, 0, 0, 1, 1, 0, 1, 1]
    runs = RunLengthMasks.from_coco([{"size": [2, 3], "counts": counts}])
    expected = torch.tensor([[[0, 1, 0], [0, 0, 1]]], dtype=torch.bool)
    assert torch.equal(runs.unpack(), expected)
    centres = torch.tensor([[[x, y] for y in (0.25, 0.75) for x in (1 / 6, 0.5, 5 / 6)]])
    assert torch.equal(ops.sample_points(runs, centres).round(), expected.flatten(1).float())


def test_no_masks_of_runs() -> None:
    runs = RunLengthMasks.from_coco([], (4, 5))
    assert runs.shape == (0, 4, 5)
    assert runs.unpack().shape == (0, 4, 5)
    assert ops.sample_points(runs, torch.rand(0, 3, 2)).shape == (0, 3)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "size must be given for an empty list"),
        ([{"size": [2, 2], "counts": [1, 2]}], r"masks\[0\].counts must be lengths that add up to 4, got a sum of 3"),
        ([{"size": [2, 2], "counts": [5, -1]}], r"masks\[0\].counts must be lengths"),
        ([{"size": [2, 2], "counts": [4]}, {"size": [2, 3], "counts": [6]}], r"masks\[1\].size must be \(2, 2\)"),
        ([{"size": [2, 2], "counts": "\x01"}], r"masks\[0\].counts must be COCO's compressed run lengths"),
        ([{"size": [2, 2], "counts": ""}], r"masks\[0\].counts must be COCO's compressed run lengths"),
    ],
)
def test_broken_run_lengths_are_refused(masks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunLengthMasks.from_coco(masks)


def test_broken_forms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PackedMasks: bits must have shape \[M, h, ceil\(9 / 8\)\]"):
        PackedMasks(torch.zeros(1, 4, 1, dtype=torch.uint8), 9)
    with pytest.raises(TypeError, match="PackedMasks: bits must be uint8"):
        PackedMasks(torch.zeros(1, 4, 1), 8)
    with pytest.raises(ValueError, match="FactoredMasks: counts must be 2 numbers that add up to 3"):
        ops.FactoredMasks(torch.zeros(3, 4), torch.zeros(2, 4, 5, 5), (1, 1))
    with pytest.raises(ValueError, match=r"FactoredMasks: features must have shape \[B, 4, h, w\]"):
        ops.FactoredMasks(torch.zeros(3, 4), torch.zeros(2, 5, 5, 5))
    with pytest.raises(ValueError, match="counts must be given for 2 images"):
        ops.FactoredMasks(torch.zeros(3, 4), torch.zeros(2, 4, 5, 5)).logits()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.zeros(4, 4)}, r"maps must have shape \[N, h, w\] or \[N, C, h, w\], got \[4, 4\]"),
        ({"maps": torch.zeros(2, 0, 4)}, "maps must have at least one pixel, got 0 x 4"),
        ({"points": torch.zeros(3, 5, 2)}, r"points must have shape \[2 or 1, P, 2\], got \[3, 5, 2\]"),
        ({"points": torch.zeros(2, 5, 3)}, r"points must have shape \[2 or 1, P, 2\], got \[2, 5, 3\]"),
        ({"index": torch.zeros(2)}, r"index must be int64 \[n\], got torch.float32 \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    arguments = {"maps": torch.zeros(2, 4, 4), "points": torch.zeros(2, 5, 2)}
    with pytest.raises(ValueError, match=message):
        ops.sample_points(**{**arguments, **change})


def test_index_with_gradient_is_refused() -> None:
    maps = torch.zeros(2, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="index must be None for maps that need a gradient"):
        ops.sample_points(maps, torch.zeros(1, 5, 2), index=torch.tensor([0]))


def test_integer_maps_are_refused() -> None:
    with pytest.raises(TypeError, match=r"maps must be float32, float64, float16 or bfloat16, got torch\.int64"):
        ops.sample_points(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 5, 2))


# ---- uncertain points ------------------------------------------------------------------------------------------------


@pytest.mark.every_isa
@DEVICES
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_uncertain_points_are_those_of_the_definition(dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(4, 12, 13, dtype=torch.float64).to(device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    draws = (torch.rand(4, 900, 2, device=device, dtype=wide), torch.rand(4, 75, 2, device=device, dtype=wide))
    got = ops.uncertain_points(logits, 300, given_draws=draws)
    want = reference.uncertain_points(logits.to(wide), 300, given_draws=draws)
    assert got.shape == (4, 300, 2)
    assert torch.equal(got[:, 225:], draws[1])
    # Rounding may exchange two points of nearly equal uncertainty.
    assert (got == want).float().mean() > 0.97
    uncertainty = [ops.sample_points(logits.to(wide), p).abs().sort().values for p in (got[:, :225], want[:, :225])]
    torch.testing.assert_close(uncertainty[0], uncertainty[1], rtol=0, atol=1e-6)


@DEVICES
def test_of_equally_uncertain_candidates_the_first_are_taken(device: str) -> None:
    logits = torch.zeros(2, 5, 5, device=device)
    draws = (torch.rand(2, 700, 2, device=device), torch.rand(2, 0, 2, device=device))
    assert torch.equal(ops.uncertain_points(logits, 600, given_draws=draws), draws[0][:, :600])


@DEVICES
def test_nan_counts_as_least_certain(device: str) -> None:
    logits = torch.ones(1, 1, 4, device=device)
    logits[0, 0, 3] = math.nan
    candidates = torch.tensor([[[0.1, 0.5], [0.95, 0.5], [0.2, 0.5]]], device=device)
    got = ops.uncertain_points(logits, 1, given_draws=(candidates, torch.rand(1, 0, 2, device=device)))
    assert torch.equal(got[0, 0], candidates[0, 1])


@DEVICES
def test_draws_follow_the_generator(device: str) -> None:
    logits = torch.randn(2, 8, 8, device=device)
    runs = [
        ops.uncertain_points(logits, 100, generator=torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert runs[0].shape == (2, 100, 2)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    generator = torch.Generator(device).manual_seed(1)
    draws = tuple(ops.uniform_points(2, count, device=device, generator=generator) for count in (300, 25))
    assert torch.equal(runs[0], ops.uncertain_points(logits, 100, given_draws=draws))


def test_uniform_points_begin_with_the_published_vector_of_philox() -> None:
    # Known answer of Philox4x32-10 for counter 0 and key 0, Random123's kat_vectors.
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    points = torch.ops.fssops.uniform_points(torch.zeros(1, dtype=torch.int64), 1, 2)
    assert points.flatten().tolist() == [(word >> 8) / 2**24 for word in words]


@pytest.mark.every_isa
@pytest.mark.parametrize(("rows", "points"), [(0, 5), (3, 0), (1, 1), (2, 129), (3, 4099)])
def test_uniform_points_are_those_of_the_definition(rows: int, points: int) -> None:
    got, want = (
        function(rows, points, generator=torch.Generator().manual_seed(2**40 + 7))
        for function in (ops.uniform_points, reference.uniform_points)
    )
    assert got.shape == (rows, points, 2)
    assert torch.equal(got, want)


def test_uniform_points_fill_the_square_evenly() -> None:
    points = ops.uniform_points(4, 50_000, generator=torch.Generator().manual_seed(0))
    assert points.min() >= 0
    assert points.max() < 1
    cells = (points * 10).long()
    counts = torch.bincount((cells[..., 0] * 10 + cells[..., 1]).flatten(), minlength=100)
    # Poisson around 2,000: six standard deviations.
    assert (counts - 2000).abs().max() < 6 * 2000**0.5


def test_uniform_points_follow_the_operator_rules() -> None:
    seed = torch.tensor([3])
    checks = torch.library.opcheck(torch.ops.fssops.uniform_points, (seed, 2, 5))
    assert set(checks.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="uniform_points: rows must be at least 0, got -1"):
        ops.uniform_points(-1, 5)


@DEVICES
def test_no_masks_give_no_points(device: str) -> None:
    assert ops.uncertain_points(torch.zeros(0, 4, 4, device=device), 10).shape == (0, 10, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 4)}, r"logits must have shape \[N, h, w\], got \[4, 4\]"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"importance_ratio": 1.5}, r"importance_ratio must be in \[0, 1\], got 1.5"),
        ({"given_draws": (torch.zeros(2, 9, 2), torch.zeros(2, 3, 2))}, r"candidates must have shape \[1, ., 2\]"),
        (
            {"given_draws": (torch.zeros(1, 9, 2), torch.zeros(3))},
            r"uniform points must have shape \[1, ., 2\].*got \[3\]",
        ),
        ({"given_draws": (torch.zeros(1, 4, 2), torch.zeros(1, 3, 2))}, "must leave 0 to 4 of 10 points.*got 7"),
    ],
)
def test_bad_uncertain_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"logits": torch.zeros(1, 4, 4), "num_points": 10}
    with pytest.raises(ValueError, match=message):
        ops.uncertain_points(**{**arguments, **change})  # type: ignore[arg-type]
