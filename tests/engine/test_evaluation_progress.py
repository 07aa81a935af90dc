"""Progress of an evaluation on disk: every item is counted exactly once, whenever it is killed, by any processes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fssops.engine import checkpoints
from fssops.engine.evaluation_progress import FOLDER, EvaluationProgress, discard_progress, weights_digest, without


class Group:
    """Processes that take their turns in one: the first one's broadcast is what the others get."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.said: list[Any] = []

    def fabric(self, rank: int) -> Any:
        group = self

        class Fabric:
            global_rank, world_size, is_global_zero = rank, group.world_size, rank == 0

            def broadcast(self, value: Any) -> Any:
                if rank == 0:
                    group.said.append(value)
                return group.said[-1]

            def barrier(self) -> None:
                return None

        return Fabric()


class Counter:
    """One process: keeps the items that it has counted."""

    def __init__(self, folder: Path, group: Group, rank: int, decisive: dict[str, Any] | None = None) -> None:
        self.items: list[int] = []
        self.progress = EvaluationProgress(folder, "count", decisive or {}, group.fabric(rank), every=0.0)

    def run(self, items: int, rng: random.Random | None = None) -> bool:
        """Count this process's share, or a part of it; whether it got through."""
        with self.progress:
            for item in self.progress.mine(range(items)):
                if rng is not None and rng.random() < 0.3:
                    return False
                self.items.append(item)
                self.progress.counted(item, lambda: {"items": list(self.items)})
        return True

    def all_items(self) -> list[int]:
        return self.items + [item for state in self.progress.states for item in state["items"]]


def killed(counter: Counter, items: int, rng: random.Random) -> None:
    """As :meth:`Counter.run`, but nothing is written at the end."""
    counter.progress.__exit__ = None  # type: ignore[method-assign, assignment]
    for item in counter.progress.mine(range(items)):
        if rng.random() < 0.3:
            return
        counter.items.append(item)
        counter.progress.counted(item, lambda: {"items": list(counter.items)})


@pytest.mark.parametrize("seed", range(8))
def test_every_item_counts_once_after_any_number_of_interruptions(tmp_path: Path, seed: int) -> None:
    rng, items = random.Random(seed), 40
    for _ in range(rng.randrange(1, 5)):
        group = Group(rng.randrange(1, 4))
        counters = [Counter(tmp_path, group, rank) for rank in range(group.world_size)]
        for counter in counters:
            killed(counter, items, rng)
    group = Group(rng.randrange(1, 4))
    counters = [Counter(tmp_path, group, rank) for rank in range(group.world_size)]
    assert all(counter.run(items) for counter in counters)
    assert sorted(item for counter in counters for item in counter.all_items()) == list(range(items))


def test_a_finished_evaluation_is_not_made_again_until_its_results_are_written(tmp_path: Path) -> None:
    Counter(tmp_path, Group(1), 0).run(5)
    again = Counter(tmp_path, Group(1), 0)
    assert again.progress.mine(range(5)) == []
    assert again.all_items() == [0, 1, 2, 3, 4]
    discard_progress(tmp_path, Group(1).fabric(0))
    assert not (tmp_path / FOLDER).exists()
    assert Counter(tmp_path, Group(1), 0).progress.mine(range(5)) == [0, 1, 2, 3, 4]


def test_other_settings_or_weights_begin_anew(tmp_path: Path) -> None:
    Counter(tmp_path, Group(1), 0, {"weights": "a"}).run(5)
    assert len(Counter(tmp_path, Group(1), 0, {"weights": "b"}).progress.mine(range(5))) == 5
    assert len(Counter(tmp_path, Group(1), 0, {"weights": "a"}).progress.mine(range(5))) == 0


def test_a_damaged_file_is_counted_again(tmp_path: Path) -> None:
    group = Group(2)
    for counter in [Counter(tmp_path, group, rank) for rank in range(2)]:
        counter.run(6)
    path = next((tmp_path / FOLDER).glob("*-1.pt"))
    path.write_bytes(path.read_bytes()[:-5])
    assert Counter(tmp_path, Group(1), 0).progress.mine(range(6)) == [1, 3, 5]


def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    progress = EvaluationProgress(None, "x", {}, Group(2).fabric(1))
    with progress:
        assert progress.mine(range(5)) == [1, 3]
        progress.counted(1, dict)
    assert not list(tmp_path.iterdir())


def test_a_digest_knows_names_shapes_and_bytes() -> None:
    state = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    for other in ({**state, "a": state["a"].view(2, 3)}, {**state, "b": torch.tensor(4)}, {"c": state["a"]}):
        assert weights_digest(other) != weights_digest(state)


def test_settings_that_do_not_decide_are_left_out() -> None:
    tables = {"name": "r", "eval": {"workers": 1, "runs": 2}, "optim": {"lr": 1}}
    assert without(tables, "name", "optim", "eval.workers") == {"eval": {"runs": 2}}


def test_a_full_disk_ends_the_keeping_not_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Any, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    counter = Counter(tmp_path, Group(1), 0)
    assert counter.run(5)
    assert counter.items == [0, 1, 2, 3, 4]
    assert caplog.text.count("progress is no longer kept: checkpoint: ") == 1
