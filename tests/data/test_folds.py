"""Class folds, against the published definitions."""

from __future__ import annotations

import pytest

from fssops.data import folds


@pytest.mark.parametrize("definition", folds.DEFINITIONS)
def test_pascal_folds_are_five_neighbouring_classes_in_every_definition(definition: str) -> None:
    assert folds.pascal5i(0, definition).test == [1, 2, 3, 4, 5]
    assert folds.pascal5i(3, definition).test == [16, 17, 18, 19, 20]
    assert folds.pascal5i(2, definition).train == [*range(1, 11), *range(16, 21)]


def test_coco_folds_of_panet_are_contiguous_and_those_of_msanet_step_by_four() -> None:
    assert folds.coco20i(1).test == list(range(21, 41))
    assert folds.coco20i(1).definition == "panet"
    assert folds.coco20i(0, "msanet").test == list(range(1, 78, 4))
    assert folds.coco20i(3, "msanet").test == list(range(4, 81, 4))


@pytest.mark.parametrize("fold_of", [folds.pascal5i, lambda i: folds.coco20i(i), lambda i: folds.coco20i(i, "msanet")])
def test_four_folds_share_the_classes_out_exactly_once(fold_of) -> None:  # type: ignore[no-untyped-def]
    parts = [fold_of(i) for i in range(4)]
    every = sorted(c for part in parts for c in part.test)
    assert every == sorted(set(every)) == sorted(parts[0].train + parts[0].test)
    assert all(not set(p.train) & set(p.test) for p in parts)


def test_split_classes_by_both_rules() -> None:
    ids = [10, 3, 7, 4, 8, 9]
    assert folds.split_classes(ids, 1, 4).test == [7, 8]
    assert [folds.split_classes(ids, i, 4).test for i in range(4)] == [[3, 4], [7, 8], [9], [10]]
    assert folds.split_classes(ids, 1, 4, rule="interleaved").test == [4, 10]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: folds.pascal5i(4), "pascal5i: fold must be an integer from 0 to 3, got 4"),
        (lambda: folds.coco20i(True), "got True"),
        (lambda: folds.coco20i(0, "bam"), "definition must be one of panet, msanet, got 'bam'"),
        (lambda: folds.split_classes([1, 2, 3], 0, 4), "folds must be between 2 and the 3 classes, got 4"),
        (lambda: folds.split_classes([1, 2, 3], 0, 2, rule="x"), "rule must be contiguous or interleaved"),
        (lambda: folds.by_name("pascal", 0), "name must be pascal5i, coco20i, generated, custom or all"),
        (lambda: folds.by_name("all", 1, classes=[1, 2]), "fold must be 0 of folds all, .* got 1"),
        (lambda: folds.by_name("custom", 0), "classes must be given for 'custom'"),
    ],
)
def test_bad_request_is_an_error_with_its_value(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_fold_prints_benchmark_number_and_definition() -> None:
    assert str(folds.coco20i(2, "msanet")) == "coco20i fold 2 (msanet)"


def test_all_classes_may_be_trained_and_tested_and_none_is_novel() -> None:
    fold = folds.by_name("all", 0, classes=[3, 1])
    assert (fold.train, fold.test, fold.novel) == ([1, 3], [1, 3], [])
    assert "no class held out" in str(fold)
    assert folds.by_name("custom", 0, classes=range(1, 9)).novel == [1, 2]
