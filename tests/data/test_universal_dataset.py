"""Images of universal systems with their targets: each kind of truth, objects that augmentation loses, and testing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssops.data.augmentation.chains import universal_chain
from fssops.data.augmentation.scene import Scene, cropped, flipped
from fssops.data.datasets.universal import TrainingDataset, UniversalItem, target_at
from fssops.data.layouts import open_data
from fssops.data.preparation import UniversalPreparation
from fssops.data.source import ImageSource
from fssops.structures import ImageBatch
from fssops.truth import Classes, ObjectTruth, Segment, Truth, TruthKind

LABEL = np.zeros((30, 50), dtype=np.uint8)
LABEL[10:20, 15:35] = 1
IDS = np.where(LABEL == 1, 7, 3).astype(np.int32)


class OneImage(ImageSource):
    """A source with one image and the truth it is given."""

    format = "one"

    def __init__(self, truth: Truth, kind: TruthKind) -> None:
        super().__init__(kind, "train", Classes.from_names(["a", "b"], [1]), ["x"])
        self.given = truth

    def image(self, name: str):  # type: ignore[no-untyped-def]
        from PIL import Image

        return Image.fromarray(np.repeat((255 * LABEL)[..., None], 3, axis=2))

    def truth(self, name: str) -> Truth:
        return self.given


def test_targets_of_each_kind() -> None:
    label = LABEL.copy()
    label[0] = 255
    semantic = TrainingDataset(OneImage(Truth(30, 50, label_map=label), "semantic"), "semantic", lambda s, _: s)[0]
    assert semantic.target is not None
    assert semantic.target.labels.tolist() == [0, 1]
    assert semantic.target.masks.sum((1, 2)).tolist() == [30 * 50 - 200 - 50, 200]
    crowd = [Segment(7, 1, crowd=True), Segment(3, 0)]
    truth = Truth(30, 50, segment_ids=IDS, segments=crowd)
    panoptic = TrainingDataset(OneImage(truth, "panoptic"), "panoptic", lambda s, _: s)[0]
    assert panoptic.target is not None
    assert panoptic.target.labels.tolist() == [0]


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_label_maps_come_along_where_they_are_asked_for(kind: TruthKind) -> None:
    source = OneImage(Truth(30, 50, label_map=LABEL, segment_ids=IDS, segments=[Segment(7, 1), Segment(3, 0)]), kind)
    plain, mapped = (
        TrainingDataset(source, kind, lambda s, _: flipped(s), label_maps=asked)[0].target for asked in (False, True)
    )
    assert plain is not None
    assert mapped is not None
    assert mapped.label_map is not None
    assert plain.label_map is None
    assert mapped.label_map.dtype == torch.int64
    assert np.array_equal(mapped.label_map.numpy(), LABEL[:, ::-1])


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
    source = open_data("generated", images=3, size=48, truth="semantic")
    chain = universal_chain("resize_crop", short_sides=(40, 60), crop=(32, 32))
    dataset = TrainingDataset(source, "panoptic", chain)
    first, again, other = (dataset.draw(1, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    seed = int(torch.randint(1 << 62, (), generator=torch.Generator().manual_seed(5)))
    assert torch.equal(first.image, dataset.item(1, np.random.default_rng(seed)).image), "as in runs made before"
    assert torch.equal(dataset[2].image, dataset.item(2, np.random.default_rng(2)).image)
    for index in (-1, 3):
        with pytest.raises(IndexError, match="index must be below 3"):
            dataset[index]
    batch = UniversalItem.stack([first, other])
    assert isinstance(batch, ImageBatch)
    assert batch.output_sizes == [(48, 48), (48, 48)]
    assert [t.masks.shape[1:] for t in batch.targets or []] == [(32, 32), (32, 32)]


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_generated_scenes_have_every_kind_of_truth(kind: TruthKind) -> None:
    source = open_data("generated", images=20, size=64, truth="semantic")
    dataset = TrainingDataset(source, kind, universal_chain("flip"))
    seen = set()
    for index in range(20):
        target = dataset[index].target
        assert target is not None
        assert target.masks.any((1, 2)).all() if len(target.masks) else kind == "instance"
        seen |= set(target.labels.tolist())
    assert seen == ({3, 4, 5, 6, 7} if kind == "instance" else set(range(8)))


def test_generated_scenes_are_the_same_everywhere_and_differ_by_split() -> None:
    first, again = (open_data("generated", images=2, size=32, truth="semantic") for _ in range(2))
    assert np.array_equal(np.asarray(first.image("train-00001")), np.asarray(again.image("train-00001")))
    other = open_data("generated", split="val", images=2, size=32, truth="semantic")
    assert not np.array_equal(np.asarray(first.image("train-00001")), np.asarray(other.image("val-00001")))


def test_test_images_are_resized_and_remember_their_size() -> None:
    source = open_data("generated", images=1, size=48, truth="semantic")
    item = UniversalPreparation(32)(np.asarray(source.image(source.names[0])))
    assert item.image.shape == (3, 32, 32)
    assert (item.output_size, item.target) == ((48, 48), None)


def test_kind_that_the_data_does_not_have_is_refused() -> None:
    source = OneImage(Truth(30, 50, label_map=LABEL), "semantic")
    with pytest.raises(ValueError, match="kind must be semantic, got panoptic"):
        TrainingDataset(source, "panoptic", universal_chain("flip"))
    other = OneImage(Truth(30, 40, label_map=np.zeros((30, 40), dtype=np.uint8)), "semantic")
    with pytest.raises(ValueError, match="image x must have the size of its annotation, 40 x 30, got 50 x 30"):
        TrainingDataset(other, "semantic", universal_chain("flip"))[0]


def sky_and_things() -> Truth:
    """Sky above, one thing and a crowd below; a stripe is void."""
    ids = np.zeros((8, 12), dtype=np.int32)
    ids[:4], ids[4:, :4], ids[4:, 4:8] = 1, 2, 3
    return Truth(8, 12, segment_ids=ids, segments=[Segment(1, 0), Segment(2, 5), Segment(3, 5, crowd=True)])


@pytest.mark.parametrize(
    ("kind", "labels", "areas"),
    [("panoptic", [0, 5], [48, 16]), ("semantic", [0, 5], [48, 32]), ("instance", [5], [16])],
)
def test_each_kind_has_its_masks(kind: TruthKind, labels: list[int], areas: list[int]) -> None:
    found = target_at(sky_and_things(), kind, (8, 12), [5])
    assert found.labels.tolist() == labels
    assert found.masks.flatten(1).sum(1).tolist() == areas
    assert found.masks.dtype == torch.bool


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instance"])
def test_masks_follow_the_size_of_the_image(kind: TruthKind) -> None:
    own = target_at(sky_and_things(), kind, (8, 12), [5])
    double = target_at(sky_and_things(), kind, (16, 24), [5])
    assert torch.equal(double.masks, own.masks.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_polygons_are_drawn_at_the_size_and_the_truth_stays_as_it_is() -> None:
    square = [np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])]
    known = Truth(8, 12, objects=[ObjectTruth(1, 3, square), ObjectTruth(2, 4, square, crowd=True)])
    found = target_at(known, "instance", (16, 24), [3, 4])
    assert found.labels.tolist() == [3]
    assert int(found.masks.sum()) == 64
    assert known.objects is not None
    assert len(known.objects) == 2
    ids = sky_and_things()
    target_at(ids, "instance", (8, 12), [5])
    assert ids.objects is None
