"""Results say what was measured, on what, and over how many of how many classes each mean was formed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from fssops.evaluation.metrics import METRICS, metrics_for
from fssops.evaluation.metrics.base_class import BaseClassIoU
from fssops.evaluation.metrics.few_shot import FewShotIoU
from fssops.evaluation.metrics.instance import InstancePrecision
from fssops.evaluation.metrics.learners import LearnerScores
from fssops.evaluation.metrics.metric import ClassSetting, Coverage, Scores
from fssops.evaluation.metrics.panoptic import PanopticQuality
from fssops.evaluation.metrics.passes import PassScores
from fssops.evaluation.metrics.semantic import SemanticIoU
from fssops.evaluation.metrics.video_instance import VideoPrecision
from fssops.evaluation.results import (
    BaseClassResult,
    FewShotResult,
    UniversalResult,
    VideoEvaluation,
    best_and_worst,
    fold_mean_line,
    fold_table,
)
from fssops.facts import Facts
from fssops.protocols import PROTOCOLS, FewShotProtocol
from fssops.run_lengths import encode
from fssops.truth import Segment

PANET, FSSOPS = PROTOCOLS["panet"], PROTOCOLS["fssops"]


def by_hand(protocol: FewShotProtocol = PANET) -> FewShotIoU:
    counts = FewShotIoU(2, 3, [3, 5], protocol)
    counts.classes[0, 0] = torch.tensor([80, 10, 10])
    counts.classes[0, 3] = torch.tensor([6, 2, 2])
    counts.classes[0, 5] = torch.tensor([1, 0, 1])
    counts.classes[1, 0] = torch.tensor([50, 25, 25])
    counts.classes[1, 3] = torch.tensor([4, 4, 8])
    counts.classes[1, 5] = torch.tensor([0, 1, 1])
    counts.foreground[:] = torch.tensor([[3, 1, 0], [1, 0, 1]])
    counts.episodes[0] = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    counts.episodes[1] = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 3, 0]])
    return counts


def result(counts: FewShotIoU, fold: int = 0, further: dict[str, Scores] | None = None) -> FewShotResult:
    return FewShotResult(
        measured={"few-shot": counts.scores(), **(further or {})},
        protocol=counts.protocol.name,
        classes={3: "cup", 5: "plate"},
        model="m",
        dataset="voc val",
        fold=fold,
        folds="pascal5i (panet)",
        ways=1,
        shots=5,
        queries=1,
        episodes=7,
        seeds=[1234, 1235],
        list_hashes=["ab" * 32, "cd" * 32],
        annotation="mask",
        size=[12, 10],
    )


def absent_in_the_first_run(protocol: FewShotProtocol = FSSOPS) -> FewShotIoU:
    counts = by_hand(protocol)
    counts.classes[0, 5] = 0
    return counts


# few-shot


def test_every_line_states_the_whole_setting() -> None:
    line = result(by_hand()).line()
    for part in (
        "mIoU 33.75 ± 21.25  binary IoU",
        "voc val",
        "pascal5i (panet)",
        "fold 0",
        "1-way 5-shot",
        "2 x 7 episodes",
        "seed 1234..1235",
        "protocol panet",
        "list abababab+cdcdcdcd",
    ):
        assert part in line
    mean = fold_mean_line([result(by_hand(), fold=fold) for fold in range(4)])
    assert "fold mean of 0,1,2,3" in mean
    assert "mIoU 33.75  binary" in mean


def test_a_mean_over_some_of_the_classes_says_so_in_line_table_and_json() -> None:
    one = result(absent_in_the_first_run())
    assert "mIoU 36.25 ± 23.75 (1 to 2 of 2 classes)  binary IoU" in one.line()
    assert one.as_json()["coverage"] == {"mIoU": {"classes": [1, 2], "of": 2}}
    assert one.tables(True)[0][1][-1] == ["", "mean", "36.25 ± 23.75 (1 to 2 of 2)", "60.00 (1 of 2)", "12.50"]
    assert fold_table([one])[1][1] == "36.25 ± 23.75 (1 to 2 of 2 classes)"
    both = [one, result(by_hand(FSSOPS), fold=1)]
    assert fold_mean_line(both).startswith("mIoU 35.00 (3 to 4 of 4 classes)  binary")
    assert fold_table(both)[-1][1] == "35.00 (3 to 4 of 4 classes)"


def test_what_is_known_of_the_items_stands_in_line_table_and_json_and_zeros_in_json_alone() -> None:
    facts = {"empty_supports": (25, 40), "copied_supports": (0, 40)}
    training = {"novel_images_kept": (31, 200)}
    one = dataclasses.replace(result(by_hand()), facts=Facts(facts), training_facts=Facts(training))
    empty = "25 of 40 supports without a pixel of their class at the network's size"
    novel = "in training 31 of 200 images with a novel class, which is background there"
    assert one.line().endswith(f"list abababab+cdcdcdcd; {empty}; {novel}]")
    assert FewShotResult.report_tables([one], False)[0] == (
        "known of the items",
        [["model", "what"], ["m", empty], ["m", novel]],
    )
    plain = one.as_json()
    assert plain["facts"] == {"empty_supports": {"count": 25, "of": 40}, "copied_supports": {"count": 0, "of": 40}}
    assert plain["training_facts"] == {"novel_images_kept": {"count": 31, "of": 200}}
    quiet = dataclasses.replace(one, facts=Facts({"copied_supports": (0, 40)}), training_facts=Facts())
    assert quiet.line().endswith("list abababab+cdcdcdcd]")
    assert [title for title, _ in FewShotResult.report_tables([quiet], False)] == [
        "percent, mean ± standard deviation over runs"
    ]


def test_a_class_that_never_appears_leaves_no_mean_where_the_protocol_has_none() -> None:
    plain = result(absent_in_the_first_run(PANET)).as_json()
    assert plain["mean_iou"] is None
    assert plain["line"].startswith("mIoU nan (1 to 2 of 2 classes)  binary")


def test_folds_with_seeds_of_their_own_name_all_of_them() -> None:
    results = [dataclasses.replace(result(by_hand(), fold=fold), seeds=[90 + fold, 7]) for fold in (0, 1)]
    assert "fold mean of 0,1, 1-way 5-shot, 2 x 7 episodes, seed 90 7 | 91 7, protocol panet" in fold_mean_line(results)
    assert fold_table(results)[0] == ["fold", "mIoU", "binary IoU", "run 1", "run 2"]
    assert fold_table(results[:1])[0][3:] == ["run 90", "run 7"]


def test_tables_and_json_agree_with_the_result() -> None:
    results = [result(by_hand(), fold=fold) for fold in (0, 1)]
    assert fold_table(results)[-1][:3] == ["mean", "33.75", fold_table(results)[1][2].split(" ")[0]]
    assert results[0].class_table()[1] == ["3", "cup", "42.50 ± 17.50", "60.00", "25.00"]
    body = json.loads(json.dumps(FewShotResult.report_json(results), allow_nan=False))
    assert body["folds"][0]["miou"] == [0.55, 0.125]
    assert body["folds"][0]["episode_iou"][1][1] is None
    assert body["mean"] == fold_mean_line(results)


def test_parts_stand_in_the_result_line() -> None:
    learners = LearnerScores(0.25, 0.5, 0.75, Coverage((2, 2), 2), Coverage((3, 4), 15))
    one = result(absent_in_the_first_run(), further={"learners": learners, "passes": PassScores(9, 3)})
    assert "  meta mIoU 25.00  meta binary IoU 50.00  base mIoU 75.00 (3 to 4 of 15)  [m; " in one.line()
    plain = one.as_json()
    assert plain["parts"] == {"meta mIoU": 0.25, "meta binary IoU": 0.5, "base mIoU": 0.75}
    assert (plain["images"], plain["passes"], plain["query_images"]) == (9, 3, 0)


def test_several_folds_are_reported_together() -> None:
    passes: dict[str, Scores] = {"passes": PassScores(20, 5, 4, 2)}
    results = [dataclasses.replace(result(by_hand(), fold=fold, further=passes), seconds=1.5) for fold in (0, 1)]
    lines = FewShotResult.report_lines(results)
    assert lines[:3] == [results[0].line(), results[1].line(), fold_mean_line(results)]
    assert lines[3] == "3.0 s; 10 passes through the backbone for 40 images (4.0 x fewer)"
    assert lines[4] == "steps that depend on the query alone: 4 passes for 8 queries (2.0 x fewer)"
    assert [title for title, _ in FewShotResult.report_tables(results, True)] == [
        "fold 0, IoU of each class in percent",
        "fold 1, IoU of each class in percent",
        "percent, mean ± standard deviation over runs",
    ]
    assert len(FewShotResult.report_lines([results[0], results[0]])) == 4  # one fold twice has no mean


# fixed classes

SETTING: dict[str, Any] = {"model": "m", "dataset": "d val", "images": 1, "of": 3, "test_size": "short side 5"}


def universal(classes: list[str], things: list[int], *metrics: Any) -> UniversalResult:
    measured = {metric.name: metric.scores() for metric in metrics}
    return UniversalResult(measured=measured, classes=classes, things=things, **SETTING)


def test_result_states_its_setting_and_its_classes() -> None:
    counts = SemanticIoU(2)
    counts.count(np.array([[0, 1]]), np.array([[0, 0]]))
    found = universal(["a", "b"], [1], counts)
    assert found.line() == (
        "mIoU 50.00 (1 of 2 classes)  fwIoU 50.00  pixel accuracy 50.00  [m; d val, 1 of 3 images, short side 5; "
        "mIoU of detectron2 (one confusion matrix, classes that the truth shows)]"
    )
    assert found.class_table()[1:] == [
        ["0", "a", "stuff", "50.00", "50.00"],
        ["1", "b", "thing", "-", "-"],
        ["", "mean", "", "50.00 (1 of 2)", "50.00 (1 of 2)"],
    ]
    plain = found.as_json()
    assert plain["semantic"]["class_iou"] == [0.5, None]
    assert "confusion" not in plain["semantic"]
    assert plain["confusion"] == [[1, 1, 0], [0, 0, 0]]
    assert plain["most_confused"] == [{"truth": "a", "predicted": "b", "share": 0.5, "pixels": 1}]
    assert plain["coverage"] == {"mIoU": {"classes": 1, "of": 2}}
    assert plain["panoptic"] is plain["instance"] is plain["layers"] is None
    assert found.main == ("mIoU", 0.5)


def test_a_mean_over_all_classes_says_nothing_more() -> None:
    counts = SemanticIoU(2)
    counts.count(np.array([[0, 1]]), np.array([[0, 1]]))
    found = universal(["a", "b"], [], counts)
    assert found.line().startswith("mIoU 100.00  fwIoU 100.00")
    assert found.class_table()[-1] == ["", "mean", "", "100.00", "100.00"]


def test_every_mean_says_over_how_many_classes_it_was_formed() -> None:
    """Eight classes, of which the truth and the prediction show two things, one of them wrongly, and no stuff."""
    panoptic, instance = PanopticQuality(8, range(5)), InstancePrecision(8)
    ids = np.array([[1, 1, 2, 2]])
    panoptic.count(ids, {1: 0, 2: 3}, ids, [Segment(1, 0), Segment(2, 0)])
    square = np.zeros((8, 8), dtype=bool)
    square[2:6, 2:6] = True
    instance.record(0, (8, 8), [(0, 0.9, square), (1, 0.8, square)], [(0, square, False, None)])
    found = universal([str(index) for index in range(8)], list(range(5)), panoptic, instance)
    assert found.line().startswith(
        "PQ 33.33 (2 of 8 classes)  SQ 50.00 (2 of 8)  RQ 33.33 (2 of 8)  PQ things 33.33 (2 of 5)  "
        "PQ stuff - (0 of 3)  AP 100.00 (1 of 8)  AP50 100.00 (1 of 8)  AP75 100.00 (1 of 8)  ["
    )
    plain = found.as_json()
    assert plain["coverage"]["PQ stuff"] == {"classes": 0, "of": 3}
    assert plain["coverage"]["AP50"] == {"classes": 1, "of": 8}
    assert plain["panoptic"]["things"]["classes"] == 2
    means = ["33.33 (2 of 8)", "50.00 (2 of 8)", "33.33 (2 of 8)", "100.00 (1 of 8)"]
    assert found.class_table()[-1] == ["", "mean", "", *means]
    assert found.main == ("PQ", pytest.approx(1 / 3))


def test_every_kind_of_fixed_classes_is_judged_by_its_first_task() -> None:
    semantic, instance = SemanticIoU(1), InstancePrecision(1)
    semantic.count(np.array([[0]]), np.array([[0]]))
    instance.record(0, (1, 1), [], [(0, np.ones((1, 1), dtype=bool), False, None)])
    assert universal(["a"], [0], semantic, instance).main == ("AP", 0.0)
    assert universal(["a"], [0], semantic).main == ("mIoU", 1.0)


def test_videos_without_truth_have_no_scores() -> None:
    setting: dict[str, Any] = {"videos": 2, "of": 2, "frames": 5, "test_size": "own size", "classes": ["a", "b"]}
    found = VideoEvaluation(model="m", dataset="d test", measured={}, **setting)
    assert found.line().startswith("no truth, no scores  [m; d test, 2 videos (5 frames), own size; video mask AP")
    assert found.scores() == {}
    assert found.as_json()["instances"] is None
    assert found.work() == "5 frames of 2 videos"
    with pytest.raises(ValueError, match="d test must have truth to score against, got none"):
        _ = found.main


def test_scores_of_videos_say_how_many_classes_they_are_of() -> None:
    metric, masks = VideoPrecision(2), [encode(np.ones((4, 4), dtype=bool))]
    metric.record(1, 1, [(0, 0.5, masks)], [(0, masks, False, [])])
    setting: dict[str, Any] = {"videos": 1, "of": 1, "frames": 1, "test_size": "own size", "classes": ["a", "b"]}
    found = VideoEvaluation(model="m", dataset="d", measured={metric.name: metric.scores()}, **setting)
    assert found.line().startswith("AP 100.00 (1 of 2 classes)  AP50 100.00 (1 of 2)")
    assert found.tables(True)[0][1][1:] == [["0", "a", "100.00"], ["1", "b", "-"], ["", "mean", "100.00 (1 of 2)"]]
    plain = found.as_json()
    assert plain["instances"]["class_ap"] == [pytest.approx(1.0), None]
    assert plain["coverage"]["AR10"] == {"classes": 1, "of": 2}
    assert found.main == ("AP", pytest.approx(1.0))


def test_base_classes_that_no_image_shows_are_told() -> None:
    metric = BaseClassIoU(3)
    metric.counts += torch.tensor([[90, 5, 5], [1, 1, 2], [0, 0, 0], [3, 0, 1]])
    found = BaseClassResult(
        measured={metric.name: metric.scores()},
        model="m",
        dataset="d",
        folds="f",
        fold=1,
        images=7,
        novel_images="dropped",
        size=[4, 4],
        classes={2: "a", 5: "b", 6: "c"},
    )
    assert found.line().startswith("base mIoU 50.00 (2 of 3 classes)  background 90.00  [m; d, f fold 1, ")
    assert "3 base classes, 1 of which appear in no image, 7 images" in found.line()
    assert "novel classes background, 4 x 4, novel images dropped in training" in found.line()
    plain = found.as_json()
    assert plain["class_iou"] == [0.25, None, 0.75]
    assert (plain["miou"], plain["background_iou"]) == (pytest.approx(0.5), pytest.approx(0.9))
    assert found.tables(True)[0][1][2:] == [["5", "b", "-"], ["6", "c", "75.00"], ["", "mean", "50.00 (2 of 3)"]]


# metrics together


def test_best_and_worst_items_do_not_overlap() -> None:
    quality = [(4, 0.9), (0, 0.5), (7, 0.1)]
    assert best_and_worst(quality, 2) == ([4, 0], [7])
    assert best_and_worst(quality, 1) == ([4], [7])


def test_a_metric_is_found_by_what_it_reads() -> None:
    setting = ClassSetting(3, things=(0,), detections=7)
    metrics = metrics_for(["semantic", "panoptic", "instance"], setting, "panoptic")
    assert list(metrics.metrics) == ["semantic", "panoptic", "instance"]
    assert metrics.main == "panoptic"
    assert {name: row.name for name, row in METRICS.items()} == {name: name for name in METRICS}
    instance = metrics.metrics["instance"]
    assert isinstance(instance, InstancePrecision)
    assert instance.limit == 7


def test_the_main_metric_says_how_well_an_item_went_and_sets_merge() -> None:
    parts = [metrics_for(["base classes"], ClassSetting(1)) for _ in range(2)]
    right, wrong = torch.tensor([[1, 1]]), torch.tensor([[1, 0]])
    parts[0].add(5, wrong, right)
    parts[1].add(2, right, right)
    parts[1].add(9, right, torch.full((1, 2), 255))  # nothing to compare
    whole = metrics_for(["base classes"], ClassSetting(1))
    whole.merge([part.state() for part in parts])
    assert whole.best_first() == [(2, 1.0), (5, 0.5)]
    assert whole.scores()["base classes"].summary()["base mIoU"] == pytest.approx(3 / 4)
