"""The published chains by name: their sizes, their steps, and that everything in a scene stays lined up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fssops.data.augmentation.chains import (
    CHAINS,
    FEW_SHOT_CHAINS,
    GEOMETRIES,
    UNIVERSAL_CHAINS,
    few_shot_chain,
    universal_chain,
    with_enough,
)
from fssops.data.augmentation.colour import ColourJitter, GaussianBlur
from fssops.data.augmentation.geometry import (
    Chain,
    LargeScaleJitter,
    ObjectCrop,
    OneOfTwo,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomRangeCrop,
    RandomRotate,
    RandomScale,
    Resize,
    ResizeShortestEdge,
)
from fssops.data.augmentation.scene import DETECTRON2, FILL, MM_FORMER, PANET, Scene, resized
from fssops.structures import IGNORE
from fssops.truth import Segment, draw

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 4, (37, 53)).astype(np.uint8)

SIZES: dict[str, dict[str, Any]] = {
    "none": {"short_sides": (90, 150)},
    "flip": {"short_sides": (90, 150)},
    "resize_crop": {"short_sides": (90, 150), "crop": (100, 90)},
    "large_scale_jitter": {"side": 100, "scales": (0.7, 2.0)},
    "detr": {"short_sides": (90, 150)},
}
EVERY_CHAIN = [("few-shot", name) for name in FEW_SHOT_CHAINS] + [("universal", name) for name in UNIVERSAL_CHAINS]


def chain(kind: str, name: str) -> Chain:
    return few_shot_chain((96, 96), name) if kind == "few-shot" else universal_chain(name, **SIZES[name])


def scene() -> Scene:
    return Scene(IMAGE.copy(), {"label": LABEL.copy()})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def letter() -> Scene:
    """A white F on black, the same in every map, as polygons and as a mask; no movement leaves it as it was."""
    corners = np.array(
        [[30, 20], [110, 20], [110, 40], [60, 40], [60, 55], [90, 55], [90, 70], [60, 70], [60, 105], [30, 105]]
    )
    shape = draw([corners.astype(np.float64)], 120, 160)
    maps = {name: shape.astype(np.int32 if fill == 0 else np.uint8) for name, fill in FILL.items()}
    image = np.repeat(shape[..., None] * np.uint8(255), 3, axis=2)
    return Scene(image, maps, [Segment(1, 1)], [[corners.astype(np.float64)], shape], [1, 1])


@pytest.mark.parametrize(("kind", "name"), EVERY_CHAIN)
def test_image_maps_and_objects_stay_lined_up(kind: str, name: str) -> None:
    """The picture shows its own label as brightness: after any chain, bright pixels are where the label is."""
    for seed in range(8):
        result = chain(kind, name)(letter(), rng(seed))
        inside = result.maps["label"] != IGNORE
        bright = result.image[..., 0] > 127
        if name in ("mm_former", "resize_crop"):  # colours change; brightness stays in order
            bright = result.image[..., 0] > result.image[inside].mean()
        shapes = {name: values == 1 for name, values in result.maps.items()}
        shapes.update(polygon=draw(result.outlines[0], *result.size), outline=np.asarray(result.outlines[1]))
        for what, shape in shapes.items():
            assert shape.shape == result.size
            # Only pixels on the outline may differ, by the ways of resampling.
            assert ((bright != shape) & inside).sum() <= 0.03 * inside.sum(), what
            assert not shape[~inside].any(), what


@pytest.mark.parametrize("name", FEW_SHOT_CHAINS)
def test_named_augmentation_gives_the_asked_size_and_repeats_with_its_generator(name: str) -> None:
    steps = few_shot_chain((48, 64), name)
    a, b, c = (steps(scene(), rng(seed)) for seed in (1, 1, 2))
    assert a.size == (48, 64) == a.maps["label"].shape
    assert (a.image == b.image).all()
    assert (a.maps["label"] == b.maps["label"]).all()
    assert set(np.unique(a.maps["label"])) <= {0, 1, 2, 3, 255}
    if name.startswith("msanet"):
        assert not np.array_equal(a.image, c.image)


@pytest.mark.parametrize(("kind", "name"), [entry for entry in EVERY_CHAIN if entry[1] != "none"])
def test_every_chain_flips_half_of_its_scenes(kind: str, name: str) -> None:
    """The stem of the F stands left or right of its middle."""
    steps, turned, draws = chain(kind, name), 0, 40
    for seed in range(draws):
        heights = np.trim_zeros((steps(letter(), rng(seed)).maps["label"] == 1).sum(0))
        turned += heights[: len(heights) // 2].sum() < heights[-(len(heights) // 2) :].sum()
    assert 0.2 * draws < turned < 0.8 * draws


def test_a_chain_without_augmentation_never_flips() -> None:
    for steps in (few_shot_chain((37, 53)), universal_chain("none")):
        assert all(np.array_equal(steps(scene(), rng(seed)).image, IMAGE) for seed in range(10))
    plain = universal_chain("flip")
    assert {plain(scene(), rng(seed)).image[0, 0].tobytes() for seed in range(10)} == {
        IMAGE[0, 0].tobytes(),
        IMAGE[0, -1].tobytes(),
    }


FLIP, COLOURS, TO = RandomFlip(0.5), ColourJitter(32.0, (0.5, 1.5), (0.5, 1.5), 18), (480, 480)
EDGES = ResizeShortestEdge((90, 150), 1333, DETECTRON2)
ORDERS: dict[str, tuple[Chain, tuple[Any, ...]]] = {
    "panet": (few_shot_chain(TO, "flip"), (Resize(TO, PANET), FLIP)),
    **{
        name: (
            few_shot_chain(TO, name),
            (RandomScale(*limits), RandomRotate(10.0, 0.5), GaussianBlur(0.5), FLIP, ObjectCrop(TO, 0.85, 31, classes)),
        )
        # The published base stage looks after label 1.
        for name, limits, classes in (
            ("msanet_pascal", (0.9, 1.1), ()),
            ("msanet_coco", (0.8, 1.25), ()),
            ("msanet_base", (0.5, 2.0), (1,)),
        )
    },
    "mm_former": (
        few_shot_chain(TO, "mm_former"),
        (
            ResizeShortestEdge(tuple(range(320, 1024, 64)), 2048, MM_FORMER),
            RandomCrop(TO),
            COLOURS,
            FLIP,
            Pad(TO),
        ),
    ),
    "ade20k": (
        universal_chain("resize_crop", short_sides=[90, 150], crop=(64, 96), category_share=0.75),
        (EDGES, RandomCrop((64, 96), 0.75), COLOURS, FLIP, Pad((64, 96))),
    ),
    "coco": (universal_chain("large_scale_jitter"), (FLIP, LargeScaleJitter(1024, 0.1, 2.0))),
    "coco, own sizes": (
        universal_chain("large_scale_jitter", side=64, scales=(0.5, 1.5)),
        (FLIP, LargeScaleJitter(64, 0.5, 1.5)),
    ),
    "detr": (
        universal_chain("detr", short_sides=[90, 150]),
        (
            OneOfTwo(
                Chain((FLIP, EDGES)),
                Chain((FLIP, ResizeShortestEdge((400, 500, 600), 1 << 30), RandomRangeCrop(384, 600), EDGES)),
            ),
        ),
    ),
    "ytvis": (
        universal_chain("flip", short_sides=[360, 480], longest=900),
        (ResizeShortestEdge((360, 480), 900, DETECTRON2), FLIP),
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_steps_are_those_of_the_published_code_in_its_order(name: str) -> None:
    steps, published = ORDERS[name]
    assert steps == Chain(published)


def test_the_short_sides_of_mm_former_go_with_the_crop() -> None:
    for size, factor in (((480, 480), 1.0), ((240, 320), 0.5)):
        resize = few_shot_chain(size, "mm_former").steps[0]
        assert isinstance(resize, ResizeShortestEdge)
        sides = resize.short_sides
        assert (sides[0], sides[-1], len(sides)) == (320 * factor, 960 * factor, 11)
        assert resize.longest == 2048 * factor


def test_padding_of_mm_former_stays_grey_and_to_the_right_whatever_is_drawn() -> None:
    """The authors pad after colours and flip (``few_shot_mapper_stage1.py``)."""
    picture = Scene(np.full((30, 20, 3), 90, np.uint8), {"label": np.ones((30, 20), np.uint8)})
    padded = 0
    for seed in range(30):
        result = few_shot_chain((48, 48), "mm_former")(picture, rng(seed))
        outside = result.maps["label"] == IGNORE
        assert (np.diff(outside.astype(int), axis=0) >= 0).all()
        assert (np.diff(outside.astype(int), axis=1) >= 0).all()
        assert (result.image[outside] == 128).all()
        padded += outside.any()
    assert padded > 3


def test_crops_of_universal_chains_are_padded_where_that_is_asked_for() -> None:
    for pad in (True, False):
        steps = universal_chain("resize_crop", short_sides=(20,), crop=(32, 24), pad=pad)
        assert steps(scene(), rng()).size == ((32, 24) if pad else (20, 24))


def test_detr_crops_in_half_of_the_draws() -> None:
    columns = np.broadcast_to(np.arange(900, dtype=np.int32), (900, 900))
    picture = Scene(np.zeros((900, 900, 3), np.uint8), {"segments": columns})
    steps, whole = universal_chain("detr", short_sides=(100,)), 0
    for seed in range(30):
        result = steps(picture, rng(seed)).maps["segments"]
        assert min(result.shape) == 100
        whole += int(np.ptp(result)) > 880
    assert 5 < whole < 25


def test_geometries_differ_in_the_nearest_pixel() -> None:
    label = np.arange(7, dtype=np.uint8)[None].repeat(7, 0)
    picture = Scene(np.zeros((7, 7, 3), np.uint8), {"label": label})
    assert few_shot_chain((5, 5), "none", "square_by_corners")(picture, rng()).maps["label"][0].tolist() == [
        0,
        1,
        2,
        4,
        5,
    ]
    assert few_shot_chain((5, 5))(picture, rng()).maps["label"][0].tolist() == [0, 2, 3, 4, 6]
    boxed = few_shot_chain((15, 15), "none", "letterbox")(picture, rng()).maps["label"]
    assert (boxed != IGNORE).sum() == 64
    assert list(GEOMETRIES) == ["square", "square_by_corners", "letterbox"]


def test_augmentation_is_drawn_anew_until_enough_of_the_class_is_left() -> None:
    label = np.zeros((200, 200), np.uint8)
    label[:20, :20] = 7
    steps, picture = few_shot_chain((64, 64), "mm_former"), Scene(np.zeros((200, 200, 3), np.uint8), {"label": label})

    def pixels(seed: int, least: int) -> int:
        return int((with_enough(steps, picture, rng(seed), [7], least).maps["label"] == 7).sum())

    assert min(pixels(seed, 10) for seed in range(20)) >= 10
    free = [int((steps(picture, rng(seed)).maps["label"] == 7).sum()) for seed in range(20)]
    assert min(free) == 0
    assert [pixels(seed, 0) for seed in range(20)] == free, "0 takes the first try"
    generator = rng(0)
    tries = [int((steps(picture, generator).maps["label"] == 7).sum()) for _ in range(100)]
    assert pixels(0, 10**6) == max(tries), "where none is enough, the try that kept most"
    scales, equal = iter((3, 2)), Scene(np.zeros((4, 4, 3), np.uint8), {"label": np.zeros((4, 4), np.uint8)})
    first = with_enough(lambda s, _: resized(s, (next(scales, 1),) * 2, PANET), equal, rng(), [7], 1)
    assert first.size == (3, 3), "of equal tries the first"


def test_every_chain_is_in_one_table_and_every_name_of_it_can_be_built() -> None:
    assert set(FEW_SHOT_CHAINS) | set(UNIVERSAL_CHAINS) == set(CHAINS)


@pytest.mark.parametrize("size", [(0, 5), (5,), 5, (2.0, 3), (True, 3)])
def test_size_that_is_no_height_and_width_is_an_error(size: object) -> None:
    with pytest.raises(ValueError, match="size must be two positive integers"):
        few_shot_chain(size)  # type: ignore[arg-type]


def test_unknown_names_are_errors_and_letterbox_is_square() -> None:
    with pytest.raises(
        ValueError,
        match="augment must be one of none, flip, msanet_pascal, msanet_coco, msanet_base, mm_former, got 'x'",
    ):
        few_shot_chain((8, 8), "x")
    with pytest.raises(ValueError, match=r"augment must be one of .*, got 'detr'"):
        few_shot_chain((8, 8), "detr")
    with pytest.raises(ValueError, match="geometry must be one of square, square_by_corners, letterbox, got 'x'"):
        few_shot_chain((8, 8), "none", "x")
    with pytest.raises(ValueError, match=r"Letterbox: size must be square, got \(8, 9\)"):
        few_shot_chain((8, 9), "none", "letterbox")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "resize_crop"}, "short_sides must be given"),
        ({"name": "detr"}, "short_sides must be given"),
        ({"name": "resize_crop", "short_sides": (5,)}, "crop must be given"),
        ({"name": "cutmix", "short_sides": (5,)}, "name must be one of none, flip"),
        ({"name": "mm_former"}, "name must be one of none, flip"),
    ],
)
def test_universal_chains_without_their_sizes_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        universal_chain(**options)
