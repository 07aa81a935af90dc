"""The published augmentations: their sizes, their draws, their rounding, and image and truth staying together."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from fssops.data.layouts import open_data
from fssops.data.source import ImageSource
from fssops.data.universal.colour import ColourJitter, hsv_to_rgb, rgb_to_hsv
from fssops.data.universal.dataset import EvaluationDataset, TrainingDataset, UniversalItem
from fssops.data.universal.geometry import (
    IMAGE_FILL,
    LargeScaleJitter,
    RandomCrop,
    RandomRangeCrop,
    ResizeShortestEdge,
    Scene,
    cropped,
    flipped,
    padded,
    resized,
    shortest_edge_size,
)
from fssops.data.universal.pipelines import pipeline
from fssops.structures import ImageBatch
from fssops.truth import Classes, ObjectTruth, Segment, Truth, TruthKind


def scene(height: int = 30, width: int = 50) -> Scene:
    """Everything at once: a rectangle of class 1 as labels, ids, mask and polygon; the image shows it in white."""
    label = np.zeros((height, width), dtype=np.uint8)
    label[10:20, 15:35] = 1
    image = np.repeat((255 * label)[..., None], 3, axis=2)
    corners = np.array([[15.0, 10.0], [35.0, 10.0], [35.0, 20.0], [15.0, 20.0]])
    ids = np.where(label == 1, 7, 3).astype(np.int32)
    return Scene(image, label, ids, [Segment(7, 1), Segment(3, 0)], [[corners], label == 1], [1, 1])


def masks_of(found: Scene) -> list[np.ndarray]:
    from fssops.truth import draw

    assert found.label_map is not None
    assert found.segment_ids is not None
    return [found.label_map == 1, found.segment_ids == 7, *(draw(o, *found.size) for o in found.outlines)]


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        lambda s: cropped(s, 5, 12, 12, 15),
        lambda s: padded(s, 40, 60),
        lambda s: resized(s, (60, 100)),
        lambda s: cropped(flipped(resized(s, (60, 100))), 0, 30, 60, 60),
    ],
)
def test_image_and_all_forms_of_truth_move_together(change) -> None:  # type: ignore[no-untyped-def]
    found = change(scene())
    white = found.image[..., 0] > 127
    known = found.image[..., 0] != IMAGE_FILL
    for mask in masks_of(found):
        # Resizing makes soft edges; everything else is exact.
        wrong = ((mask != white) & known).sum()
        assert wrong <= (0.02 * white.size if found.size[0] == 60 else 0)


def test_padding_fills_as_published() -> None:
    found = padded(scene(), 33, 52)
    assert found.size == (33, 52)
    assert found.image[-1, -1].tolist() == [128, 128, 128]
    assert found.label_map is not None
    assert found.segment_ids is not None
    assert (found.label_map[-1, -1], found.segment_ids[-1, -1], bool(masks_of(found)[3][-1, -1])) == (255, 0, False)
    same = scene()
    assert padded(same, 10, 10) is same


def test_labels_take_the_nearest_corner_and_ids_the_nearest_centre() -> None:
    for old, new in ((7, 4), (7, 11), (480, 370), (333, 468)):
        values = np.repeat(np.arange(old, dtype=np.int32)[:, None], 3, axis=1)
        found = resized(Scene(np.zeros((old, 3, 3), dtype=np.uint8), values, values), (new, 3))
        assert found.label_map is not None
        assert found.segment_ids is not None
        published = torch.nn.functional.interpolate(torch.from_numpy(values).double()[None, None], size=(new, 3))
        assert np.array_equal(found.label_map, published[0, 0].numpy())
        assert np.array_equal(found.segment_ids[:, 0], np.floor((np.arange(new) + 0.5) * old / new))


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1000, (667, 1000)),
        ((360, 480), 256, 2048, (256, 341)),
        ((100, 100), 512, 2048, (512, 512)),
        ((6000, 1), 512, 1333, (1333, 1)),  # a ruler: less than half a pixel is one
    ],
)
def test_short_side_sizes(size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]) -> None:
    assert shortest_edge_size(size, short, longest) == expected


def test_short_sides_are_all_drawn() -> None:
    rng = np.random.default_rng(0)
    step = ResizeShortestEdge((20, 30, 45), 1000)
    assert {step(scene(), rng).size[0] for _ in range(40)} == {20, 30, 45}


def test_large_scale_jitter_scales_crops_and_pads_to_one_size() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        found = LargeScaleJitter(64)(scene(), rng)
        assert found.size == (64, 64)
        shares.append(float((found.image[..., 0] == IMAGE_FILL).mean()))
    assert max(shares) > 0.9  # factor near 0.1: almost all padding
    assert min(shares) < 0.05  # factor near 2: no padding


def test_large_scale_jitter_places_both_axes_by_one_number() -> None:
    class Recorder:
        """A generator that gives what it is told and counts."""

        def __init__(self, *values: float) -> None:
            self.values = list(values)

        def uniform(self, low: float, high: float) -> float:
            return low + (high - low) * self.values.pop(0)

    rng = Recorder(1.0, 0.5)  # factor 2, middle
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    found = LargeScaleJitter(50)(Scene(image, segment_ids=np.arange(2400, dtype=np.int32).reshape(40, 60)), rng)  # type: ignore[arg-type]
    # 40 x 60 fits into 100 x 100 at 5 / 3: 67 x 100; offsets round(17 * .5) = 8 and round(50 * .5) = 25.
    assert found.segment_ids is not None
    row, column = divmod(int(found.segment_ids[0, 0]), 60)
    assert (row, column) == (int(8.5 * 40 / 67), int(25.5 * 60 / 100))
    assert rng.values == []


def test_crop_is_the_whole_side_of_small_images() -> None:
    found = RandomCrop((100, 20))(scene(), np.random.default_rng(0))
    assert found.size == (30, 20)


def test_limit_on_one_class_draws_again_until_two_are_balanced() -> None:
    rng = np.random.default_rng(0)
    step = RandomCrop((10, 10), category_share=0.75)
    hits = 0
    for _ in range(50):
        found = step(scene(), rng)
        assert found.label_map is not None
        share = np.bincount(found.label_map.ravel(), minlength=2).max() / 100
        hits += share < 0.75
    free = [RandomCrop((10, 10))(scene(), rng).label_map for _ in range(50)]
    assert hits > sum(np.bincount(m.ravel(), minlength=2).max() < 75 for m in free if m is not None)
    assert hits > 25


def test_range_crop_lies_between_its_limits() -> None:
    rng = np.random.default_rng(0)
    sizes = [RandomRangeCrop(20, 40)(scene(), rng).size for _ in range(50)]
    assert {h for h, _ in sizes} == set(range(20, 31))
    assert min(w for _, w in sizes) >= 20
    assert max(w for _, w in sizes) <= 40


def test_hsv_is_that_of_the_textbook_to_rounding_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    hsv = rgb_to_hsv(image)
    for y, x in rng.integers(0, 20, (40, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255.0))
        assert abs(int(hsv[y, x, 0]) - 180 * hue) % 180 <= 0.6
        assert abs(int(hsv[y, x, 1]) - 255 * saturation) <= 0.6
        assert int(hsv[y, x, 2]) == round(255 * value)
    assert np.abs(hsv_to_rgb(hsv).astype(int) - image).max() <= 5  # 180 hues are few
    grey = np.full((2, 2, 3), 77, dtype=np.uint8)
    assert rgb_to_hsv(grey)[0, 0].tolist() == [0, 0, 77]
    assert np.array_equal(hsv_to_rgb(rgb_to_hsv(grey)), grey)


def test_every_hue_is_made_of_the_four_tones_to_the_last_bit() -> None:
    """The formula as OpenCV writes it: v, v (1 - s), v (1 - s f) and v (1 - s (1 - f)) in an order of each sixth."""
    sectors = ["vtp", "qvp", "pvt", "pqv", "tpv", "vpq"]
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    hsv = np.stack(np.meshgrid(np.arange(180, dtype=np.uint8), levels, levels, indexing="ij"), axis=-1)
    one, unit = np.float32(1), np.float32(1.0 / 255.0)
    s, v = (hsv[0, ..., c].astype(np.float32) * unit for c in (1, 2))
    for hue, found in enumerate(hsv_to_rgb(hsv)):
        sixths = np.float32(hue) * np.float32(6.0 / 180.0)
        f = sixths - np.floor(sixths)
        tones = {"v": v, "p": v * (one - s), "q": v * (one - s * f), "t": v * (one - s * (one - f))}
        wanted = np.stack([np.rint(tones[tone] * np.float32(255)) for tone in sectors[int(sixths)]], axis=-1)
        assert np.array_equal(found, wanted), hue


def test_colour_jitter_truncates_to_bytes_and_leaves_truth_alone() -> None:
    image = np.full((4, 4, 3), 100, dtype=np.uint8)
    image[0] = 250
    found = [ColourJitter()(Scene(image, label_map=np.zeros((4, 4))), np.random.default_rng(s)) for s in range(40)]
    assert sum(np.array_equal(f.image, image) for f in found) < 20
    assert all(f.image.dtype == np.uint8 and f.label_map is not None and not f.label_map.any() for f in found)
    only_bright = ColourJitter(contrast=(1, 1), saturation=(1, 1), hue=0)
    seen = {int(only_bright(Scene(image), np.random.default_rng(s)).image[1, 0, 0]) for s in range(60)}
    assert min(seen) >= 68
    assert max(seen) <= 131
    assert len(seen) > 10


class OneImage(ImageSource):
    """A source with one image and the truth it is given."""

    format = "one"

    def __init__(self, truth: Truth, kind: TruthKind) -> None:
        super().__init__(kind, "train", Classes.from_names(["a", "b"], [1]), ["x"])
        self.given = truth

    def image(self, name: str):  # type: ignore[no-untyped-def]
        from PIL import Image

        return Image.fromarray(scene().image)

    def truth(self, name: str) -> Truth:
        return self.given


def test_targets_of_each_kind() -> None:
    one = scene()
    label = one.label_map
    assert label is not None
    label[0] = 255
    semantic = TrainingDataset(OneImage(Truth(30, 50, label_map=label), "semantic"), "semantic", lambda s, _: s)[0]
    assert semantic.target is not None
    assert semantic.target.labels.tolist() == [0, 1]
    assert semantic.target.masks.sum((1, 2)).tolist() == [30 * 50 - 200 - 50, 200]
    crowd = [Segment(7, 1, crowd=True), Segment(3, 0)]
    truth = Truth(30, 50, segment_ids=one.segment_ids, segments=crowd)
    panoptic = TrainingDataset(OneImage(truth, "panoptic"), "panoptic", lambda s, _: s)[0]
    assert panoptic.target is not None
    assert panoptic.target.labels.tolist() == [0]


def test_objects_that_leave_the_crop_are_dropped_or_kept_empty() -> None:
    outline = [np.array([[0.0, 0.0], [5.0, 0.0], [5.0, 5.0]])]
    truth = Truth(30, 50, objects=[ObjectTruth(1, 1, outline), ObjectTruth(2, 1, outline, crowd=True)])

    def away(s: Scene, rng: np.random.Generator) -> Scene:
        return cropped(s, 20, 20, 10, 10)

    for keep_empty, count in ((False, 0), (True, 1)):
        dataset = TrainingDataset(OneImage(truth, "instance"), "instance", away, keep_empty=keep_empty)
        target = dataset[0].target
        assert target is not None
        assert target.masks.shape == (count, 10, 10)
        assert not target.masks.any()


def test_items_follow_from_the_generator_alone() -> None:
    source = open_data("generated", images=3, size=48, truth="panoptic")
    chain = pipeline("resize_crop", short_sides=(40, 60), crop=(32, 32))
    dataset = TrainingDataset(source, "panoptic", chain)
    first, again, other = (dataset.draw(1, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    batch = UniversalItem.stack([first, other])
    assert isinstance(batch, ImageBatch)
    assert batch.output_sizes == [(48, 48), (48, 48)]
    assert [t.masks.shape[1:] for t in batch.targets or []] == [(32, 32), (32, 32)]


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_generated_scenes_have_every_kind_of_truth(kind: TruthKind) -> None:
    source = open_data("generated", images=20, size=64, truth="panoptic")
    dataset = TrainingDataset(source, kind, pipeline("flip"))
    seen = set()
    for index in range(20):
        target = dataset[index].target
        assert target is not None
        assert target.masks.any((1, 2)).all() if len(target.masks) else kind == "instance"
        seen |= set(target.labels.tolist())
    assert seen == ({3, 4, 5, 6, 7} if kind == "instance" else set(range(8)))


def test_generated_scenes_are_the_same_everywhere_and_differ_by_split() -> None:
    first, again = (open_data("generated", images=2, size=32, truth="panoptic") for _ in range(2))
    assert np.array_equal(np.asarray(first.image("train-00001")), np.asarray(again.image("train-00001")))
    other = open_data("generated", split="val", images=2, size=32, truth="panoptic")
    assert not np.array_equal(np.asarray(first.image("train-00001")), np.asarray(other.image("val-00001")))


def test_test_images_are_resized_and_remember_their_size() -> None:
    item = EvaluationDataset(open_data("generated", images=1, size=48, truth="panoptic"), 32)[0]
    assert item.image.shape == (3, 32, 32)
    assert (item.output_size, item.target) == ((48, 48), None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "resize_crop"}, "short_sides must be given"),
        ({"name": "resize_crop", "short_sides": (5,)}, "crop must be given"),
        ({"name": "cutmix", "short_sides": (5,)}, "name must be none, flip"),
    ],
)
def test_pipelines_without_their_sizes_are_refused(options, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=told):
        pipeline(**options)


def test_kind_that_the_data_does_not_have_is_refused() -> None:
    source = OneImage(Truth(30, 50, label_map=scene().label_map), "semantic")
    with pytest.raises(ValueError, match="kind must be semantic, got panoptic"):
        TrainingDataset(source, "panoptic", pipeline("flip"))
    other = OneImage(Truth(30, 40, label_map=np.zeros((30, 40), dtype=np.uint8)), "semantic")
    with pytest.raises(ValueError, match="image x must have the size of its annotation, 40 x 30, got 50 x 30"):
        TrainingDataset(other, "semantic", pipeline("flip"))[0]
