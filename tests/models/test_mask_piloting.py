"""Piloted queries: where copies stand, what noise does to their masks, what they are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_cases.recorded import RecordedNoise
from torch import Tensor

from fssops.models.mask_piloting import (
    PilotOptions,
    Pilots,
    QueryLayout,
    RandomNoise,
    build_pilots,
)
from fssops.models.mask_piloting.noise import MAP_NOISES, boxes_of, flipped_points, touched_cells
from fssops.structures import MaskTargets

LEVELS = [(2, 3), (4, 6), (8, 12)]
MODES = ["points", *MAP_NOISES]
CPU = torch.device("cpu")


def options(mode: str = "points", **changes: Any) -> PilotOptions:
    """Two groups, some noise."""
    default: dict[str, Any] = {
        "mode": mode,
        "groups": 2,
        "noise_scale": 0.5,
        "enlarge_above": 0.5,
        "label_noise": 0.0,
        "all_layers": True,
        "head_noise": None,
        "published": False,
    }
    return PilotOptions(**{**default, **changes})


def target(size: tuple[int, int], labels: Sequence[int], boxes: Sequence[Sequence[int]]) -> MaskTargets:
    """Boxes as (top, left, bottom, right)."""
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return MaskTargets(torch.tensor(labels, dtype=torch.int64), masks)


def scene() -> list[MaskTargets]:
    """Two objects, one object, and an image without any."""
    return [
        target((44, 80), [1, 5], [(4, 10, 30, 50), (0, 60, 9, 70)]),
        target((60, 64), [6], [(8, 8, 40, 30)]),
        target((64, 96), [], []),
    ]


def embedding(labels: Tensor) -> Tensor:
    """Content that shows the label: [n, 4]."""
    return (labels[:, None] + 1) * torch.tensor([1.0, 10.0, 100.0, 1000.0])


def built(
    chosen: PilotOptions, seed: int = 0, targets: Sequence[MaskTargets] | None = None, layers: int = 6, **changes: Any
) -> Pilots:
    """Pilots of the scene."""
    given: dict[str, Any] = {
        "classes": 7,
        "queries": 3,
        "layers": layers,
        "sizes": LEVELS,
        "padded_size": (64, 96),
        "padding": [None] * 3,
    }
    draws = RandomNoise(CPU, torch.Generator().manual_seed(seed))
    pilots = build_pilots(targets or scene(), embedding, chosen, draws, **{**given, **changes})
    assert pilots is not None
    return pilots


def closed(pilots: Pilots, layer: int) -> Tensor:
    """[B, places, S] of the first head."""
    mask = pilots.masks[layer]
    assert mask is not None
    return mask.closed()[:, 0]


def recorded() -> list[Any]:
    """Cases of the authors' decoder."""
    document = json.loads((Path(__file__).parent / "mp_former_modes.json").read_text())
    return [pytest.param(document["scene"], case, id=case["mode"]) for case in document["cases"]]


@pytest.mark.parametrize(("setting", "case"), recorded())
def test_masks_of_every_mode_are_the_authors_bit_for_bit(setting: dict[str, Any], case: dict[str, Any]) -> None:
    """Given their draws and ``published``, the complement after the first layer included."""
    targets = [
        target(tuple(size), labels, boxes)  # type: ignore[arg-type]
        for size, labels, boxes in zip(setting["sizes"], setting["labels"], setting["boxes"], strict=True)
    ]
    integers = ("labels", "short_side", "row", "column")
    draws = {
        name: torch.tensor(values, dtype=torch.int64 if name in integers else torch.float32)
        for name, values in case["draws"].items()
    }
    told: list[Tensor] = []
    pilots = build_pilots(
        targets,
        lambda labels: (told.append(labels), embedding(labels))[1],
        options(
            case["mode"],
            noise_scale=case["noise_scale"],
            label_noise=case["label_noise"],
            all_layers=case["all_layers"],
            enlarge_above=case["enlarge_above"],
            published=True,
        ),
        RecordedNoise(draws),
        classes=setting["classes"],
        queries=3,
        layers=setting["layers"],
        sizes=[(h, w) for h, w in setting["levels"]],
        padded_size=tuple(setting["padded"]),
        padding=[None] * 3,
    )
    assert pilots is not None
    assert told[0].tolist() == case["labels_told"]
    for layer, wanted in enumerate(case["closed"]):
        if pilots.masks[layer] is None:
            assert (layer, case["all_layers"]) == (4, False)
            continue
        assert np.packbits(closed(pilots, layer).numpy(), axis=-1).tobytes().hex() == wanted


@pytest.mark.parametrize("mode", MAP_NOISES)
@pytest.mark.parametrize("published", [False, True], ids=["sound", "published"])
def test_the_same_level_shows_the_same_mask_again_or_its_complement(mode: str, published: bool) -> None:
    """Layers 0 and 3 are of one level; the published code inverts what it hands on."""
    pilots = built(options(mode, published=published))
    first, again = closed(pilots, 0), closed(pilots, 3)
    used = (pilots.layout.images, pilots.layout.places)
    mixed = [row for row in range(len(used[0])) if 0 < first[used][row].sum() < first.shape[-1]]
    assert mixed
    wanted = ~first[used] if published else first[used]
    assert torch.equal(again[used][mixed], wanted[mixed])


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_empty_places_are_open(mode: str) -> None:
    pilots = built(options(mode))
    unused = torch.ones(3, pilots.layout.total, dtype=torch.bool)
    unused[pilots.layout.images, pilots.layout.places] = False
    assert unused.sum() == 6
    for layer in range(6):
        assert not closed(pilots, layer)[unused].any()
    assert not pilots.content[unused].any()
    assert (pilots.content[~unused][:, 0] > 0).all()


def test_copies_stand_group_after_group() -> None:
    layout = QueryLayout.of([2, 1, 0], 2, CPU)
    assert layout is not None
    assert (layout.groups, layout.width, layout.total) == (2, 2, 4)
    assert layout.images.tolist() == [0, 0, 1, 0, 0, 1]
    assert layout.places.tolist() == [0, 1, 0, 2, 3, 2]
    assert layout.sources.tolist() == [0, 1, 2, 0, 1, 2]
    assert [(m.queries.tolist(), m.targets.tolist()) for m in layout.matches()] == [
        ([0, 1, 2, 3], [0, 1, 0, 1]),
        ([0, 2], [0, 0]),
        ([], []),
    ]


@pytest.mark.parametrize(
    ("counts", "groups", "found"),
    [([3, 1], 2, 2), ([3, 1], 100, 33), ([3, 1], 99, 99), ([101], 100, None), ([0, 0], 5, None), ([4], 0, None)],
)
def test_many_groups_are_a_budget_of_places(counts: list[int], groups: int, found: int | None) -> None:
    layout = QueryLayout.of(counts, groups, CPU)
    assert (None if layout is None else layout.groups) == found


def test_which_queries_may_attend_to_which() -> None:
    """Two groups of two, one normal query: rows attend, x is blocked."""
    layout = QueryLayout.of([2], 2, CPU)
    assert layout is not None
    rows = ["".join("x" if blocked else "." for blocked in row) for row in layout.self_attention_mask(1).tolist()]
    assert rows == ["..xx.", "..xx.", "xx...", "xx...", "xxxx."]


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (64, 96)])
def test_a_cell_is_open_where_the_object_touches_it(size: tuple[int, int]) -> None:
    """The published rule: resized by area, open above 1e-8; also where windows overlap."""
    masks = torch.rand(5, 64, 96, generator=torch.Generator().manual_seed(1)) > 0.99
    area = torch.nn.functional.interpolate(masks[:, None].float(), size=size, mode="area")[:, 0]
    assert torch.equal(touched_cells(masks, size), area > 1e-8)


def test_boxes_are_shares_of_the_unpadded_image() -> None:
    found = boxes_of(target((40, 80), [0, 0], [(10, 20, 30, 60), (0, 0, 0, 0)]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]]))


def test_point_noise_flips_as_many_cells_as_its_scale_says() -> None:
    """On average scale times the open cells, spread over the whole map."""
    opened = torch.zeros(400, 200, dtype=torch.bool)
    opened[:, :50] = True
    draws = RandomNoise(CPU, torch.Generator().manual_seed(3))
    flips = (flipped_points(opened, 0.4, None, draws, 0) ^ opened).float()
    assert float(flips.sum(1).mean()) == pytest.approx(20, rel=0.05)
    assert float(flips[:, :50].sum(1).mean()) == pytest.approx(5, rel=0.1)
    assert torch.equal(flipped_points(opened, 0.0, None, draws, 0), opened)


def test_heads_may_have_noise_of_their_own() -> None:
    shared, own = built(options(noise_scale=0.9)), built(options(noise_scale=0.9, head_noise=4))
    assert shared.masks[2] is not None
    assert own.masks[2] is not None
    assert shared.masks[2].bits.shape[1] == 1
    heads = own.masks[2].closed()
    assert heads.shape[1] == 4
    assert not torch.equal(heads[:, 0], heads[:, 1])


def test_point_noise_is_drawn_anew_for_each_layer_and_group() -> None:
    pilots = built(options(noise_scale=0.9))
    assert not torch.equal(closed(pilots, 2), closed(pilots, 5))
    assert not torch.equal(closed(pilots, 2)[:, :2], closed(pilots, 2)[:, 2:])
    exact = built(options(noise_scale=0.0))
    assert torch.equal(closed(exact, 2), closed(exact, 5))
    assert torch.equal(closed(exact, 2)[:, :2], closed(exact, 2)[:, 2:])


def test_only_the_first_layers_are_given_masks_where_not_all_are() -> None:
    assert [mask is not None for mask in built(options(all_layers=False)).masks] == [True] * 4 + [False] * 2
    assert [mask is not None for mask in built(options(), layers=2).masks] == [True] * 2


def test_wrong_labels_come_as_often_as_asked_for() -> None:
    many = [target((64, 96), [3] * 200, [(0, 0, 8, 8)] * 200)]
    for share in (0.0, 0.3, 1.0):
        content = built(options(groups=5, label_noise=share), targets=many, layers=1).content
        told = (content[0, :, 0] - 1).long()
        # One in seven random classes is the right one by chance.
        assert float((told != 3).float().mean()) == pytest.approx(share * 6 / 7, abs=0.05)
        assert told.min() >= 0
        assert told.max() <= 6


def test_shift_alone_noises_content_where_labels_are_right() -> None:
    exact = built(options(groups=1, noise_scale=0.5)).content
    noised = built(options("shift", groups=1, noise_scale=0.5)).content
    ratio = (noised / exact)[exact > 0]
    assert ratio.min() >= 0.5
    assert ratio.max() <= 1.5
    assert ratio.std() > 0.1
    for other in ("scale", "patch", "points_MAE"):
        assert torch.equal(built(options(other, groups=1)).content, exact)
    assert torch.equal(built(options("shift", groups=1, label_noise=1e-9)).content, exact)


def test_a_sound_shift_moves_rows_by_height_and_columns_by_width() -> None:
    """A wide, flat object moves far sideways and little up or down; the published code has it the other way round."""
    wide = [target((64, 96), [0], [(28, 8, 36, 88)])]  # one row of eight pixels, ten columns at the finest level
    rows: dict[bool, set[int]] = {}
    for published in (False, True):
        seen = set()
        for seed in range(30):
            first = closed(built(options("shift", groups=1, published=published), seed, wide, layers=3), 2)
            opened = ~first[0, 0] if not published else first[0, 0]
            seen |= set(opened.view(8, 12).any(1).nonzero()[:, 0].tolist())
        rows[published] = seen
    assert rows[False] <= {3, 4}
    assert len(rows[True]) > 3


def test_padding_stays_closed_to_piloted_queries() -> None:
    padding = []
    for height, width in LEVELS:
        blocked = torch.zeros(3, height, width, dtype=torch.bool)
        blocked[:, :, width - 1 :] = True
        padding.append(blocked.flatten(1))
    pilots = built(options(noise_scale=0.9), padding=padding)
    for layer in range(6):
        assert closed(pilots, layer)[padding[layer % 3][:, None].expand(-1, 4, -1)].all()


@pytest.mark.parametrize("mode", MODES)
def test_pilots_are_a_function_of_the_generator(mode: str) -> None:
    chosen = options(mode, noise_scale=0.9, label_noise=0.5)
    first, again, other = built(chosen, 1), built(chosen, 1), built(chosen, 2)
    assert torch.equal(first.content, again.content)
    same = [torch.equal(closed(first, layer), closed(again, layer)) for layer in range(6)]
    differs = [not torch.equal(closed(first, layer), closed(other, layer)) for layer in range(6)]
    assert all(same)
    assert any(differs)


def test_an_empty_mask_is_open_everywhere_like_an_empty_prediction() -> None:
    """But for a patch, which is at least one cell."""
    empty = [target((64, 96), [2], [(0, 0, 0, 0)])]
    for mode in MODES:
        rows = [closed(built(options(mode, groups=1), targets=empty), layer) for layer in range(3)]
        assert [bool(row.any()) for row in rows] == ([True] * 3 if mode == "patch" else [False] * 3)


@pytest.mark.parametrize("size", [(4, 100), (100, 4)])
def test_a_patch_fits_into_a_flat_map(size: tuple[int, int]) -> None:
    """The published code asks for a random place that there is not."""
    full = [target((size[0] * 8, size[1] * 8), [0], [(0, 0, size[0] * 8, size[1] * 8)])]
    levels = [((size[0] + 3) // 4, (size[1] + 3) // 4), ((size[0] + 1) // 2, (size[1] + 1) // 2), size]
    for seed in range(20):
        chosen = options("patch", noise_scale=1.0)
        built(chosen, seed, full, layers=3, sizes=levels, padded_size=(size[0] * 8, size[1] * 8))


def test_recorded_draws_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RecordedNoise: offset must have shape \(6, 2\), got \(1, 2\)"):
        build_pilots(
            scene(),
            embedding,
            options("shift"),
            RecordedNoise({"offset": torch.zeros(1, 2)}),
            classes=7,
            queries=3,
            layers=3,
            sizes=LEVELS,
            padded_size=(64, 96),
            padding=[None] * 3,
        )
    with pytest.raises(ValueError, match="RecordedNoise: draws must hold offset, got nothing"):
        RecordedNoise({}).uniform("offset", 1, 2)
