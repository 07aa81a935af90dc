"""MM-Former: parity with the authors' outputs, what each behaviour does, and what does not change a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from parity_cases import mm_former as cases
from parity_cases.case import Case, compared
from torch import nn

import fssops
from fssops.evaluation.episodes import segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.models.mm_former import MMFormer, MMFormerConfig
from fssops.models.mm_former.alignment import CrossAlignment, channel_gates, projected, shortened
from fssops.models.mm_former.records import inside_mask
from fssops.structures import IGNORE, Episode, FewShotBatch
from fssops.testing.published_mm_former import PublishedMMFormer

CASES = ("mmformer_pos_r50", "mmformer_r50_1shot", "mmformer_svf_r50_1shot")
SMALL = {
    "backbone": "resnet18",
    "backbone_width": 8,
    "num_queries": 12,
    "channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_hidden": 32,
    "decoder_layers": 3,
    "decoder_hidden": 32,
    "align_heads": 2,
    "align_hidden": 32,
    "matching_hidden": 24,
    "short_side": 5,
    "train_points": 64,
}


def small_model(**options: Any) -> MMFormer:
    torch.manual_seed(1)
    model = fssops.create_model("mm_former", **{**SMALL, **options})
    assert isinstance(model, MMFormer)
    spread(model)
    return model.eval()


def spread(model: nn.Module) -> None:
    """Make the queries' masks differ, and statistics such that a missing normalisation would show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith(("query_feat.weight", "query_embed.weight")):
            value.normal_(0, 4, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)


def small_batch(
    *, episodes: int = 1, ways: int = 1, shots: int = 1, queries: int = 1, size: tuple[int, int] = (64, 96)
) -> FewShotBatch:
    generator = torch.Generator().manual_seed(3)

    def images(*lead: int) -> torch.Tensor:
        return torch.randn(*lead, 3, *size, generator=generator)

    masks = torch.zeros(episodes, ways, shots, *size)
    for k in range(shots):
        masks[:, :, k, 10 + 4 * k : 40 + 4 * k, 8 : 50 - 3 * k] = 1
    labels = torch.zeros(episodes, queries, *size, dtype=torch.long)
    for way in range(ways):
        labels[..., 12 : 12 + 20, 30 * way + 4 : 30 * way + 30] = way + 1
    labels[..., :3] = IGNORE
    return FewShotBatch(
        support_images=images(episodes, ways, shots),
        support_foreground=masks,
        support_background=1 - masks,
        query_images=images(episodes, queries),
        query_labels=labels,
        classes=torch.arange(1, ways + 1).expand(episodes, ways),
    )


@pytest.mark.parametrize("case", CASES)
def test_every_intermediate_loss_and_gradient_agrees_with_the_authors(case: str, oracle_root: Path) -> None:
    lines = list(parity.lines_of(oracle_root / case))
    assert not [str(line) for line in lines if line.out]
    missing = [line.name for line in lines if line.error is None and "nothing of that name" in line.measure]
    assert not missing


def five_shot_case(arrays: dict[str, np.ndarray[Any, Any]], words: dict[str, str], index: str) -> Case:
    table = {name: {"what": words.get(name, ""), "index": index if "subset" in name else None} for name in arrays}
    return Case(Path("five_shots"), {"arrays": table}, arrays, fill=lambda *_: np.zeros(0))


def test_a_five_shot_case_is_compared_shot_by_shot_where_it_says_so() -> None:
    """Each shot's prototypes are what the shot alone gives; arrays that say nothing of shots are means over them."""
    model, batch = small_model(behaviour="published"), small_batch(episodes=2, shots=5)
    query = model.encode(batch.query_images.flatten(0, 1))

    def prototypes(shots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        masks = batch.support_foreground[:, :, shots]
        features = model.encode(batch.support_images[:, :, shots].flatten(0, 2))
        result = model.compare(model.summarise(features, masks, 1 - masks), query)
        return result.query_prototypes[:, 0], result.support_prototypes

    with torch.no_grad():
        alone = [prototypes(slice(k, k + 1)) for k in range(5)]
        mean = prototypes(slice(0, 5))
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        found = {**cases.prototypes_by_shot(model, support, query), "q_proto": mean[0], "s_proto": mean[1]}
    assert (alone[3][0] - mean[0]).abs().max() > 0.1
    wanted = {
        "q_proto": mean[0],
        "s_proto": mean[1],
        "q_proto_k3": alone[3][0],
        "s_proto_shot1": alone[1][1],
        "q_proto_per_shot": torch.stack([one[0] for one in alone], dim=1),
        "s_proto_shots": torch.stack([one[1] for one in alone]),
        "q_proto_shots_subset": torch.stack([one[0] for one in alone], dim=1)[:, 1:4, ::5],
    }
    words = {"q_proto": "query prototypes, mean over shots", "s_proto_shots": "(shot, batch, 1, C)"}
    case = five_shot_case({name: value.numpy() for name, value in wanted.items()}, words, "[:, 1:4, ::5]")
    for name, want in wanted.items():
        whole = cases.values_of(case, name, {**found, "q_proto_subset of each shot": found["q_proto of each shot"]})
        assert isinstance(whole, torch.Tensor)
        assert not compared(name, case.cut(name, whole), want.numpy(), 1e-5).out, name


# -- shapes and steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (33, 150), (200, 70), (8, 8)])
def test_images_of_any_size_and_aspect_are_segmented_at_their_size(size: tuple[int, int]) -> None:
    batch = small_batch(size=(64, 96), ways=2)
    model = small_model(channels=64)  # a group of GroupNorm needs two values where a map is a single pixel
    with torch.no_grad():
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        logits = model.match(support, model.encode(torch.randn(1, 3, *size)), size)
    assert logits.shape == (1, 1, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("episodes", "ways", "shots", "queries"), [(1, 1, 1, 1), (2, 2, 3, 2)])
def test_forward_equals_its_steps_and_each_pair_alone(episodes: int, ways: int, shots: int, queries: int) -> None:
    model, batch = small_model(), small_batch(episodes=episodes, ways=ways, shots=shots, queries=queries)
    with torch.no_grad():
        whole = model(batch)
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        query = model.encode(batch.query_images.flatten(0, 1))
        steps = model.match(support, query, (64, 96))
        alone = model(
            FewShotBatch(
                batch.support_images[-1:, -1:],
                batch.support_foreground[-1:, -1:],
                batch.support_background[-1:, -1:],
                batch.query_images[-1:, -1:],
                batch.query_labels[-1:, -1:],
                batch.classes[-1:, -1:],
            )
        )
    torch.testing.assert_close(whole, steps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[-1, -1, [0, ways]], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_kept_proposals_give_the_same_and_replace_what_they_came_from() -> None:
    model, batch = small_model(), small_batch()
    with torch.no_grad():
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        query = model.encode(batch.query_images.flatten(0, 1))
        fresh = model.match(support, query, (64, 96))
        kept = model.query_features(query)
        assert torch.equal(model.match(support, kept, (64, 96)), fresh)
    assert not [name for name in kept if name == "fine" or name.startswith("level")]
    assert sum(v.numel() for v in kept.values()) < sum(v.numel() for v in query.values())


def test_more_shots_of_the_same_support_change_nothing() -> None:
    model, batch = small_model(), small_batch()
    with torch.no_grad():
        once = model(batch)
        for name in ("support_images", "support_foreground", "support_background"):
            setattr(batch, name, getattr(batch, name).repeat_interleave(3, dim=2))
        torch.testing.assert_close(model(batch), once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"backbone": "resnet50", "levels": "stride8"}])
def test_the_published_composition_gives_the_same(options: dict[str, Any]) -> None:
    model, batch = small_model(behaviour="published", **options), small_batch(shots=2)
    with torch.no_grad():
        wanted = PublishedMMFormer(model)(batch.query_images[0], batch.support_images[0], batch.support_foreground[0])
        torch.testing.assert_close(model(batch)[0], wanted, rtol=1e-3, atol=1e-3)


# -- the published composition of single parts ----------------------------------------------------------------------


def test_gates_folded_into_the_projection_equal_gated_features() -> None:
    features, conv = torch.randn(2, 12, 5, 7), nn.Conv2d(12, 6, 1, bias=False)
    rows = features.flatten(2)
    weights = rows.mean(1).softmax(1)
    gates = (rows * weights[:, None]).sum(2).sigmoid()
    torch.testing.assert_close(channel_gates(features), gates)
    found = projected(features, gates, conv.weight)
    torch.testing.assert_close(found, conv(features * gates[..., None, None]))


def test_the_shorter_side_becomes_the_wanted_one_and_the_longer_is_rounded_down() -> None:
    assert shortened(torch.randn(1, 2, 60, 60), 15).shape[2:] == (15, 15)
    assert shortened(torch.randn(1, 2, 16, 20), 15).shape[2:] == (15, 18)
    assert shortened(torch.randn(1, 2, 9, 4), 15).shape[2:] == (33, 15)


def test_tokens_are_aligned_one_by_one() -> None:
    block = CrossAlignment(16, 2, 2, 32)
    tokens, place, key, value = (torch.randn(2, n, 16) for n in (9, 9, 5, 5))
    chosen = torch.tensor([1, 4, 8])
    with torch.no_grad():
        some = block(tokens[:, chosen], place[:, chosen], key, value)
        torch.testing.assert_close(some, block(tokens, place, key, value)[:, chosen])


def test_places_inside_a_mask_are_padded_with_places_that_weigh_nothing() -> None:
    places, weights = inside_mask(torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert places.tolist() == [[1, 3], [0, 1]]
    assert weights.tolist() == [[2.0, 1.0], [0.0, 0.0]]


# -- what the behaviours change -------------------------------------------------------------------------------------


def test_only_the_published_behaviour_moves_the_statistics_of_the_frozen_backbone() -> None:
    batch = small_batch()
    for behaviour in ("sound", "published"):
        model = small_model(behaviour=behaviour).train()
        before = model.segmenter.backbone.state_dict()["stem.conv1.norm.running_mean"].clone()
        sum(model.losses(batch).values()).backward()
        moved = not torch.equal(before, model.segmenter.backbone.state_dict()["stem.conv1.norm.running_mean"])
        assert moved == (behaviour == "published")
        assert not [name for name, p in model.segmenter.named_parameters() if p.grad is not None]
        trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert trained == {"projections", "cross_alignment", "merge"}


def test_published_results_are_two_shares_and_sound_ones_logits_of_the_same_decision() -> None:
    batch = small_batch()
    published, sound = small_model(behaviour="published"), small_model()
    with torch.no_grad():
        shares = published(batch)[0, 0]
        torch.testing.assert_close(shares[0], 1 - shares[1])
        query = sound.encode(batch.query_images.flatten(0, 1))
        support = sound.summarise(
            sound.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        found = sound.compare(support, query)
        logits = sound.logits(found, query, (64, 96))[0, 0]
        merged = sound.full_size(found.merged, query, (64, 96))[0, 0]
    assert torch.equal(logits.argmax(0) == 1, merged > 0.5)
    inside = (merged > 0.01) & (merged < 0.99)
    torch.testing.assert_close(logits.softmax(0)[1][inside], merged[inside])


def test_an_empty_support_is_left_out_and_without_any_there_is_no_foreground() -> None:
    model, batch = small_model(), small_batch(shots=2)
    with torch.no_grad():
        batch.support_foreground[:, :, 1] = 0
        with_empty = model(batch)
        first = small_batch(shots=2)
        for name in ("support_images", "support_foreground", "support_background"):
            setattr(first, name, getattr(first, name)[:, :, :1])
        torch.testing.assert_close(with_empty, model(first), rtol=1e-4, atol=1e-4)
        batch.support_foreground[:] = 0
        nothing = model(batch)
        assert nothing.isfinite().all()
        assert not nothing[0, 0].argmax(0).any()
        published = small_model(behaviour="published")
        assert published(batch).isfinite().all()


def test_without_a_proposal_above_nothing_all_is_background() -> None:
    model, batch = small_model(), small_batch()
    with torch.no_grad():
        query = model.encode(batch.query_images.flatten(0, 1))
        query = model.query_features(query)
        for name in ("proposals", "regions"):
            query[name] = torch.zeros_like(query[name])
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        logits = model.match(support, query, (64, 96))[0, 0]
    assert logits.isfinite().all()
    assert not logits.argmax(0).any()


def test_ignored_pixels_train_only_with_the_published_behaviour() -> None:
    for behaviour in ("sound", "published"):
        model = small_model(behaviour=behaviour)
        batch, other = small_batch(), small_batch()
        other.query_labels[other.query_labels == IGNORE] = 0
        with torch.no_grad():
            ignored, background = model.losses(batch)["loss_merge"], model.losses(other)["loss_merge"]
        assert torch.equal(ignored, background) == (behaviour == "published")


def test_published_behaviour_takes_one_way() -> None:
    with pytest.raises(ValueError, match=r"foreground must have 1 way with behaviour 'published', got 2"):
        small_model(behaviour="published")(small_batch(ways=2))


# -- training and input ---------------------------------------------------------------------------------------------


def test_some_steps_of_training_lower_the_loss_of_an_episode() -> None:
    model, batch = small_model().train(), small_batch(episodes=2)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    history = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = torch.stack(list(model.losses(batch).values())).sum()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-3:]) < 0.7 * history[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "vgg19"}, "backbone must be one of vgg16, resnet18"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"align_heads": 3}, "align_heads must divide channels"),
        ({"channels": 48}, "channels must be divisible by 32"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MMFormerConfig(**{**SMALL, **options})  # type: ignore[arg-type]


def test_images_of_another_form_are_refused() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="images must be float"):
        model.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 8 pixels a side, got 4 x 64"):
        model.encode(torch.zeros(1, 3, 4, 64))


# -- reuse ------------------------------------------------------------------------------------------------------------


class Counted:
    """Counts the proposal passes and the backbone passes of a model."""

    def __init__(self, model: MMFormer) -> None:
        self.proposals = self.backbone = 0
        predict, features = model.segmenter.predict, model.segmenter.features

        def counted_predict(*arguments: Any, **options: Any) -> Any:
            self.proposals += 1
            return predict(*arguments, **options)

        def counted_features(*arguments: Any) -> Any:
            self.backbone += 1
            return features(*arguments)

        model.segmenter.predict = counted_predict  # type: ignore[method-assign]
        model.segmenter.features = counted_features  # type: ignore[method-assign]


def test_evaluation_with_kept_proposals_gives_the_same_and_computes_each_image_once() -> None:
    model, batch = small_model(), small_batch(episodes=4, queries=1)
    counted = Counted(model)
    episodes = [
        Episode(
            *(getattr(batch, name)[n % 4] for name in ("support_images", "support_foreground")),
            batch.support_background[n % 4],
            batch.query_images[(n * 3) % 4],
            batch.query_labels[n % 4],
            batch.classes[n % 4],
        )
        for n in range(8)
    ]
    found = []
    for memory in (0, 64 << 20):
        counted.proposals = counted.backbone = 0
        with torch.inference_mode(), FeatureCache(model.encode, memory=memory) as cache:  # type: ignore[arg-type]
            found.append([segment(model, cache, episode)[""][0] for episode in episodes])  # type: ignore[arg-type]
            passes = cache.passes
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (counted.proposals, counted.backbone, passes) == (4, 8, 8)


def test_a_further_class_in_the_same_image_costs_no_proposal_pass() -> None:
    model = small_model()
    image = (torch.rand(3, 70, 90) * 255).to(torch.uint8)
    supports = [(torch.rand(3, 64, 64) * 255).to(torch.uint8) for _ in range(3)]
    mask = np.zeros((64, 64), bool)
    mask[10:50, 20:40] = True
    results = {}
    for keep in (0, 64):
        predictor = fssops.FewShotPredictor(model, size=64, keep_mb=keep)
        counted = Counted(model)
        results[keep] = []
        for support in supports:
            predictor.set_support([support], [mask])
            results[keep].append(predictor.segment(image).probabilities)
        assert counted.proposals == (1 if keep else 3)
        assert counted.backbone == (4 if keep else 6)
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[64], strict=True))


def test_changed_weights_are_noticed() -> None:
    model = small_model()
    predictor = fssops.FewShotPredictor(model, size=64)
    image = (torch.rand(3, 64, 64) * 255).to(torch.uint8)
    mask = np.zeros((64, 64), bool)
    mask[10:50, 20:40] = True
    predictor.set_support([image], [mask])
    before = predictor.segment(image).probabilities
    with torch.no_grad():
        model.segmenter.transformer_decoder.query_feat.weight.mul_(-1)
    assert not np.array_equal(predictor.segment(image).probabilities, before)
