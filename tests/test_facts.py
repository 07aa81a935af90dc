"""Facts of single items are counted by name, add up over processes, and are told where there are any."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fssops.evaluation.episodes import count_supports
from fssops.evaluation.metrics.metric import MetricSet
from fssops.facts import FACTS, Facts
from fssops.protocols import PROTOCOLS
from fssops.structures import Episode

SKIP = replace(PROTOCOLS["fssops"], empty_support="skip")


def test_counts_add_up_and_what_was_not_found_is_told_by_json_alone() -> None:
    facts = Facts()
    facts.add("empty_supports", 2, 5)
    facts.add("empty_supports", True, 3)
    facts.add("copied_supports", 0, 8)
    assert facts.as_json() == {"empty_supports": {"count": 3, "of": 8}, "copied_supports": {"count": 0, "of": 8}}
    assert facts.told() == ["3 of 8 supports without a pixel of their class at the network's size"]
    assert json.loads(json.dumps(facts.state())) == {"empty_supports": [3, 8], "copied_supports": [0, 8]}


def test_only_what_has_words_can_be_counted() -> None:
    with pytest.raises(ValueError, match=r"name must be one of empty_supports, .*, got 'empty'"):
        Facts().add("empty", 1)
    assert all(text == text.strip() and not text.endswith(".") for text in FACTS.values())


def test_states_of_processes_replace_the_counts_and_add_up() -> None:
    parts = [MetricSet([]), MetricSet([])]
    parts[0].facts.add("unmatched_objects", 20, 30)
    parts[1].facts.add("unmatched_objects", 1, 12)
    parts[1].facts.add("copied_supports", 0, 1)
    whole = parts[0]
    whole.merge([part.state() for part in parts])
    assert whole.facts.state() == {"unmatched_objects": [21, 42], "copied_supports": [0, 1]}


def episode(foreground: Tensor, supports: Tensor, queries: Tensor) -> Episode:
    """An episode of N ways and K shots; ``foreground`` [N, K, H, W], images [.., 3, H, W]."""
    size = foreground.shape[-2:]
    return Episode(
        support_images=supports,
        support_foreground=foreground,
        support_background=1 - foreground,
        query_images=queries,
        query_labels=torch.zeros(len(queries), *size, dtype=torch.int64),
        classes=torch.arange(1, 1 + len(foreground)),
    )


def drawn(ways: int = 2, shots: int = 3, queries: int = 2) -> Episode:
    """All images differ and every support shows its object."""
    images = torch.rand(ways * shots + queries, 3, 6, 5)
    foreground = torch.zeros(ways, shots, 6, 5)
    foreground[..., 2, 2] = 1
    return episode(foreground, images[queries:].unflatten(0, (ways, shots)), images[:queries])


def test_every_support_without_its_object_is_counted_and_its_episode_scored_where_the_protocol_says_so() -> None:
    one, facts = drawn(), Facts()
    one.support_foreground[1, 0] = 0
    one.support_foreground[1, 2] = 0
    assert count_supports(facts, one, PROTOCOLS["panet"])
    assert facts.as_json()["empty_supports"] == {"count": 2, "of": 6}
    assert "skipped_episodes" not in facts.counts
    assert not count_supports(facts, one, SKIP)
    assert count_supports(facts, drawn(), SKIP)
    assert facts.as_json()["empty_supports"] == {"count": 4, "of": 18}
    assert facts.as_json()["skipped_episodes"] == {"count": 1, "of": 2}


@pytest.mark.parametrize(("way", "shot", "query"), [(0, 0, 1), (1, 2, 0)])
def test_a_query_that_is_also_a_support_is_found_wherever_it_stands(way: int, shot: int, query: int) -> None:
    one, facts = drawn(), Facts()
    one.support_images[way, shot] = one.query_images[query]
    count_supports(facts, one, PROTOCOLS["fssops"])
    count_supports(facts, drawn(), PROTOCOLS["fssops"])
    assert facts.as_json()["copied_supports"] == {"count": 1, "of": 2}


def test_pictures_that_differ_in_one_value_are_no_copies_nor_are_two_supports_of_one_picture() -> None:
    one, facts = drawn(), Facts()
    one.support_images[0, 0] = one.query_images[0]
    one.support_images[0, 0, 1, 2, 3] += 0.5
    one.support_images[1, 1] = one.support_images[0, 1]
    count_supports(facts, one, PROTOCOLS["fssops"])
    assert facts.as_json()["copied_supports"] == {"count": 0, "of": 1}
