"""The table of few-shot protocols holds the published numbers, and every name leads to one row."""

from __future__ import annotations

import pytest

from fssops.protocols import PROTOCOLS, find_protocol, protocol_of, span


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"protocol must be one of fssops, panet.*did you mean 'panet'"):
        find_protocol("pa-net")


def test_panets_protocol_has_the_published_numbers() -> None:
    row = PROTOCOLS["panet"]
    assert (row.runs, row.episodes, row.seeds) == (5, 1000, (1234, 1235, 1236, 1237, 1238))
    assert (row.size, row.false_positives, row.binary, row.absent) == ("network", "present", "class_sums", "nan")
    assert (row.draw, row.definition, row.geometry, row.other_ways) == ("panet", "panet", "square", "label")


def test_panet_draws_coco_by_rules_of_its_own_and_compares_alike() -> None:
    row = protocol_of("panet", "coco")
    assert row is PROTOCOLS["panet_coco"]
    assert (row.other_ways, row.crowd) == ("background", "object")
    assert row.describe() == PROTOCOLS["panet"].describe()
    assert protocol_of("panet", "voc") is PROTOCOLS["panet"]
    assert protocol_of("msanet", "coco") is PROTOCOLS["msanet"]


def test_msanets_protocol_names_its_seeds() -> None:
    row = PROTOCOLS["msanet"]
    assert (row.runs, row.episodes, row.false_positives, row.binary) == (5, 1000, "all", "pixels")
    assert "seeds 510 365 382 322 988, square size" in row.describe()
    assert row.seeds_of("pascal5i", 2) == row.seeds


def test_insid3s_protocol_is_one_run_at_the_networks_size() -> None:
    row = PROTOCOLS["insid3"]
    assert (row.runs, row.seeds, row.size, row.binary) == (1, (0,), "network", "class_sums")
    assert (row.draw, row.geometry, row.crowd, row.overlap) == (
        "independent",
        "square_by_corners",
        "background",
        "later",
    )


def test_mm_formers_seeds_are_those_of_the_fold() -> None:
    row = PROTOCOLS["mm_former"]
    assert (row.runs, row.size, row.min_area) == (1, "network", 2048)
    assert row.seeds_of("coco20i", 3) == (3391510,)
    assert row.seeds_of("generated", 1) == row.seeds
    assert "1 runs x 1000 episodes, seeds of the fold" in row.describe()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_row_says_where_it_is_defined_and_what_data_sets_read(name: str) -> None:
    row = PROTOCOLS[name]
    assert row.name == name
    assert row.source
    assert row.source_options("voc") == {}
    assert set(row.source_options("coco")) == {"crowd", "overlap"}
    assert row.draw_options() == {"draw": row.draw, "min_area": row.min_area}
    assert set(row.dataset_options()) == {"ignore_in_support", "empty_support", "other_ways", "geometry"}


def test_consecutive_seeds_are_a_span() -> None:
    assert span([3, 4, 5]) == "3..5"
    assert span([3, 5]) == "3 5"
    assert span([7]) == "7"


def test_the_numbers_of_every_row_are_those_that_were_published() -> None:
    areas = {name: row.min_area for name, row in PROTOCOLS.items()}
    assert areas == {"fssops": 1, "panet": 1, "panet_coco": 1, "msanet": 2048, "mm_former": 2048, "insid3": 2048}
    assert PROTOCOLS["mm_former"].fold_seeds == {
        "pascal5i": (4604572, 7743485, 5448843, 2534673),
        "coco20i": (8420323, 27163933, 8162312, 3391510),
    }
    assert [name for name, row in PROTOCOLS.items() if row.drop_novel] == ["fssops", "msanet"]
    assert [name for name, row in PROTOCOLS.items() if row.definition == "msanet"] == ["msanet", "mm_former", "insid3"]
    assert {row.episodes for row in PROTOCOLS.values()} == {1000}
