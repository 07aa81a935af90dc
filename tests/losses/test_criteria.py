"""The criteria of the universal systems against a definition written out by head, image and mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from parity_cases.recorded import RecordedPoints
from torch import Tensor
from torch.nn import functional as F

from fssops.losses import mask_criterion
from fssops.losses.dense_criterion import DenseSetCriterion
from fssops.losses.mask_criterion import LossWeights, SetCriterion
from fssops.losses.matcher import Match
from fssops.losses.piloted_criterion import PilotedPart, PilotedSetCriterion
from fssops.losses.point_criterion import PointSetCriterion
from fssops.losses.point_sources import ItemPoints, RandomPoints
from fssops.structures import MaskPredictions, MaskTargets, StepShare

WEIGHTS = LossWeights(classes=2.0, mask=3.0, dice=7.0)
NO_OBJECT = 0.3
HEADS, QUERIES, CLASSES, SIZE = 3, 4, 5, (24, 32)
POINTS, KEPT = 8, 6

Plain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mask term and dice of a logit map [h, w] and a mask [H, W]."""


def predictions_of(seed: int = 0, queries: int = QUERIES, images: int = 3) -> MaskPredictions:
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).requires_grad_()

    return MaskPredictions(
        drawn(HEADS, images, queries, CLASSES + 1),
        drawn(HEADS, images, queries, 7),
        drawn(images, 1, 7, SIZE[0] // 4, SIZE[1] // 4),
        SIZE,
    )


def targets_of() -> list[MaskTargets]:
    """Two objects, three objects, none; the images are smaller than the padded size, each in its own way."""
    draw = torch.Generator().manual_seed(1)

    def masks(count: int, height: int, width: int) -> Tensor:
        return torch.rand(count, height, width, generator=draw) < 0.4

    return [
        MaskTargets(torch.tensor([2, 0]), masks(2, 20, 32)),
        MaskTargets(torch.tensor([1, 1, 4]), masks(3, 24, 27)),
        MaskTargets(torch.zeros(0, dtype=torch.int64), masks(0, 24, 32)),
    ]


def points_of(rows: int, seed: int = 2) -> RecordedPoints:
    draw = torch.Generator().manual_seed(seed)
    heads = (-1, 0, 1)
    return RecordedPoints(
        {(head, image): torch.rand(POINTS, 2, generator=draw) for head in heads for image in range(3)},
        {head: torch.rand(rows, 3 * POINTS, 2, generator=draw) for head in heads},
        {head: torch.rand(rows, POINTS - KEPT, 2, generator=draw) for head in heads},
    )


# -- the definition -------------------------------------------------------------------------------------------------


def maps_of(predictions: MaskPredictions, head: int, image: int) -> Tensor:
    features = predictions.mask_features[image, 0]
    return torch.stack(
        [sum(e[c] * features[c] for c in range(len(e))) for e in predictions.mask_embeddings[head, image]]
    )  # type: ignore[arg-type]


def padded(mask: Tensor) -> Tensor:
    whole = torch.zeros(SIZE)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    return whole


def at(plane: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of a map [h, w] at points [P, 2], (x, y) from 0 to 1."""
    return F.grid_sample(plane[None, None], 2 * points[None, None] - 1, align_corners=False)[0, 0, 0]


def dice_of(p: Tensor, t: Tensor) -> Tensor:
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def at_points(points: Tensor) -> Plain:
    def terms(plane: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, t = at(plane, points), at(padded(mask), points)
        return -(t * x.sigmoid().log() + (1 - t) * (-x).sigmoid().log()).mean(), dice_of(x.sigmoid(), t)

    return terms


def focal(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    p = x.sigmoid()
    each = 0.25 * t * (1 - p) ** 2 * -p.log() + 0.75 * (1 - t) * p**2 * -(1 - p).log()
    return each.mean(), dice_of(p, t)


def at_stride(plane: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every fourth pixel of the padded mask against the map itself."""
    return focal(plane, padded(mask)[::4, ::4])


def at_full_size(plane: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return focal(F.interpolate(plane[None, None], size=SIZE, mode="bilinear")[0, 0], padded(mask))


def cheapest(predictions: MaskPredictions, head: int, image: int, target: MaskTargets, plain: Plain) -> Match:
    """The cheapest of all ways to give every target a query of its own, by ascending query."""
    maps, shares = maps_of(predictions, head, image), predictions.class_logits[head, image].softmax(-1)

    def cost(query: int, number: int) -> float:
        mask, dice = plain(maps[query], target.masks[number])
        return (3 * mask + 7 * dice - 2 * shares[query, target.labels[number]]).item()

    table = [[cost(q, g) for g in range(len(target.labels))] for q in range(len(maps))]
    ways = itertools.permutations(range(len(maps)), len(target.labels))
    best = min(ways, key=lambda queries: sum(table[q][g] for g, q in enumerate(queries)))
    pairs = sorted((q, g) for g, q in enumerate(best))
    return Match(torch.tensor([q for q, _ in pairs]).long(), torch.tensor([g for _, g in pairs]).long())


def class_loss(predictions: MaskPredictions, head: int, matches: list[Match], divisor: float | None = None) -> Tensor:
    total, weights = torch.zeros(()), 0.0
    for image, (match, target) in enumerate(zip(matches, targets_of(), strict=True)):
        said = {int(q): int(target.labels[g]) for q, g in zip(match.queries, match.targets, strict=True)}
        for query, logits in enumerate(predictions.class_logits[head, image]):
            label = said.get(query, CLASSES)
            weight = NO_OBJECT if label == CLASSES else 1.0
            total = total - weight * logits.log_softmax(-1)[label]
            weights += weight
    return total / (weights if divisor is None else divisor)


def chosen(plane: Tensor, candidates: Tensor, fresh: Tensor) -> Tensor:
    return torch.cat([candidates[at(plane, candidates).abs().argsort()[:KEPT]], fresh])


def point_losses(
    predictions: MaskPredictions, points: RecordedPoints, matches: list[list[Match]], part: str = ""
) -> dict[str, Tensor]:
    """Weighted losses, the mask terms as sums over the matched masks."""
    losses = {}
    for head, name, suffix in ((2, -1, ""), (0, 0, "_0"), (1, 1, "_1")):
        rows = [
            (maps_of(predictions, head, image)[q], target.masks[g])
            for image, target in enumerate(targets_of())
            for q, g in zip(matches[head][image].queries, matches[head][image].targets, strict=True)
        ]
        near = points.oversampled(name, len(rows), 3 * POINTS)
        fresh = points.remainder(name, len(rows), POINTS - KEPT)
        terms = [
            at_points(chosen(plane.detach(), near[r], fresh[r]))(plane, mask) for r, (plane, mask) in enumerate(rows)
        ]
        losses[f"loss_ce{part}{suffix}"] = 2 * class_loss(predictions, head, matches[head])
        losses[f"loss_mask{part}{suffix}"] = 3 * sum(mask for mask, _ in terms)
        losses[f"loss_dice{part}{suffix}"] = 7 * sum(dice for _, dice in terms)
    return losses  # type: ignore[return-value]


def dense_losses(predictions: MaskPredictions, matches: list[list[Match]]) -> dict[str, Tensor]:
    losses = {}
    for head, suffix in ((2, ""), (0, "_0"), (1, "_1")):
        terms = [
            at_full_size(maps_of(predictions, head, image)[q], target.masks[g])
            for image, target in enumerate(targets_of())
            for q, g in zip(matches[head][image].queries, matches[head][image].targets, strict=True)
        ]
        losses[f"loss_ce{suffix}"] = 2 * class_loss(predictions, head, matches[head])
        losses[f"loss_mask{suffix}"] = 3 * sum(mask for mask, _ in terms)
        losses[f"loss_dice{suffix}"] = 7 * sum(dice for _, dice in terms)
    return losses  # type: ignore[return-value]


def matches_of(predictions: MaskPredictions, plain_of: Callable[[int, int], Plain]) -> list[list[Match]]:
    return [
        [cheapest(predictions, head, image, target, plain_of(head, image)) for image, target in enumerate(targets_of())]
        for head in range(HEADS)
    ]


def divided(losses: dict[str, Tensor], masks: float) -> dict[str, Tensor]:
    return {name: value if "_ce" in name else value / masks for name, value in losses.items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], predictions: MaskPredictions) -> None:
    """Names in order, values, and the gradients of the sum."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    leaves = (predictions.class_logits, predictions.mask_embeddings, predictions.mask_features)
    mine = torch.autograd.grad(torch.stack(list(found.values())).sum(), leaves, retain_graph=True)
    theirs = torch.autograd.grad(torch.stack(list(wanted.values())).sum(), leaves)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def point_criterion(**options: Any) -> PointSetCriterion:
    return PointSetCriterion(
        CLASSES, WEIGHTS, no_object_weight=NO_OBJECT, num_points=POINTS, importance_ratio=KEPT / POINTS, **options
    )


# -- Mask2Former ----------------------------------------------------------------------------------------------------


def point_matches(predictions: MaskPredictions, points: RecordedPoints) -> list[list[Match]]:
    names = (0, 1, -1)
    return matches_of(predictions, lambda head, image: at_points(points.matching(names[head], image, POINTS)))


def test_losses_at_points_are_those_of_the_definition_in_every_head() -> None:
    predictions, points = predictions_of(), points_of(5)
    found = point_criterion()(predictions, targets_of(), points)
    wanted = divided(point_losses(predictions, points, point_matches(predictions, points)), 5)
    assert_same(found, wanted, predictions)


def test_of_a_part_of_a_step_the_terms_divide_by_the_mean_count_of_a_part() -> None:
    """12 objects and class weights of 9 in two parts: this part divides by 6 and by 4.5, whatever lies in it."""
    predictions, points = predictions_of(), points_of(5)
    share = StepShare({"masks": 12.0, "classes": 9.0}, parts=2)
    found = point_criterion()(predictions, targets_of(), points, share=share)
    matches = point_matches(predictions, points)
    wanted = divided(point_losses(predictions, points, matches), 6)
    for head, suffix in ((2, ""), (0, "_0"), (1, "_1")):
        wanted[f"loss_ce{suffix}"] = 2 * class_loss(predictions, head, matches[head], 4.5)
    assert_same(found, wanted, predictions)


def test_a_step_of_few_objects_divides_by_one_but_class_weights_are_taken_as_they_are() -> None:
    share = StepShare({"masks": 0.0, "classes": 0.6}, parts=2)
    predictions = predictions_of(images=1)
    none = [MaskTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *SIZE, dtype=torch.bool))]
    criterion = point_criterion()
    assert float(criterion.masks_divisor(none, share, torch.device("cpu"))) == 0.5
    assert float(criterion.masks_divisor(none, None, torch.device("cpu"))) == 1.0
    found = criterion(predictions, none, RandomPoints(torch.device("cpu")), share=share)
    logs = predictions.class_logits[2, 0].log_softmax(-1)[:, CLASSES]
    torch.testing.assert_close(found["loss_ce"], 2 * NO_OBJECT * -logs.sum() / 0.3)


@pytest.mark.parametrize("criterion", [point_criterion(), DenseSetCriterion(CLASSES, WEIGHTS)], ids=["points", "dense"])
def test_without_objects_the_mask_terms_are_zeros_that_reach_every_mask_parameter(criterion: SetCriterion) -> None:
    predictions = predictions_of(images=2)
    none = [MaskTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *SIZE, dtype=torch.bool))] * 2
    found = criterion(predictions, none)
    mask_terms = {name: float(value) for name, value in found.items() if "_ce" not in name}
    assert set(mask_terms.values()) == {0.0}
    assert len(mask_terms) == 2 * HEADS
    torch.stack(list(found.values())).sum().backward()
    for leaf in (predictions.mask_embeddings, predictions.mask_features):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_queries_that_name_no_class_are_matched_and_judged_by_their_masks_alone() -> None:
    predictions, points = predictions_of(), points_of(5)
    criterion = PointSetCriterion(None, WEIGHTS, num_points=POINTS, importance_ratio=KEPT / POINTS)
    found = criterion(predictions, targets_of(), points)
    silent = MaskPredictions(torch.zeros_like(predictions.class_logits), *list(vars(predictions).values())[1:])
    matches = point_matches(silent, points)
    wanted = divided(point_losses(silent, points, matches), 5)
    assert list(found) == [name for name in wanted if "_ce" not in name]
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(criterion.class_losses(predictions.class_logits, matches, targets_of()), torch.zeros(HEADS))
    assert criterion.counts(targets_of(), QUERIES) == {"masks": 5.0, "classes": 0.0}


def test_points_without_uniform_ones_draw_no_remainder() -> None:
    predictions, points = predictions_of(), points_of(5)
    points = RecordedPoints(
        {key: points.matching(*key, POINTS) for key in itertools.product((-1, 0, 1), range(3))},
        {head: points.oversampled(head, 5, 3 * POINTS) for head in (-1, 0, 1)},
        {},
    )
    criterion = PointSetCriterion(CLASSES, WEIGHTS, num_points=POINTS, importance_ratio=1.0)
    assert len(criterion(predictions, targets_of(), points)) == 9


# -- MaskFormer -----------------------------------------------------------------------------------------------------


def test_losses_at_every_pixel_are_those_of_the_definition_in_every_head() -> None:
    predictions = predictions_of()
    criterion = DenseSetCriterion(CLASSES, WEIGHTS, no_object_weight=NO_OBJECT)
    matches = matches_of(predictions, lambda head, image: at_stride)
    assert_same(criterion(predictions, targets_of()), divided(dense_losses(predictions, matches), 5), predictions)


def test_dense_costs_weigh_their_terms() -> None:
    predictions, target = predictions_of(), targets_of()[1]
    criterion = DenseSetCriterion(CLASSES, WEIGHTS)
    small = criterion.targets_at_stride(predictions, target)
    assert torch.equal(small, torch.stack([padded(mask)[::4, ::4].flatten() for mask in target.masks]))
    cost = criterion.matching_cost(predictions, 1, 1, target, small)
    maps, shares = maps_of(predictions, 1, 1), predictions.class_logits[1, 1].softmax(-1)
    for query, number in itertools.product(range(QUERIES), range(3)):
        mask, dice = at_stride(maps[query], target.masks[number])
        wanted = 3 * mask + 7 * dice - 2 * shares[query, target.labels[number]]
        torch.testing.assert_close(cost[query, number], wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["points", "dense"])
def test_matching_is_in_float32_whatever_autocast_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion: Any = point_criterion() if kind == "points" else DenseSetCriterion(CLASSES, WEIGHTS)
    predictions, points, costs = predictions_of(), points_of(5), []
    original = criterion.matching_cost
    monkeypatch.setattr(criterion, "matching_cost", lambda *given: costs.append(original(*given)) or costs[-1])
    given = (predictions, targets_of(), *([points] if kind == "points" else []))
    with torch.autocast("cpu", torch.bfloat16):
        criterion.match(*given)
    under = list(costs)
    costs.clear()
    criterion.match(*given)
    assert len(under) == len(costs) == 9
    for one, other in zip(under, costs, strict=True):
        assert torch.equal(one, other)


# -- MP-Former ------------------------------------------------------------------------------------------------------


def piloted_part() -> PilotedPart:
    """Six queries an image: two copies of each target, the rest unused."""
    matches = [
        Match(torch.tensor([0, 1, 3, 4]), torch.tensor([0, 1, 0, 1])),
        Match(torch.arange(6), torch.tensor([2, 1, 0, 0, 2, 1])),
        Match(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    ]
    return PilotedPart(predictions_of(seed=7, queries=6), matches, copies=2)


@pytest.mark.parametrize("classify", [True, False])
def test_piloted_queries_add_the_same_losses_over_targets_times_copies(classify: bool) -> None:
    predictions, points, piloted = predictions_of(), points_of(5), piloted_part()
    own = points_of(10, seed=8)
    criterion = PilotedSetCriterion(
        CLASSES,
        WEIGHTS,
        classify_piloted=classify,
        no_object_weight=NO_OBJECT,
        num_points=POINTS,
        importance_ratio=KEPT / POINTS,
    )
    found = criterion(predictions, targets_of(), points, piloted, own)
    normal = divided(point_losses(predictions, points, point_matches(predictions, points)), 5)
    extra = divided(point_losses(piloted.predictions, own, [piloted.matches] * HEADS, "_dn"), 10)
    if not classify:
        extra = {name: value for name, value in extra.items() if "_ce" not in name}
    assert list(found) == [*normal, *extra]
    for name, value in {**normal, **extra}.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_without_a_piloted_part_its_losses_are_zeros_and_by_default_all_are_named() -> None:
    criterion = PilotedSetCriterion(CLASSES, WEIGHTS, num_points=POINTS)
    found = criterion(predictions_of(), targets_of())
    extra = {name: float(value) for name, value in found.items() if "_dn" in name}
    terms = [f"loss_{term}_dn{suffix}" for suffix in ("", "_0", "_1") for term in ("ce", "mask", "dice")]
    assert extra == dict.fromkeys(terms, 0.0)
    assert len(found) == 18


def test_piloted_queries_take_the_points_of_the_others_where_they_have_none_of_their_own() -> None:
    criterion = PilotedSetCriterion(CLASSES, WEIGHTS, num_points=POINTS)
    both = {}
    for given in (None, RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(4))):
        first = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(3))
        both[given is None] = criterion(predictions_of(), targets_of(), first, piloted_part(), given)
    assert torch.equal(both[True]["loss_mask"], both[False]["loss_mask"])
    assert not torch.equal(both[True]["loss_mask_dn"], both[False]["loss_mask_dn"])


# -- what all share -------------------------------------------------------------------------------------------------


def test_counts_are_the_objects_and_the_class_weights_of_what_queries_should_say() -> None:
    """With 4 queries: 2 + 2 x 0.3, 3 + 0.3, 4 x 0.3. With 2, matching leaves one of the three objects out."""
    criterion = point_criterion()
    assert criterion.counts(targets_of(), 4) == pytest.approx({"masks": 5.0, "classes": 2.6 + 3.3 + 1.2})
    assert criterion.counts(targets_of(), 2) == pytest.approx({"masks": 5.0, "classes": 2.0 + 2.0 + 0.6})
    criterion.allow_no_object_targets = True
    absent = [MaskTargets(torch.tensor([CLASSES, 1, 1]), torch.zeros(3, *SIZE, dtype=torch.bool))]
    assert criterion.counts(absent, 3)["classes"] == pytest.approx(2.3)
    assert criterion.counts(absent, 2)["classes"] == pytest.approx(2.3 * 2 / 3)


def test_the_number_of_objects_is_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 objects here and 9 in the other of two processes: 7."""
    count = torch.tensor(5.0)
    assert float(mask_criterion.mean_over_ranks(count)) == 5.0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(9.0))
    assert float(mask_criterion.mean_over_ranks(count)) == 7.0
    assert float(count) == 5.0
    assert float(point_criterion().masks_divisor(targets_of(), None, torch.device("cpu"))) == 7.0


@pytest.mark.parametrize(
    ("labels", "masks", "message"),
    [
        ([0, 5], (2, 24, 32), r"targets\[1\]\.labels must be in 0\.\.4, got 0\.\.5"),
        ([-1, 3], (2, 24, 32), r"targets\[1\]\.labels must be in 0\.\.4, got -1\.\.3"),
        ([1.0, 2.0], (2, 24, 32), r"targets\[1\]\.labels must be int64 \[G\], got torch\.float32 \[2\]"),
        ([[1, 2]], (1, 24, 32), r"targets\[1\]\.labels must be int64 \[G\], got torch\.int64 \[1, 2\]"),
        ([1, 2], (3, 24, 32), r"targets\[1\]\.masks must be \[2, \.\.\., H <= 24, W <= 32\], got \[3, 24, 32\]"),
        ([1, 2], (2, 25, 32), r"targets\[1\]\.masks must be .*, got \[2, 25, 32\]"),
        ([1, 2], (2, 24, 33), r"targets\[1\]\.masks must be .*, got \[2, 24, 33\]"),
        ([1, 2], (2, 32), r"targets\[1\]\.masks must be .*, got \[2, 32\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(labels: Sequence[Any], masks: tuple[int, ...], message: str) -> None:
    first, _, last = targets_of()
    bad = MaskTargets(torch.tensor(labels), torch.zeros(*masks, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        point_criterion()(predictions_of(), [first, bad, last])


def test_targets_must_be_one_an_image_and_no_object_is_a_label_where_a_system_says_so() -> None:
    criterion, predictions = point_criterion(), predictions_of()
    with pytest.raises(ValueError, match=r"targets must be one an image \(3\), got 2"):
        criterion(predictions, targets_of()[:2])
    absent = MaskTargets(torch.tensor([CLASSES]), torch.zeros(1, *SIZE, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"targets\[0\]\.labels must be in 0\.\.4, got 5\.\.5"):
        criterion.check_labels([absent])
    criterion.allow_no_object_targets = True
    criterion.check_labels([absent])
    unnamed = PointSetCriterion(None, WEIGHTS)
    unnamed.check_labels([absent])
    unnamed.check_labels([])


@pytest.mark.parametrize(
    ("field", "place", "message"),
    [
        ("class_logits", (2, 1, 3, 0), "bad class cost of the final head, image 1 of the batch, query 3: 1 of 24"),
        (
            "mask_embeddings",
            (0, 2, 1, 4),
            "mask and dice cost of auxiliary head 0, image 2 of the batch, query 1: 1 of 28",
        ),
        (
            "mask_features",
            (1, 0, 3),
            "of auxiliary head 0, image 1 of the batch: 48 of 336 values of mask_features",
        ),
    ],
)
def test_a_cost_that_is_not_finite_names_head_image_query_and_prediction(
    field: str, place: tuple[int, ...], message: str
) -> None:
    predictions = predictions_of()
    with torch.no_grad():
        getattr(predictions, field)[place] = float("nan")
    targets = [targets_of()[1]] * 3
    with pytest.raises(ValueError, match=message):
        point_criterion().match(predictions, targets, points_of(9))


def test_images_draw_their_own_points_whichever_share_the_batch() -> None:
    """Two frames and three objects of four queries draw six masks' points; of five objects four are matched."""
    clip = MaskTargets(torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2, 8, 8, dtype=torch.bool))
    many = MaskTargets(torch.zeros(5, dtype=torch.int64), torch.zeros(5, 8, 8, dtype=torch.bool))
    cpu = torch.device("cpu")
    both = ItemPoints.of_targets(cpu, [11, 22], [clip, many], 4)
    assert both.masks == [6, 4]
    alone = ItemPoints.of_targets(cpu, [22], [many], 4)
    assert torch.equal(both.matching(-1, 1, 9), alone.matching(-1, 0, 9))
    whole = both.oversampled(-1, 10, 7)
    assert whole.shape == (10, 7, 2)
    assert torch.equal(whole[6:], alone.oversampled(-1, 4, 7))
    assert torch.equal(both.remainder(0, 10, 3)[6:], alone.remainder(0, 4, 3))
    with pytest.raises(ValueError, match=r"masks must be those of the batch \(10\), got 9"):
        both.oversampled(-1, 9, 7)
    with pytest.raises(ValueError, match=r"seeds must be one an image \(2\), got 1"):
        ItemPoints(cpu, [1], [2, 3])


def test_random_points_come_row_by_row_from_their_generator() -> None:
    draws = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(5))
    again = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(5))
    first = draws.oversampled(-1, 3, 4)
    assert first.shape == (3, 4, 2)
    assert draws.matching(0, 1, 6).shape == (6, 2)
    assert torch.equal(again.remainder(1, 3, 4), first)
    assert not torch.equal(draws.remainder(1, 3, 4), first)
