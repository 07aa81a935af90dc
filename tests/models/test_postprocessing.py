"""The inferences, on maps whose answer is known by hand."""

from __future__ import annotations

import torch
from universal_toys import small_batch, small_model

from fssops.models.universal import postprocessing
from fssops.models.universal.augmented_inference import augmented_semantic, resized_to_short_side
from fssops.structures import ImageBatch


def class_logits(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is the given rows."""
    return torch.tensor(rows).clamp(min=1e-9).log()


def half_planes() -> torch.Tensor:
    """Three masks [4, 4]: left half, right half, everything, with logits +-4 and a weak 0.5."""
    masks = torch.full((3, 4, 4), -4.0)
    masks[0, :, :2] = 4
    masks[1, :, 2:] = 4
    masks[2] = 0.5
    return masks


def test_semantic_scores_sum_over_queries() -> None:
    scores = postprocessing.semantic_scores(class_logits([0.5, 0.25, 0.25], [0.0, 0.5, 0.5]), torch.zeros(2, 1, 1))
    torch.testing.assert_close(scores.flatten(), torch.tensor([0.25, 0.375]))


def test_panoptic_keeps_things_apart_and_merges_stuff() -> None:
    scores, labels = torch.tensor([0.9, 0.9]), torch.tensor([1, 1])
    masks = half_planes()[:2]
    apart = postprocessing.panoptic_map(scores, labels, masks, things={1}, overlap_threshold=0.8, cut_at_half=True)
    assert [s.id for s in apart.segments] == [1, 2]
    assert apart.segment_ids.tolist() == [[1, 1, 2, 2]] * 4
    merged = postprocessing.panoptic_map(scores, labels, masks, things=set(), overlap_threshold=0.8, cut_at_half=True)
    assert [(s.id, s.label, s.is_thing) for s in merged.segments] == [(1, 1, False)]
    assert merged.segment_ids.tolist() == [[1] * 4] * 4


def test_a_mask_that_lost_too_much_is_dropped() -> None:
    """The third mask covers everything and wins nothing but what is left: with two others, no pixel."""
    scores, labels = torch.tensor([0.9, 0.9, 0.5]), torch.tensor([0, 1, 2])
    found = postprocessing.panoptic_map(
        scores, labels, half_planes(), things={0, 1, 2}, overlap_threshold=0.8, cut_at_half=True
    )
    assert [s.label for s in found.segments] == [0, 1]
    without_right = postprocessing.panoptic_map(
        scores[[0, 2]], labels[[0, 2]], half_planes()[[0, 2]], things={0, 2}, overlap_threshold=0.8, cut_at_half=True
    )
    assert [s.label for s in without_right.segments] == [0]
    assert without_right.segment_ids.tolist() == [[1, 1, 0, 0]] * 4


def test_only_mask2former_cuts_segments_at_one_half() -> None:
    masks = torch.tensor([[[3.0, 3.0, 3.0, -1.0]]])
    given = {"things": {0}, "overlap_threshold": 0.5}
    scores, labels = torch.tensor([0.9]), torch.tensor([0])
    cut = postprocessing.panoptic_map(scores, labels, masks, cut_at_half=True, **given)
    whole = postprocessing.panoptic_map(scores, labels, masks, cut_at_half=False, **given)
    assert cut.segment_ids.tolist() == [[1, 1, 1, 0]]
    assert whole.segment_ids.tolist() == [[1, 1, 1, 1]]


def test_nothing_confident_gives_an_empty_panoptic_map() -> None:
    kept, scores, labels = postprocessing.confident_queries(class_logits([0.2, 0.8], [0.4, 0.6]), 0.5)
    assert len(kept) == 0
    found = postprocessing.panoptic_map(
        scores, labels, torch.zeros(0, 2, 3), things=set(), overlap_threshold=0.8, cut_at_half=True
    )
    assert found.segments == []
    assert found.segment_ids.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_instances_weigh_the_class_by_the_mask() -> None:
    masks = torch.tensor([[[2.0, -1.0]], [[0.0, -5.0]]])
    found = postprocessing.instances(torch.tensor([0.5, 0.9]), torch.tensor([3, 4]), masks, torch.tensor([0, 1]))
    assert found.labels.tolist() == [3, 4]
    torch.testing.assert_close(found.scores, torch.tensor([0.5 * torch.tensor(2.0).sigmoid().item(), 0.0]))
    assert found.masks.flatten(1).tolist() == [[True, False], [False, False]]


def test_best_instances_leave_no_object_aside_and_filter_after_the_choice() -> None:
    logits = class_logits([0.6, 0.1, 0.3], [0.2, 0.3, 0.5])
    queries, scores, labels = postprocessing.best_instances(logits, 2)
    assert queries.tolist() == [0, 1]
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.3]))
    assert postprocessing.best_instances(logits, 2, classes={1})[0].tolist() == [1]
    assert len(postprocessing.best_instances(logits, 100)[0]) == 4


def test_general_inference_assigns_each_pixel_to_one_query() -> None:
    found = postprocessing.general_label_map(torch.tensor([0.9, 0.8]), torch.tensor([7, 2]), half_planes()[:2])
    assert found.tolist() == [[7, 7, 2, 2]] * 4
    none = postprocessing.general_label_map(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, 2))
    assert none.tolist() == [[-1, -1], [-1, -1]]


def test_results_have_the_sizes_asked_for_and_agree_with_a_lone_image() -> None:
    model = small_model(
        "mask2former", tasks=("semantic", "instance", "panoptic", "general"), object_threshold=0.1
    ).eval()
    batch = small_batch()
    batch.output_sizes = [(30, 44), (61, 40)]
    for size, result in zip(batch.output_sizes, model.segment(batch), strict=True):
        assert tuple(result.semantic.scores.shape) == (5, *size)
        assert tuple(result.instance.masks.shape[1:]) == size
        assert tuple(result.panoptic.segment_ids.shape) == size
        assert tuple(result.general.shape) == size


def test_masks_formed_for_few_queries_equal_those_formed_for_all() -> None:
    """Panoptic alone forms the kept queries' masks; with semantic beside it, all."""
    model = small_model("mask2former", object_threshold=0.15, overlap_threshold=0.1).eval()
    alone = model.segment(small_batch(), ("panoptic", "instance"))
    beside = model.segment(small_batch(), ("semantic", "panoptic", "instance"))
    for a, b in zip(alone, beside, strict=True):
        assert torch.equal(a.panoptic.segment_ids, b.panoptic.segment_ids)
        assert a.panoptic.segments == b.panoptic.segments
        assert torch.equal(a.instance.masks, b.instance.masks)


def test_semantic_maps_alone_are_resized_as_probabilities() -> None:
    """Published: without panoptic or instance output the sum over queries is taken at the padded size."""
    batch = small_batch()
    batch.output_sizes = [(20, 20), (20, 20)]
    before = small_model("mask2former").eval()
    after = small_model("mask2former", resize_before_inference=True).eval()
    after.load_state_dict(before.state_dict())
    first, second = before.segment(batch)[0].semantic, after.segment(batch)[0].semantic
    assert not torch.equal(first.scores, second.scores)
    torch.testing.assert_close(first.scores, second.scores, atol=0.2, rtol=0)


def test_augmentation_averages_sizes_and_flips() -> None:
    model = small_model("maskformer").eval()
    image = small_batch().images[0].float()
    found = augmented_semantic(model, image, (48, 70), short_sides=(48,), long_side=400, flip=True)
    plain = model.segment(ImageBatch([image]))[0].semantic.scores
    mirrored = model.segment(ImageBatch([image.flip(2)]))[0].semantic.scores.flip(2)
    torch.testing.assert_close(found.scores, (plain + mirrored) / 2)


def test_resizing_keeps_the_long_side_below_its_limit() -> None:
    image = torch.zeros(3, 30, 100)
    assert tuple(resized_to_short_side(image, 60, 1000).shape) == (3, 60, 200)
    assert tuple(resized_to_short_side(image, 60, 150).shape) == (3, 45, 150)
