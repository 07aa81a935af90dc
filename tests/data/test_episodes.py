"""Episode lists: what is drawn, that it repeats exactly, and how it is kept."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import episode_draws, folds
from fssops.data.episodes import EpisodeList
from fssops.data.errors import AnnotationError, TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data


@pytest.fixture
def source() -> FewShotSource:
    return open_data("generated", size=32, images_per_class=6, truth="few-shot")


def test_same_seed_same_list_and_another_seed_another(source: FewShotSource) -> None:
    a, b, c = (EpisodeList.draw(source, [1, 5, 9], shots=2, episodes=30, seed=s) for s in (7, 7, 8))
    assert a == b
    assert a.hash == b.hash
    assert a.hash != c.hash
    assert a.episodes != c.episodes


def test_drawn_lists_never_change_between_versions(voc_folder: Path) -> None:
    """Results name their lists by hash: a change of the draw would make them irreproducible."""
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    balanced = EpisodeList.draw(source, [1, 2, 3], ways=2, episodes=50, seed=1)
    assert balanced[0].classes == (2, 3)
    assert (balanced[0].support, balanced[0].query) == ((("im04",), ("im05",)), ("im01",))
    hashes = {d: EpisodeList.draw(source, [1, 2, 3], episodes=50, seed=1, draw=d).hash[:16] for d in DRAWS}
    assert hashes == DRAWS


DRAWS = {"balanced": "9afcca478771047f", "panet": "d140be8637080023", "list": "86abe71f301c78b6"}


def test_longer_list_begins_with_the_shorter_one(source: FewShotSource) -> None:
    short = EpisodeList.draw(source, [1, 5, 9], episodes=10)
    long = EpisodeList.draw(source, [1, 5, 9], episodes=40)
    assert long.episodes[:10] == short.episodes


def test_shape_of_episodes_is_as_asked(source: FewShotSource) -> None:
    for e in EpisodeList.draw(source, list(source.classes), ways=3, shots=2, queries=4, episodes=20):
        assert len(set(e.classes)) == 3
        assert [len(names) for names in e.support] == [2, 2, 2]
        assert len(e.query) == len(e.query_ways) == 4
        for way, names in enumerate(e.support):
            drawn_for_way = [*names, *(q for q, w in zip(e.query, e.query_ways, strict=True) if w == way)]
            assert all(e.classes[way] in source.classes_of(name) for name in drawn_for_way)


def test_no_image_occurs_twice_in_a_balanced_episode(source: FewShotSource) -> None:
    # Classes 1 and 5 share many images: one is the distractor of the other.
    for e in EpisodeList.draw(source, [1, 5], ways=2, shots=3, queries=3, episodes=200):
        names = [n for way in e.support for n in way] + list(e.query)
        assert len(set(names)) == len(names)


def test_classes_and_query_ways_are_balanced(source: FewShotSource) -> None:
    episodes = EpisodeList.draw(source, [1, 5, 9, 13], ways=2, episodes=2000)
    drawn = Counter(c for e in episodes for c in e.classes)
    assert all(900 < drawn[c] < 1100 for c in (1, 5, 9, 13))
    ways = Counter(e.query_ways[0] for e in episodes)
    assert 900 < ways[0] < 1100


def panet_lists(pools: dict[int, list[str]], ways: int, shots: int, queries: int, episodes: int, seed: int):  # type: ignore[no-untyped-def]
    """PANet's order of draws, written from its description: counts of queries first, then per episode the classes and
    for each class its images."""
    rng = random.Random(seed)
    counts = np.bincount(rng.choices(population=range(ways), k=queries), minlength=ways)
    elements = [shots + int(n) for n in counts]
    sets = list(pools.values())
    indices = [
        [
            (d, i)
            for n, d in enumerate(rng.sample(range(len(sets)), k=ways))
            for i in rng.sample(range(len(sets[d])), k=elements[n])
        ]
        for _ in range(episodes)
    ]
    ends = np.cumsum([0, *elements])
    for pairs in indices:
        names = [sets[d][i] for d, i in pairs]
        support = [tuple(names[ends[w] + s] for s in range(shots)) for w in range(ways)]
        query = [names[ends[w + 1] - j - 1] for w in range(ways) for j in range(counts[w])]
        yield [list(pools)[pairs[ends[w]][0]] for w in range(ways)], support, query


@pytest.mark.parametrize(("ways", "shots", "queries"), [(1, 1, 1), (1, 5, 1), (2, 1, 1), (3, 2, 4)])
def test_panet_draw_repeats_the_published_generator(source: FewShotSource, ways: int, shots: int, queries: int) -> None:
    classes = [2, 6, 10, 14]
    drawn = EpisodeList.draw(
        source, classes, ways=ways, shots=shots, queries=queries, episodes=40, seed=1234, draw="panet"
    )
    pools = {c: source.images_of(c) for c in classes}
    for e, (expected_classes, support, query) in zip(
        drawn, panet_lists(pools, ways, shots, queries, 40, 1234), strict=True
    ):
        assert list(e.classes) == expected_classes
        assert list(e.support) == support
        assert list(e.query) == query
    assert len({e.query_ways for e in drawn}) == 1, "the ways of the queries are drawn once a list"


def test_panet_draw_may_use_an_image_for_two_ways_but_not_twice_for_one(source: FewShotSource) -> None:
    drawn = EpisodeList.draw(source, [1, 5], ways=2, shots=3, episodes=300, draw="panet")
    shared = 0
    for e in drawn:
        for way, names in enumerate(e.support):
            own = [*names, *(q for q, w in zip(e.query, e.query_ways, strict=True) if w == way)]
            assert len(set(own)) == len(own)
        shared += len(set(e.support[0]) & set(e.support[1])) > 0
    assert shared > 0


def test_panet_draw_on_coco_lists_every_annotated_image_in_the_published_order(
    coco_folder: Callable[..., Path],
) -> None:
    crowd = {"image_id": 2, "category_id": 1, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [0, 2400]}}
    box = [1, 1, 9, 1, 9, 9, 1, 9]
    things = [{"image_id": i, "category_id": 1, "segmentation": [box]} for i in (30, 7, 1)]
    source = open_data("coco", coco_folder([*things, crowd], images=40), split="train", truth="few-shot")
    assert set(source.images_of(1)) == {f"{i:012d}.jpg" for i in (1, 7, 30)}
    drawn = EpisodeList.draw(source, [1], shots=3, episodes=5, draw="panet")
    order = [f"{i:012d}.jpg" for i in set([30, 7, 1, 2])]  # noqa: C405  the published code iterates a set built from a list
    for e, (_, support, query) in zip(drawn, panet_lists({1: order}, 1, 3, 1, 5, 1234), strict=True):
        assert (list(e.support), list(e.query)) == (support, query)


def test_list_draw_runs_through_the_images_and_reverses_supports(source: FewShotSource) -> None:
    classes = [1, 5, 9]
    drawn = EpisodeList.draw(source, classes, shots=2, episodes=100, seed=321, draw="list", min_area=20)
    pools = {c: source.images_of(c, 20) for c in classes}
    order = [n for n in source.names if any(n in pool for pool in pools.values())]
    rng = random.Random(321)
    for index, e in enumerate(drawn):
        query = order[index % len(order)]
        present = [c for c in source.classes_of(query) if c in classes]
        chosen = present[rng.randint(1, len(present)) - 1]
        picked: list[int] = []
        for _ in range(2):
            rng.randint(1, len(pools[chosen]))
            while True:
                number = rng.randint(1, len(pools[chosen])) - 1
                if pools[chosen][number] != query and number not in picked:
                    break
            picked.append(number)
        assert (e.classes, e.query) == ((chosen,), (query,))
        assert e.support == (tuple(pools[chosen][n] for n in picked[::-1]),)


def test_shuffled_draw_repeats_supports_only_where_there_are_no_more_than_it_draws(source: FewShotSource) -> None:
    """The published draw takes five supports whatever the shots: from five images, of which one is the query, some come
    twice; from six, none."""
    name = {number: list(source.images_of(number)) for number in (1, 5, 9)}
    for size in (5, 6):
        pools = {1: name[1][:size]}
        drawn = episode_draws.draw_shuffled(source, pools, shots=5, episodes=40, seed=3)
        assert len(drawn) == 40
        repeated = [len(set(e.support[0])) < 5 for e in drawn]
        assert all(repeated) if size == 5 else not any(repeated)
        assert all(e.query[0] not in e.support[0] for e in drawn)
        # Every image is the query as often as the others, but for the last round.
        rounds = Counter(e.query[0] for e in drawn)
        assert set(rounds) == set(pools[1])
        assert max(rounds.values()) - min(rounds.values()) <= 1


def test_class_with_too_few_images_is_named_with_fold_rule_and_count(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    fold = folds.pascal5i(1)
    with pytest.raises(TooFewImagesError) as error:
        EpisodeList.draw(source, [7], shots=5, min_area=2048, avoid=[1], fold=fold)
    text = str(error.value)
    assert "every class of pascal5i fold 1 (panet) must have at least 6 images" in text
    assert "at least 2048 px of it" in text
    assert "no avoided class in them" in text
    assert "'car' (7): 0" in text


def test_classes_with_too_few_images_can_be_left_out_and_are_recorded(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    drawn = EpisodeList.draw(source, [1, 2, 3, 7, 8], shots=2, episodes=20, too_few="skip")
    assert drawn.dropped == {7: 1, 8: 0}
    assert {c for e in drawn for c in e.classes} == {1, 2, 3}
    with pytest.raises(TooFewImagesError, match="2-way episodes must have at least 2 usable classes, got 0"):
        EpisodeList.draw(source, [7, 8], ways=2, too_few="skip")


def test_images_with_novel_classes_are_dropped_on_request_only(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    kept = EpisodeList.draw(source, [1], shots=1, episodes=50)
    dropped = EpisodeList.draw(source, [1], shots=1, episodes=50, avoid=[7])
    assert "im00" in kept.names()
    assert "im00" not in dropped.names()
    assert kept.hash != dropped.hash


def test_classes_that_share_all_their_images_end_in_an_error_not_in_a_loop(tmp_path: Path) -> None:
    for i in range(3):
        for folder, pixels in (("images", np.zeros((4, 4, 3))), ("labels", np.array([[1, 2, 0, 0]] * 4))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "classes.json").write_text('["background", "a", "b"]')
    with pytest.raises(TooFewImagesError, match="share too many of their images"):
        EpisodeList.draw(open_data("folder", tmp_path, truth="few-shot"), [1, 2], ways=2, shots=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 0}, "ways must be an integer of at least 1, got 0"),
        ({"shots": 1.5}, "shots must be an integer of at least 1, got 1.5"),
        ({"episodes": True}, "episodes must be an integer"),
        ({"draw": "x"}, "draw must be balanced, panet, list, shuffled or independent, got 'x'"),
        ({"too_few": "x"}, "too_few must be error or skip, got 'x'"),
        ({"draw": "list", "queries": 2}, "draw 'list' must have 1 way and 1 query, got 1 and 2"),
    ],
)
def test_bad_option_is_an_error(source: FewShotSource, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeList.draw(source, [1], **options)


def test_unknown_and_repeated_classes_are_errors(source: FewShotSource) -> None:
    with pytest.raises(ValueError, match=r"got unknown \[99\]"):
        EpisodeList.draw(source, [1, 99])
    with pytest.raises(ValueError, match=r"got repeated \[1, 1\]"):
        EpisodeList.draw(source, [1, 1])


def test_independent_draw_repeats_the_published_generator(source: FewShotSource) -> None:
    classes = [2, 5, 9]
    drawn = EpisodeList.draw(source, classes, shots=3, episodes=40, seed=0, draw="independent")
    pools = {c: source.images_of(c) for c in classes}
    rng = np.random.RandomState(0)  # what numpy's global functions draw from after np.random.seed(0)
    for spec in drawn:
        class_id = rng.choice(classes, 1, replace=False)[0]
        query = rng.choice(pools[class_id], 1, replace=False)[0]
        support: list[str] = []
        while True:
            name = rng.choice(pools[class_id], 1, replace=False)[0]
            if query != name:
                support.append(name)
            if len(support) == 3:
                break
        assert (spec.classes, spec.query, spec.support) == ((class_id,), (query,), (tuple(support),))
    assert any(len(set(spec.support[0])) < 3 for spec in drawn), "the same image may be a support twice"


def test_list_file_keeps_everything_and_its_hash(source: FewShotSource, tmp_path: Path) -> None:
    drawn = EpisodeList.draw(source, [1, 5, 9], ways=2, shots=2, queries=2, episodes=25, fold="some fold")
    drawn.save(tmp_path / "new" / "list.json")
    loaded = EpisodeList.load(tmp_path / "new" / "list.json")
    assert loaded == drawn
    assert loaded.hash == drawn.hash == json.loads((tmp_path / "new" / "list.json").read_text())["hash"]
    loaded.check(source)
    assert (tmp_path / "new" / "list.json").stat().st_mode & 0o777 == 0o644
    whole = dataclasses.replace(drawn, dropped={13: 2, 17: 1})
    whole.save(tmp_path / "list.json")
    again = EpisodeList.load(tmp_path / "list.json")
    assert (again, again.dropped, again.class_names) == (whole, {13: 2, 17: 1}, drawn.class_names)


def test_changed_cut_or_foreign_list_file_is_refused(source: FewShotSource, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    drawn = EpisodeList.draw(source, [1, 5], episodes=5)
    drawn.save(file)
    text = file.read_text()
    file.write_text(text.replace(drawn[0].query[0], drawn[0].support[0][0]))
    with pytest.raises(AnnotationError, match=r"list\.json: episode list must be as it was written"):
        EpisodeList.load(file)
    file.write_text(text[: len(text) // 2])
    with pytest.raises(AnnotationError, match="must be complete JSON"):
        EpisodeList.load(file)
    for other in ("[]", '{"format": "coco"}', '{"format": "fssops-episodes-1"}'):
        file.write_text(other)
        with pytest.raises(AnnotationError):
            EpisodeList.load(file)
    with pytest.raises(FileNotFoundError, match="episode list must exist"):
        EpisodeList.load(tmp_path / "none.json")


def test_full_disk_leaves_the_old_list_and_no_rubbish(
    source: FewShotSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = EpisodeList.draw(source, [1], episodes=2)
    old.save(tmp_path / "list.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fssops.data.episodes.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        EpisodeList.draw(source, [1], episodes=3).save(tmp_path / "list.json")
    assert EpisodeList.load(tmp_path / "list.json") == old
    assert [p.name for p in tmp_path.iterdir()] == ["list.json"]


def test_list_of_another_data_set_is_refused(source: FewShotSource, voc_folder: Path) -> None:
    drawn = EpisodeList.draw(source, [1], episodes=2)
    with pytest.raises(AnnotationError, match=r"every image of the episode list, got none named 'train-"):
        drawn.check(open_data("voc", voc_folder, truth="few-shot"))


def test_list_does_not_depend_on_the_machine(voc_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(voc_folder, tmp_path / "elsewhere")
    lists = [
        EpisodeList.draw(open_data("voc", root, split="train", truth="few-shot"), [1, 2], episodes=10)
        for root in (voc_folder, tmp_path / "elsewhere")
    ]
    assert lists[0].hash == lists[1].hash
