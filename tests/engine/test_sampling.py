"""The stream of items: exact, endless, the same for any number of workers and processes."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from engine_toy import ToyBatch, ToyData
from hypothesis import given, settings
from hypothesis import strategies as st

from fssops.engine.sampling import (
    Draw,
    DrawnDataset,
    StepSampler,
    UnreadableItemError,
    mix_seed,
    pass_length,
    permutation,
)
from fssops.engine.settings import EngineSettings
from fssops.engine.training_stream import TrainingStream


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 50),
    micro=st.integers(1, 4),
    world=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    start=st.integers(0, 9),
)
def test_processes_share_the_stream_without_overlap_or_gap(
    length: int, micro: int, world: int, accumulate: int, start: int
) -> None:
    batch = micro * world * accumulate

    def steps(rank: int, world_size: int, first: int, count: int) -> list[list[tuple[int, int]]]:
        sampler = StepSampler(
            length, batch, 7, start_step=first, rank=rank, world_size=world_size, accumulate=accumulate
        )
        micros = list(islice(sampler, count * accumulate))
        return [[tuple(d) for m in micros[i : i + accumulate] for d in m] for i in range(0, len(micros), accumulate)]

    whole = steps(0, 1, 0, start + 2)
    parts = [steps(rank, world, start, 2) for rank in range(world)]
    for step in range(2):
        together = sorted((d for part in parts for d in part[step]), key=lambda d: d[1])
        assert together == whole[start + step]
    positions = [position for step in whole for _, position in step]
    assert positions == list(range(len(positions)))


def test_each_pass_holds_every_item_once_in_its_own_order() -> None:
    sampler = StepSampler(10, 5, seed=3)
    drawn = [draw.item for batch in islice(sampler, 4) for draw in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_seed_decides_the_order() -> None:
    def order(seed: int) -> list[int]:
        return [draw.item for batch in islice(StepSampler(40, 4, seed), 10) for draw in batch]

    assert order(1) == order(1)
    assert order(1) != order(2)


def stream(workers: int, start: int = 0, count: int = 6, **options: object) -> list[ToyBatch]:
    engine = EngineSettings(batch_size=4, workers=workers, **options)  # type: ignore[arg-type]
    source = TrainingStream(ToyData(), ToyBatch.stack, engine, start_step=start)
    try:
        return list(islice(source, count))
    finally:
        source.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_count_does_not_change_the_data(workers: int) -> None:
    for here, there in zip(stream(0), stream(workers), strict=True):
        assert here.image_names == there.image_names
        assert torch.equal(here.inputs, there.inputs)


def test_stream_can_start_at_any_step() -> None:
    for here, there in zip(stream(0)[4:], stream(0, start=4, count=2), strict=True):
        assert torch.equal(here.inputs, there.inputs)


def test_an_item_is_drawn_anew_in_every_pass() -> None:
    batches = stream(0, count=20)
    seen = [
        batch.inputs[row] for batch in batches for row, name in enumerate(batch.image_names) if name == "image5.jpg"
    ]
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_loader_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    stream(0)
    stream(1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_item_stops_with_its_name(workers: int) -> None:
    source = TrainingStream(ToyData(unreadable=3), ToyBatch.stack, EngineSettings(batch_size=4, workers=workers))
    with pytest.raises(
        UnreadableItemError, match=r"item 3 must be readable, got image3\.jpg: cannot identify"
    ) as caught:
        list(islice(source, 12))
    source.close()
    assert "Traceback" not in str(caught.value)
    assert "engine.on_unreadable=skip" in str(caught.value)


def test_unreadable_item_is_replaced_and_reported_on_request() -> None:
    reports: list[str] = []
    data = DrawnDataset(ToyData(unreadable=3), 0, report=reports.append)
    names = [data[Draw(place, place)][2] for place in range(5)]
    assert names == ["image0.jpg", "image1.jpg", "image2.jpg", "image4.jpg", "image4.jpg"]
    assert reports == ["skipped item 3: image3.jpg: cannot identify image file"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replaced_item_is_told_of_by_the_process_that_trains(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    engine = EngineSettings(batch_size=4, workers=workers, on_unreadable="skip")
    source = TrainingStream(ToyData(unreadable=3), ToyBatch.stack, engine)
    names = [name for batch in islice(source, 9) for name in batch.image_names]
    source.close()
    assert "image3.jpg" not in names
    told = [record.getMessage() for record in caplog.records]
    assert told == ["training data: skipped item 3: image3.jpg: cannot identify image file"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"length": 0, "batch_size": 1}, "length must be at least 1, got 0"),
        ({"length": 5, "batch_size": 3, "world_size": 2}, "multiple of world_size \\* accumulate = 2, got 3"),
        ({"length": 5, "batch_size": 2, "world_size": 2, "rank": 2}, "rank must lie in \\[0, 2\\), got 2"),
    ],
)
def test_impossible_sampler_is_refused(arguments: dict[str, int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        StepSampler(seed=0, **arguments)


def test_seeds_are_mixed_by_splitmix64() -> None:
    """The published sequence of seed 1234567 (the top 63 of its 64 bits); neighbouring seeds are steps of it."""
    sequence = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    first = 1234567 - 0x632BE59BD9B4E019
    assert [mix_seed(step, first) for step in range(1, 5)] == [value >> 1 for value in sequence]
    assert len({mix_seed(seed, number) for seed in range(20) for number in range(20)}) == 400


def test_a_pass_is_drawn_from_seed_and_number_alone() -> None:
    def order(seed: int, number: int) -> list[int]:
        return torch.randperm(30, generator=torch.Generator().manual_seed(mix_seed(seed, number))).tolist()

    assert permutation(30, 5, 2).tolist() == order(5, 2) != order(2, 5)
    drawn = [draw.item for batch in islice(StepSampler(30, 6, seed=5, start_step=10), 5) for draw in batch]
    assert drawn == order(5, 2)


def test_an_item_draws_from_the_seed_after_that_of_the_order_and_its_place_in_the_stream() -> None:
    """So that the numbers of a pass's order never come back as those of an item."""
    data = DrawnDataset(ToyData(), 8)
    generator = torch.Generator().manual_seed(mix_seed(9, 70))
    assert torch.equal(data[Draw(5, 70)][0], torch.randn(4, generator=generator))
    assert len(data) == 37
    plain = DrawnDataset([10, 20, 30], 8)
    assert plain[Draw(2, 7)] == 30


def test_items_are_sought_at_most_ten_places_on_and_around_the_end() -> None:
    class Bad(ToyData):
        def __init__(self, good: set[int]) -> None:
            super().__init__(length=20)
            self.good = good

        def draw(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, str]:
            if index not in self.good:
                raise ValueError(f"bad {index}")
            return super().draw(index, generator)

    told: list[str] = []
    assert DrawnDataset(Bad({2}), 0, report=told.append)[Draw(13, 0)][2] == "image2.jpg"
    assert len(told) == 9
    assert told[0] == "skipped item 13: bad 13"
    assert told[-1] == "skipped item 1: bad 1"
    with pytest.raises(UnreadableItemError, match=r"item 12 must be readable, got bad 1$"):
        DrawnDataset(Bad({2}), 0, report=told.append)[Draw(12, 0)]


def test_items_come_as_often_as_they_are_repeated_and_a_stream_can_begin_anywhere() -> None:
    repeats = [1.0, 1.0, 2.5, 1.25, 4.0]
    length = pass_length(repeats)
    assert length == 10
    counts = torch.zeros(5)
    for items in islice(StepSampler(5, length, 3, repeats=repeats), 400):
        of_pass = torch.bincount(torch.tensor([draw.item for draw in items]), minlength=5)
        assert (of_pass >= 1).all()
        assert (of_pass - torch.tensor(repeats)).abs().max() < 1.2
        counts += of_pass
    torch.testing.assert_close(counts / 400, torch.tensor(repeats) * length / sum(repeats), rtol=0.03, atol=0)
    whole = list(islice(StepSampler(5, 4, 3, repeats=repeats), 9))
    assert list(islice(StepSampler(5, 4, 3, repeats=repeats, start_step=6), 3)) == whole[6:]
    assert whole[0] != whole[5]
