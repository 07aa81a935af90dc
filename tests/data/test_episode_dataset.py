"""From episode lists to tensors: labels, masks, determinism, weak annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fssops.data import folds
from fssops.data.augmentation.chains import few_shot_chain
from fssops.data.augmentation.geometry import Letterbox, Resize
from fssops.data.augmentation.scene import Scene, resized_map
from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList, EpisodeSpec
from fssops.data.errors import AnnotationError, MaskError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.normalisation import normalise
from fssops.protocols import PROTOCOLS
from fssops.structures import IGNORE, Episode, FewShotBatch


@pytest.fixture
def generated() -> FewShotSource:
    return open_data("generated", size=48, images_per_class=6, truth="few-shot")


def one_episode(source: FewShotSource, classes: tuple[int, ...], support, query, ways=(0,)) -> EpisodeList:  # type: ignore[no-untyped-def]
    spec = EpisodeSpec(classes, support, query, ways)
    names = {c: source.classes[c] for c in classes}
    return EpisodeList((spec,), len(classes), len(support[0]), len(query), None, names)


def equal(a: Episode, b: Episode) -> bool:
    tensors = ("support_images", "support_foreground", "support_background", "query_images", "query_labels", "classes")
    return all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors) and (
        (a.support_names, a.query_names, a.index) == (b.support_names, b.query_names, b.index)
    )


def test_shapes_types_and_names_follow_the_contract(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5, 9], ways=2, shots=3, queries=4, episodes=5)
    dataset = EpisodeDataset(generated, episodes, size=(40, 56))
    e = dataset[3]
    assert e.support_images.shape == (2, 3, 3, 40, 56)
    assert e.support_foreground.shape == e.support_background.shape == (2, 3, 40, 56)
    assert e.query_images.shape == (4, 3, 40, 56)
    assert e.query_labels.shape == (4, 40, 56)
    assert (e.support_images.dtype, e.query_labels.dtype) == (torch.float32, torch.int64)
    assert tuple(e.classes.tolist()) == episodes[3].classes
    assert tuple(map(tuple, e.support_names)) == episodes[3].support
    assert (tuple(e.query_names), e.index) == (episodes[3].query, 3)
    batch = FewShotBatch.stack([dataset[0], dataset[1]])
    assert batch.query_labels.shape == (2, 4, 40, 56)
    assert equal(dataset[-1], dataset[4])
    with pytest.raises(IndexError):
        dataset[5]


def test_every_support_and_query_shows_its_way(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5, 9], ways=2, shots=2, queries=2, episodes=20)
    for e, spec in zip(EpisodeDataset(generated, episodes, size=(48, 48)), episodes, strict=False):  # type: ignore[call-overload]
        assert (e.support_foreground.sum((-1, -2)) > 0).all()
        for label, way in zip(e.query_labels, spec.query_ways, strict=True):
            assert (label == way + 1).any()


def test_label_of_every_pixel_in_a_two_way_episode(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    label = np.zeros((40, 60), dtype=np.uint8)
    label[:10], label[10:20], label[20:30], label[:, 50:] = 1, 2, 3, 255
    Image.fromarray(label).save(voc_folder / "SegmentationClass" / "im00.png")
    episodes = one_episode(source, (2, 1), (("im00",), ("im03",)), ("im00",))
    e = EpisodeDataset(source, episodes, size=(40, 60))[0]
    expected = np.select([label == 255, label == 2, label == 1], [IGNORE, 1, 2], 0)
    assert (e.query_labels[0].numpy() == expected).all()
    assert (e.support_foreground[0, 0].numpy() == (label == 2)).all()
    # Background: none of the episode's classes; class 3 and, as published, the ignored pixels belong to it.
    assert (e.support_background[0, 0].numpy() == np.isin(label, [0, 3, 255])).all()
    strict = EpisodeDataset(source, episodes, size=(40, 60), ignore_in_support="neither")[0]
    assert (strict.support_background[0, 0].numpy() == np.isin(label, [0, 3])).all()
    own = EpisodeDataset(source, episodes, size=(40, 60), other_ways="background")[0]
    assert (own.support_background[0, 0].numpy() == np.isin(label, [0, 1, 3, 255])).all()
    assert (own.query_labels[0].numpy() == np.select([label == 255, label == 2], [IGNORE, 1], 0)).all()
    assert (EpisodeDataset(source, episodes, size=(8, 8)).query_truth(0)[0] == expected).all()


def test_images_are_resized_and_normalised_as_published(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    episodes = one_episode(source, (1,), (("im00",),), ("im03",))
    e = EpisodeDataset(source, episodes, size=(21, 21))[0]
    resized = source.image("im03").resize((21, 21), Image.Resampling.BILINEAR)
    assert torch.equal(e.query_images[0], normalise(np.asarray(resized)))
    plain = EpisodeDataset(source, episodes, size=(21, 21), normalise=False)[0]
    assert torch.equal(plain.query_images[0], torch.tensor(np.asarray(resized)).permute(2, 0, 1).float())


@pytest.mark.parametrize("annotation", ["mask", "scribble"])
def test_items_do_not_depend_on_the_number_of_workers(generated: FewShotSource, annotation: str) -> None:
    episodes = EpisodeList.draw(generated, [1, 5, 9], shots=2, episodes=8)
    dataset = EpisodeDataset(generated, episodes, size=(40, 40), augment="msanet_pascal", annotation=annotation, seed=5)
    alone = [dataset[i] for i in range(len(dataset))]
    for workers in (1, 2):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        assert all(equal(a, b) for a, b in zip(alone, loader, strict=True))
    assert equal(dataset[5], alone[5]), "order of access must not matter"


def test_seed_and_epoch_change_augmentation_and_nothing_else(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1], episodes=4)
    options = {"size": (32, 32), "augment": "msanet_coco"}
    first = EpisodeDataset(generated, episodes, seed=0, **options)
    before = [first[i] for i in range(4)]
    first.set_epoch(1)
    after = [first[i] for i in range(4)]
    assert not any(torch.equal(a.query_images, b.query_images) for a, b in zip(before, after, strict=True))
    assert all(a.query_names == b.query_names for a, b in zip(before, after, strict=True))
    first.set_epoch(0)
    assert all(equal(first[i], before[i]) for i in range(4))
    other = EpisodeDataset(generated, episodes, seed=1, **options)
    assert not torch.equal(other[0].query_images, before[0].query_images)


def test_every_image_of_an_episode_is_augmented_on_its_own_from_its_place(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5], ways=2, shots=2, queries=2, episodes=3)
    dataset = EpisodeDataset(generated, episodes, (32, 32), augment="msanet_coco", seed=7)
    dataset.set_epoch(3)
    episode, spec = dataset[2], episodes[2]
    images = [*episode.support_images.flatten(0, 1), *episode.query_images]
    names = [*(name for way in spec.support for name in way), *spec.query]
    for place, (image, name) in enumerate(zip(images, names, strict=True)):
        scene = Scene(np.asarray(generated.image(name)), {"label": generated.label_map(name, spec.classes)})
        expected = few_shot_chain((32, 32), "msanet_coco")(scene, np.random.default_rng([7, 3, 2, place]))
        assert torch.equal(image, normalise(expected.image)), "as in runs made before"


@pytest.mark.parametrize(("options", "tries"), [({"least_query": 9}, [1, 1, 3]), ({"least_support": 9}, [3, 3, 1])])
def test_images_are_augmented_again_while_they_keep_too_little(
    generated: FewShotSource, options: dict[str, int], tries: list[int]
) -> None:
    episodes = EpisodeList.draw(generated, [1], shots=2, episodes=1)
    generators: list[np.random.Generator] = []  # of each call; every image has one of its own

    def empty_twice(scene: Scene, rng: np.random.Generator) -> Scene:
        generators.append(rng)
        result = Resize((30, 30))(scene)
        enough = sum(rng is earlier for earlier in generators) >= 3
        return Scene(result.image, {"label": result.maps["label"] * np.uint8(enough)})

    EpisodeDataset(generated, episodes, (30, 30), augment=empty_twice, **options)[0]
    assert list(Counter(map(id, generators)).values()) == tries


def test_new_epoch_reaches_workers_that_live_on(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1], episodes=3)
    dataset = EpisodeDataset(generated, episodes, size=(32, 32), augment="msanet_coco")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(torch.stack([e.query_images for e in loader]))
    assert not torch.equal(epochs[0], epochs[1])
    dataset.set_epoch(1)
    assert torch.equal(epochs[1], torch.stack([dataset[i].query_images for i in range(3)]))


def test_box_annotation_covers_the_largest_object_and_leaves_the_others_out(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5, 9], shots=2, episodes=15)
    boxes = EpisodeDataset(generated, episodes, size=(48, 48), annotation="box")
    masks = EpisodeDataset(generated, episodes, size=(48, 48))
    doubtful = 0.0
    for i in range(15):
        box, mask = boxes[i], masks[i]
        assert torch.equal(box.query_labels, mask.query_labels)
        for fg, bg, dense in zip(
            box.support_foreground[0], box.support_background[0], mask.support_foreground[0], strict=True
        ):
            rows, columns = fg.any(1).nonzero(), fg.any(0).nonzero()
            assert fg.sum() == len(rows) * len(columns), "a filled rectangle"
            assert (fg * bg).sum() == 0
            assert (dense * bg).sum() == 0, "no object pixel is background"
            doubtful += float((1 - fg - bg).sum())
    assert doubtful > 0, "some image has two objects of its class"


def test_component_boxes_mark_every_object(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5], episodes=5)
    dense = EpisodeDataset(generated, episodes, size=(48, 48))[0].support_foreground
    boxed = EpisodeDataset(generated, episodes, size=(48, 48), annotation="component_boxes")[0]
    assert (boxed.support_foreground >= dense).all()
    assert boxed.support_foreground.sum() > dense.sum()
    assert torch.equal(boxed.support_background, 1 - boxed.support_foreground)


def test_scribbles_lie_on_the_object_and_on_the_background(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1, 5, 9], episodes=10)
    dense = EpisodeDataset(generated, episodes, size=(96, 96))
    drawn = EpisodeDataset(generated, episodes, size=(96, 96), annotation="scribble")
    for i in range(10):
        a, b = dense[i], drawn[i]
        assert ((b.support_foreground == 1) <= (a.support_foreground == 1)).all()
        assert 0 < b.support_foreground.sum() < 0.3 * a.support_foreground.sum()
        assert 0 < b.support_background.sum() < 0.1 * a.support_background.sum()


def test_padding_and_ignored_pixels_are_background_of_a_box_only_where_they_are_of_masks(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")  # 255 in the last column
    episodes = one_episode(source, (1,), (("im00",),), ("im03",))
    options = {"annotation": "box", "geometry": "letterbox"}
    published = EpisodeDataset(source, episodes, (60, 60), **options)[0]
    ours = EpisodeDataset(source, episodes, (60, 60), ignore_in_support="neither", **options)[0]
    assert torch.equal(published.support_foreground, ours.support_foreground)
    assert (published.support_background[0, 0] == 1 - published.support_foreground[0, 0]).all()
    label = source.label_map("im00")
    inside = Letterbox((60, 60))(Scene(np.asarray(source.image("im00")), {"label": label})).maps["label"]
    assert (inside == IGNORE).sum() > 60 * 16
    assert (ours.support_background[0, 0].numpy() == np.isin(inside, [0, 7])).all()


def test_stored_scribbles_are_resized_to_the_nearest_pixel_as_published(voc_folder: Path) -> None:
    strokes = np.full((40, 60), 255, dtype=np.uint8)
    strokes[0:4], strokes[14:20], strokes[24:28] = 0, 3, 9
    (voc_folder / "ScribbleAugAuto").mkdir()
    Image.fromarray(strokes).save(voc_folder / "ScribbleAugAuto" / "im00.png")
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    episodes = one_episode(source, (1,), (("im00",),), ("im03",))
    e = EpisodeDataset(source, episodes, size=(20, 30), annotation="scribble")[0]
    small = resized_map(strokes, (20, 30), "centres")
    dense = resized_map(source.label_map("im00", [1]), (20, 30), "centres") == 1
    assert (e.support_background[0, 0].numpy() == (small == 0)).all()
    options = [(dense & (small == n)) for n in (3, 9)]
    assert any((e.support_foreground[0, 0].numpy() == o).all() for o in options)


@pytest.mark.parametrize("annotation", ["mask", "box", "component_boxes", "scribble"])
def test_object_lost_by_resizing_gives_an_empty_mask_or_an_error(voc_folder: Path, annotation: str) -> None:
    label = np.zeros((40, 60), dtype=np.uint8)
    label[0, 0] = 1
    Image.fromarray(label).save(voc_folder / "SegmentationClass" / "im00.png")
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    episodes = one_episode(source, (1,), (("im00",),), ("im03",))
    e = EpisodeDataset(source, episodes, size=(8, 8), annotation=annotation)[0]
    assert e.support_foreground.sum() == 0
    assert torch.isfinite(e.support_background).all()
    assert e.support_background.sum() > 0
    strict = EpisodeDataset(source, episodes, size=(8, 8), annotation=annotation, empty_support="error")
    with pytest.raises(MaskError, match=r"im00: support must show class 'aeroplane' \(1\) at \(8, 8\), got no pixel"):
        strict[0]


def test_padding_is_ignored_in_queries_and_not_background_under_the_msanet_protocol(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    episodes = one_episode(source, (1,), (("im00",),), ("im03",))
    rules = PROTOCOLS["msanet"].dataset_options()
    e = EpisodeDataset(source, episodes, size=(64, 64), **rules)[0]
    # 60 x 40 becomes 64 x 40: 42 floored to a multiple of 8.
    assert (e.query_labels[0, 40:] == IGNORE).all()
    assert (e.query_labels[0, :40, :60] != IGNORE).all()
    assert e.support_background[0, 0, 40:].sum() == 0
    assert e.support_foreground[0, 0, 40:].sum() == 0


def test_a_transform_of_ones_own_is_checked(generated: FewShotSource) -> None:
    episodes = EpisodeList.draw(generated, [1], episodes=1)
    right = EpisodeDataset(generated, episodes, size=(30, 30), augment=Resize((30, 30)))
    assert right[0].query_images.shape == (1, 3, 30, 30)
    wrong = EpisodeDataset(generated, episodes, size=(30, 30), augment=Resize((30, 31)))
    with pytest.raises(MaskError, match=r"must give images and labels of \(30, 30\), got \(30, 31\)"):
        wrong[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotation": "point"}, "annotation must be one of mask, box, component_boxes, scribble, got 'point'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"ignore_in_support": "x"}, "ignore_in_support must be one of background, neither, got 'x'"),
        ({"other_ways": "x"}, "other_ways must be one of label, background, got 'x'"),
        ({"size": (0, 3)}, r"size must be two positive integers .* got \(0, 3\)"),
        ({"augment": "x"}, "augment must be one of"),
        ({"geometry": "x"}, "geometry must be one of square, square_by_corners, letterbox"),
    ],
)
def test_bad_option_is_an_error(generated: FewShotSource, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeDataset(generated, EpisodeList.draw(generated, [1], episodes=1), **options)


def test_list_of_another_data_set_is_refused(generated: FewShotSource, voc_folder: Path) -> None:
    episodes = EpisodeList.draw(generated, [1], episodes=1)
    with pytest.raises(AnnotationError, match="got none named"):
        EpisodeDataset(open_data("voc", voc_folder, truth="few-shot"), episodes)


def test_panet_coco_protocol_shows_only_the_class_an_image_was_drawn_for(coco_folder: Callable[..., Path]) -> None:
    def box(x: int) -> list[list[int]]:
        return [[x, 5, x + 10, 5, x + 10, 25, x, 25]]

    things = [
        {"image_id": i, "category_id": c, "segmentation": box(x)} for i in (1, 2, 3) for c, x in ((1, 5), (4, 30))
    ]
    protocol = PROTOCOLS["panet_coco"]
    source = open_data("coco", coco_folder(things), split="train", crowd=protocol.crowd, truth="few-shot")
    episodes = one_episode(source, (1, 2), ((source.names[0],), (source.names[1],)), (source.names[2],), (1,))
    e = EpisodeDataset(source, episodes, size=(40, 60), **protocol.dataset_options())[0]
    assert sorted(e.query_labels.unique().tolist()) == [0, 2]
    assert (e.support_background[0, 0] == 1 - e.support_foreground[0, 0]).all()
    both = EpisodeDataset(source, episodes, size=(40, 60))[0]
    assert sorted(both.query_labels.unique().tolist()) == [0, 1, 2]
    assert (both.support_background[0, 0] + both.support_foreground[0, 0]).sum() == 40 * 60 - 200


def test_fold_lists_of_the_generated_data_never_show_a_novel_class_in_training(
    generated: FewShotSource,
) -> None:
    fold = folds.by_name("generated", 2, classes=list(generated.classes))
    with_avoid = EpisodeList.draw(generated, fold.train, episodes=50, avoid=fold.test)
    assert with_avoid.episodes == EpisodeList.draw(generated, fold.train, episodes=50).episodes
    novel = set(fold.test)
    assert all(novel.isdisjoint(generated.classes_of(name)) for name in with_avoid.names())
