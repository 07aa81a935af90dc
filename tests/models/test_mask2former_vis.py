"""Mask2Former for video: the authors' case, the label of absent objects, long videos in clips, and bad input."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from authors_layout import to_authors
from torch import Tensor
from universal_toys import SMALL, small_model

import fssops
from fssops.losses.point_sources import RandomPoints
from fssops.models.clip_joining import ClipJoiner, soft_overlap
from fssops.models.layers.position_encoding import PositionEncodingCache
from fssops.models.mask2former_vis import Mask2FormerVIS, Mask2FormerVISConfig
from fssops.models.pixel_decoders.features import PixelFeatures
from fssops.structures import ImageBatch, MaskTargets, move_to
from fssops.tasks.universal import unpack_batch
from fssops.weights.layouts.universal import MASK2FORMER
from fssops.weights.transformers_folder import to_transformers


def small_vis(**options: Any) -> Mask2FormerVIS:
    """A model of a few layers."""
    small = {**SMALL, "things": None, "encoder_layers": 1, "encoder_hidden": 32, "decoder_layers": 3}
    small |= {"decoder_hidden": 32, "train_points": 64, "detections": 4}
    return Mask2FormerVIS(Mask2FormerVISConfig(**{**small, **options}))


def clip_target(size: tuple[int, int], frames: int, labels: list[int]) -> MaskTargets:
    """Boxes that move to the right, one a label."""
    masks = torch.zeros(len(labels), frames, *size, dtype=torch.bool)
    for index in range(len(labels)):
        for frame in range(frames):
            masks[index, frame, 8 * index : 8 * index + 20, 4 * frame : 4 * frame + 16] = True
    return MaskTargets(torch.tensor(labels, dtype=torch.int64), masks)


def small_clips(labels: list[list[int]] | None = None, frames: int = 3) -> ImageBatch:
    """Two clips of different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(48, 70), (61, 40)]
    clips = [torch.randint(0, 256, (frames, 3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    wanted = [[0, 3], [4]] if labels is None else labels
    targets = [clip_target(size, frames, own) for size, own in zip(sizes, wanted, strict=True)]
    return ImageBatch(clips, targets)


def video(frames: int, size: tuple[int, int] = (40, 56), seed: int = 3) -> list[Tensor]:
    """Noise that drifts: a picture [3, H, W] a frame."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randint(0, 256, (3, size[0], size[1] + 4 * frames), generator=generator, dtype=torch.uint8)
    return [wide[:, :, 4 * t : 4 * t + size[1]] for t in range(frames)]


def without_frame_positions(model: Mask2FormerVIS) -> None:
    """Give every frame of a clip the positions that an image has."""
    cache = PositionEncodingCache(model.config.channels)

    def same(size: tuple[int, int], device: torch.device, frames: int | None = None) -> Tensor:
        return cache(size, device).repeat(frames or 1, 1)

    model.transformer_decoder._positions = same  # type: ignore[assignment]


def test_every_array_of_the_authors_case_is_reproduced(oracle_root: Path) -> None:
    """Logits and masks of all frames, attention bits, assignments, costs, losses, gradients, the ten best tracks."""
    lines = list(parity.lines_of(oracle_root / "mask2former_video_r50"))
    assert not [str(line) for line in lines if line.out]
    assert not [line.name for line in lines if line.error is None and "input" not in line.measure]
    assert sum(line.error is not None for line in lines) >= 75


def test_parameters_are_those_of_the_image_system() -> None:
    image, clips = small_model("mask2former", things=None), small_vis()
    report = fssops.load_weights(clips, image.state_dict())
    assert report.complete
    assert {k: v.shape for k, v in image.state_dict().items()} == {k: v.shape for k, v in clips.state_dict().items()}


def test_a_clip_of_one_frame_is_an_image() -> None:
    """The position of the only frame is added to all keys alike, which attention does not see."""
    image, clips = small_model("mask2former", things=None).eval(), small_vis().eval()
    clips.load_state_dict(image.state_dict())
    batch = small_clips(frames=1)
    pictures = ImageBatch([clip[0] for clip in batch.images])
    with torch.no_grad():
        torch.testing.assert_close(clips(batch).class_logits, image(pictures).class_logits)
        torch.testing.assert_close(clips(batch).mask_embeddings, image(pictures).mask_embeddings)


def test_the_order_of_frames_is_seen() -> None:
    model = small_vis().eval()
    batch = small_clips(frames=2)
    turned = ImageBatch([clip.flip(0) for clip in batch.images])
    with torch.no_grad():
        assert not torch.allclose(model(batch).mask_embeddings, model(turned).mask_embeddings, atol=1e-4)
        without_frame_positions(model)
        torch.testing.assert_close(model(batch).mask_embeddings, model(turned).mask_embeddings)


@pytest.mark.parametrize("layout", ["authors", "fssops", "transformers"])
def test_image_checkpoints_start_it_and_another_class_head_is_reported(layout: str) -> None:
    image = small_model("mask2former", things=None, num_classes=7)
    state = image.state_dict()
    if layout == "authors":
        state = to_authors(state, MASK2FORMER, 0.1)
    if layout == "transformers":
        state = to_transformers(image)
    model = small_vis()
    before = model.transformer_decoder.class_embed.weight.clone()
    report = fssops.load_weights(model, state, new_head="tell")
    assert report.complete
    assert [name for name, _, _ in report.reinitialised] == [
        "transformer_decoder.class_embed.weight",
        "transformer_decoder.class_embed.bias",
    ]
    assert "other classes, starts anew" in str(report)
    assert torch.equal(model.transformer_decoder.class_embed.weight, before)
    torch.testing.assert_close(
        model.transformer_decoder.query_feat.weight, image.get_submodule("transformer_decoder.query_feat").weight
    )


def test_transformers_image_checkpoints_are_recognised() -> None:
    from fssops.weights.layouts import layouts_of

    names = [layout.name for layout in layouts_of("mask2former_vis")]
    assert len(names) == 2
    assert "transformers (Mask2FormerForUniversalSegmentation)" in names


def test_an_object_that_the_last_frame_lacks_keeps_its_class_unless_published() -> None:
    batch = small_clips([[2], []])
    assert batch.targets is not None
    batch.targets[0].masks[0, -1] = False
    batch.targets[0].annotated = torch.tensor([[True, True, False]])
    sound, published = small_vis().train(), small_vis(behaviour="published").train()
    published.load_state_dict(sound.state_dict())
    assert sound.trained_target(batch.targets[0]).labels.tolist() == [2]
    assert published.trained_target(batch.targets[0]).labels.tolist() == [5]
    found = {}
    for name, model in (("sound", sound), ("published", published)):
        points = RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(1))
        losses = model.losses(batch, points)
        found[name] = float(losses["loss_ce"].detach()), float(losses["loss_mask"].detach())
        torch.stack(list(losses.values())).sum().backward()
    # The published loss calls every query "no object", and still trains the mask of the one that was matched.
    with torch.no_grad():
        logits = published.train()(batch).class_logits[-1]
        nothing = -2 * logits.log_softmax(-1)[..., -1].mean()
    assert found["published"][0] == pytest.approx(float(nothing), rel=1e-5)
    assert found["sound"][0] != pytest.approx(float(nothing), rel=1e-3)
    assert found["published"][1] > 0


def test_an_object_annotated_in_the_last_frame_but_hidden_there_keeps_its_class() -> None:
    target = MaskTargets(
        torch.tensor([2]), torch.zeros(1, 2, 4, 4, dtype=torch.bool), annotated=torch.ones(1, 2).bool()
    )
    assert small_vis(behaviour="published").trained_target(target).labels.tolist() == [2]


def test_mask_losses_grow_with_frames_and_are_divided_by_objects() -> None:
    """Twice the same frame: each of its masks counts, and the number of objects stays."""
    model = small_vis(importance_ratio=0.0, oversample_ratio=1.0, train_points=4096).train()
    without_frame_positions(model)
    once = small_clips(frames=1)
    assert once.targets is not None
    twice = ImageBatch(
        [clip.repeat(2, 1, 1, 1) for clip in once.images],
        [MaskTargets(t.labels, t.masks.repeat(1, 2, 1, 1)) for t in once.targets],
    )
    with torch.no_grad():
        short, long = model.losses(once), model.losses(twice)
    assert float(long["loss_mask_0"]) == pytest.approx(2 * float(short["loss_mask_0"]), rel=0.1)
    assert float(long["loss_ce_0"]) == pytest.approx(float(short["loss_ce_0"]), rel=0.1)


def test_a_clip_without_objects_trains_no_object_alone() -> None:
    model = small_vis().train()
    losses = model.losses(small_clips([[], []]))
    torch.stack(list(losses.values())).sum().backward()
    values = {name: float(value.detach()) for name, value in losses.items()}
    assert values["loss_mask"] == values["loss_dice"] == 0
    assert values["loss_ce"] > 0


def test_training_step_under_bf16_autocast_is_finite() -> None:
    model = small_vis().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(small_clips())
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model.eval().track(video(3))
    assert torch.isfinite(result.scores).all()


def test_whole_videos_are_segmented_at_the_output_size() -> None:
    model = small_vis().eval()
    batch = ImageBatch([torch.stack(video(3)), torch.stack(video(5, (33, 47)))], output_sizes=[(20, 28), (66, 94)])
    results = [result.instance for result in model.segment(batch)]
    for result, frames, size in zip(results, (3, 5), ((20, 28), (66, 94)), strict=True):
        assert result is not None
        assert result.scores.shape == result.labels.shape == (4,)
        assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
        assert [len(masks) for masks in result.masks] == [frames] * 4
        assert all(mask.shape == size and mask.dtype == torch.bool for masks in result.masks for mask in masks)


def test_results_do_not_depend_on_how_many_frames_are_encoded_together() -> None:
    model = small_vis().eval()
    first = model.track(video(5))
    object.__setattr__(model.config, "encode_frames", 2)
    second = model.track(video(5))
    torch.testing.assert_close(first.scores, second.scores)
    assert first.labels.tolist() == second.labels.tolist()
    assert share_of_equal_pixels(first.masks, second.masks) > 0.999


def share_of_equal_pixels(first: list[list[Tensor]], second: list[list[Tensor]]) -> float:
    pairs = [(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)]
    return float(torch.stack([(a == b).float().mean() for a, b in pairs]).mean())


@pytest.mark.parametrize("window", [6, 9])
def test_one_clip_that_covers_the_video_gives_the_whole_videos_result(window: int) -> None:
    model = small_vis().eval()
    whole, clipped = model.track(video(6)), model.track(iter(video(6)), window=window)
    assert torch.equal(whole.scores, clipped.scores)
    assert torch.equal(whole.labels, clipped.labels)
    assert share_of_equal_pixels(whole.masks, clipped.masks) == 1.0


@pytest.mark.parametrize(("window", "overlap", "frames"), [(3, 1, 11), (3, 0, 9), (4, 2, 10), (1, 0, 4)])
def test_at_most_the_window_is_held_however_long_the_video(
    window: int, overlap: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_vis(window=window, overlap=overlap, encode_frames=2).eval()
    alive: set[int] = set()
    most = 0
    encoded = model._encoded

    def watched(chunk: list[Tensor]) -> tuple[list[PixelFeatures], tuple[int, int]]:
        nonlocal most
        found, padded = encoded(chunk)
        for features in found:
            alive.add(id(features))
            weakref.finalize(features, alive.discard, id(features))
        gc.collect()
        most = max(most, len(alive))
        return found, padded

    monkeypatch.setattr(model, "_encoded", watched)
    read = 0

    def stream() -> Iterator[Tensor]:
        nonlocal read
        for frame in video(frames):
            read += 1
            yield frame

    result = model.track(stream())
    assert read == frames
    assert [len(masks) for masks in result.masks] == [frames] * 4
    assert most <= window + 2


class Slots:
    """What a perfect network would say of a clip: object o is found by query ``order[o]`` of that clip."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.identity = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=1) * 4
        self.generator = generator

    def clip(self, order: list[int], visible: list[int]) -> tuple[Tensor, Tensor]:
        """Class logits [6, 4] and embeddings [6, 16]; objects not ``visible`` are named by no query."""
        logits = torch.zeros(6, 4)
        logits[:, -1] = 6.0
        embeddings = torch.randn(6, 16, generator=self.generator)
        for thing in visible:
            logits[order[thing]] = 0
            logits[order[thing], thing % 3] = 6.0
            embeddings[order[thing]] = self.identity[thing] + 0.1 * torch.randn(16, generator=self.generator)
        return logits, embeddings


def joined(clips: list[tuple[list[int], list[int]]], detections: int = 4) -> list[tuple[int, list[int | None]]]:
    """(label, object that each clip's mask is of) of the objects found, best first."""
    slots, joiner = Slots(), ClipJoiner(detections)
    for order, visible in clips:
        logits, embeddings = slots.clip(order, visible)
        tracks = joiner.add(logits, embeddings, torch.zeros(0, 16, 2, 2), only=len(clips) == 1)
        owner = {order[thing]: thing for thing in visible}
        joiner.keep_frame(tracks, [owner.get(int(query)) for query in joiner.queries_of(tracks)])
    result = joiner.result()
    sure = [k for k in range(len(result.scores)) if result.scores[k] > 0.5]
    return [(int(result.labels[k]), result.masks[k]) for k in sure]


def test_objects_keep_their_identity_when_their_queries_change() -> None:
    found = joined([([0, 1, 2, 3], [0, 1, 2, 3]), ([5, 3, 1, 0], [0, 1, 2, 3]), ([2, 4, 0, 1], [0, 1, 2, 3])])
    assert sorted(masks for _, masks in found) == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert all(label == masks[0] % 3 for label, masks in found)


def test_an_object_that_vanishes_and_returns_is_the_same_and_has_no_mask_between() -> None:
    clips = [([0, 1, 2, 3], [0, 1]), ([3, 2, 1, 0], [1]), ([4, 0, 1, 2], [1]), ([5, 1, 2, 3], [0, 1])]
    assert sorted(joined(clips), key=lambda row: str(row)) == [(0, [0, None, None, 0]), (1, [1, 1, 1, 1])]


def test_an_object_that_appears_late_is_found_with_its_full_score() -> None:
    found = joined([([0, 1, 2, 3], [0]), ([1, 0, 2, 3], [0, 1]), ([2, 5, 0, 1], [0, 1])])
    assert sorted(found) == [(0, [0, 0, 0]), (1, [None, 1, 1])]


def test_soft_overlap_of_equal_masks_is_one_and_of_apart_ones_small() -> None:
    features = torch.zeros(2, 2, 4, 4)
    features[:, 0] = -9.0
    features[:, 1] = 9.0
    features[:, 0, :2] = 9.0
    features[:, 1, :2] = -9.0
    same = torch.eye(2)
    overlap = soft_overlap(same, same, features)
    torch.testing.assert_close(overlap, torch.eye(2), atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 4])
def test_a_gpu_finds_what_the_cpu_finds(window: int) -> None:
    model = small_vis(window=window).eval()
    here = model.track(video(9))
    there = model.cuda().track(video(9))
    torch.testing.assert_close(there.scores, here.scores, atol=1e-3, rtol=0)
    same = [
        (a.cpu() == b).float().mean() if a is not None and b is not None else torch.tensor(float(a is b))
        for one, other in zip(there.masks, here.masks, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert float(torch.stack(same).mean()) > 0.98


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_training_steps_on_a_gpu_are_finite(dtype: torch.dtype | None) -> None:
    model, batch = small_vis().train().cuda(), move_to(small_clips(), "cuda")
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        losses = model.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 4, "overlap": 4}, "overlap in 0..window - 1, got window 4, overlap 4"),
        ({"window": -1}, "window must be at least 0, got -1"),
        ({"encode_frames": 0}, "encode_frames must be at least 1, got 0"),
        ({"tasks": ("panoptic",)}, "tasks.0 must be one of instance, got 'panoptic'"),
        ({"behaviour": "other"}, "behaviour"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fssops.create_model("mask2former_vis", **options)


def test_a_behaviour_that_there_is_not_is_told_without_a_recipe_too() -> None:
    with pytest.raises(ValueError, match="behaviour must be one of sound, published, got 'publishd'"):
        small_vis(behaviour="publishd")


def test_bad_videos_are_told() -> None:
    model = small_vis().eval()
    with pytest.raises(ValueError, match="frames must be at least one, got 0"):
        model.track([])
    with pytest.raises(ValueError, match=r"frame 1 must have the size of the first, \[40, 56\], got \[40, 52\]"):
        model.track([*video(1), *video(1, (40, 52))])
    with pytest.raises(ValueError, match=r"frame 0 must be \[3, H, W\], got \[40, 56\]"):
        model.track([video(1)[0][0]])
    with pytest.raises(ValueError, match=r"window must be 0 or more than overlap \(2\), got 2"):
        model.track(video(3), window=2)
    with pytest.raises(ValueError, match=r"one length, got lengths \[2, 3\]"):
        model(ImageBatch([torch.stack(video(2)), torch.stack(video(3))]))
    batch = small_clips()
    assert batch.targets is not None
    batch.targets[1].masks = batch.targets[1].masks[:, :2]
    with pytest.raises(ValueError, match=r"targets\[1\].masks must be bool \[1, 3, 61, 40\] .* \[1, 2, 61, 40\]"):
        model.losses(batch)
    with pytest.raises(ValueError, match="targets must be given, got None"):
        model.losses(ImageBatch(batch.images))
    with pytest.raises(ValueError, match=r"output_sizes must be one an item \(2\), got 1"):
        model.segment(ImageBatch(batch.images, output_sizes=[(8, 8)]))


def test_masks_of_another_type_are_refused_as_those_of_images_are() -> None:
    batch = small_clips()
    assert batch.targets is not None
    batch.targets[0].masks = batch.targets[0].masks.float()
    with pytest.raises(ValueError, match=r"targets\[0\].masks must be bool .* got torch.float32"):
        small_vis().losses(batch)


def test_frames_said_to_be_annotated_must_be_those_of_the_clip() -> None:
    batch = small_clips([[2], []])
    assert batch.targets is not None
    batch.targets[0].annotated = torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"annotated must be \[G, T\] as the masks are, \[1, 3\], got \[1, 5\]"):
        small_vis(behaviour="published").losses(batch)


def test_labels_out_of_range_are_told_unless_published_says_no_object() -> None:
    batch = small_clips([[5], []])
    with pytest.raises(ValueError, match=r"labels must be in 0..4, got 5..5"):
        small_vis().losses(batch)


def test_a_step_that_the_guard_kept_while_clips_had_a_batch_of_their_own_is_read() -> None:
    clips = small_clips()
    batch = unpack_batch(clips=clips.images, targets=None, output_sizes=[[8, 9], [4, 4]], names=["a", "b"])
    assert batch.images is clips.images
    assert batch.result_sizes == [(8, 9), (4, 4)]
