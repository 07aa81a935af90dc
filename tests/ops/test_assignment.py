"""Assignment of a batch of cost matrices, against scipy."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from fssops import _native, ops

SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9))
# Few values make many ties; wide ones try the arithmetic.
TIED = st.integers(-3, 3).map(float)
WIDE = st.floats(-1e6, 1e6, allow_nan=False, width=32)
FORBIDDING = st.one_of(TIED, st.just(math.inf))


def _equals_scipy(costs: list[np.ndarray]) -> None:
    found = ops.assign(costs)
    assert len(found) == len(costs)
    for cost, (rows, columns) in zip(costs, found, strict=True):
        want_rows, want_columns = linear_sum_assignment(cost)
        assert rows.tolist() == want_rows.tolist()
        assert columns.tolist() == want_columns.tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(SHAPES.flatmap(lambda s: hnp.arrays(np.float64, s, elements=TIED)), max_size=5))
def test_same_pairs_as_scipy_among_equal_optima(costs: list[np.ndarray]) -> None:
    _equals_scipy(costs)


@settings(max_examples=100, deadline=None)
@given(st.lists(SHAPES.flatmap(lambda s: hnp.arrays(np.float32, s, elements=WIDE)), min_size=1, max_size=5))
def test_same_pairs_as_scipy_for_wide_values(costs: list[np.ndarray]) -> None:
    _equals_scipy(costs)


@settings(max_examples=150, deadline=None)
@given(SHAPES.flatmap(lambda s: hnp.arrays(np.float64, s, elements=FORBIDDING)))
def test_forbidden_pairs_are_treated_as_by_scipy(cost: np.ndarray) -> None:
    try:
        want = linear_sum_assignment(cost)
    except ValueError:
        with pytest.raises(ValueError, match=r"assign: costs\[0\] must allow a complete assignment"):
            ops.assign([cost])
        return
    rows, columns = ops.assign([cost])[0]
    assert rows.tolist() == want[0].tolist()
    assert columns.tolist() == want[1].tolist()


@pytest.mark.parametrize("shape", [(100, 20), (20, 100), (60, 60), (1, 50), (300, 280)], ids=str)
def test_same_pairs_as_scipy_at_the_size_of_a_matcher(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    _equals_scipy([generator.normal(size=shape).astype(np.float32) for _ in range(12)])


def test_hand_derived_assignment() -> None:
    # Row 0 gives up its cheapest column, for 1 + 2 + 2 in all; greedily it would be 0 + 5 + 2 or worse.
    rows, columns = ops.assign([torch.tensor([[0.0, 1.0, 9.0], [2.0, 9.0, 5.0], [9.0, 9.0, 2.0]])])[0]
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [1, 0, 2]


def test_equal_costs_give_the_identity() -> None:
    rows, columns = ops.assign([torch.zeros(4, 6)])[0]
    assert rows.tolist() == columns.tolist() == [0, 1, 2, 3]


def test_empty_batch_and_empty_matrices() -> None:
    assert ops.assign([]) == []
    for shape in ((0, 0), (0, 5), (5, 0)):
        (rows, columns), (one, _) = ops.assign([torch.zeros(shape), torch.zeros(1, 1)])
        assert rows.shape == columns.shape == (0,)
        assert one.tolist() == [0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"assign: costs\[1\] must be free of NaN and -inf, got nan at row 2, column 3"),
        (-math.inf, r"assign: costs\[1\] must be free of NaN and -inf, got -inf at row 2, column 3"),
    ],
    ids=["nan", "minus_inf"],
)
def test_bad_entries_are_named(value: float, message: str) -> None:
    bad = torch.zeros(4, 5)
    bad[2, 3] = value
    with pytest.raises(ValueError, match=message):
        ops.assign([torch.zeros(3, 3), bad])


@pytest.mark.parametrize(("shape", "line"), [((2, 4), "row 1"), ((4, 2), "column 1")], ids=["wide", "tall"])
def test_infeasible_matrix_is_named_with_its_line(shape: tuple[int, int], line: str) -> None:
    cost = torch.zeros(shape)
    (cost if shape[0] < shape[1] else cost.T)[1] = math.inf
    with pytest.raises(ValueError, match=rf"costs\[0\] must allow a complete assignment, .* {line} without a partner"):
        ops.assign([cost])


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"assign: costs\[1\] must have shape \[Q, G\], got \[3\]"):
        ops.assign([torch.zeros(2, 2), torch.zeros(3)])
    with pytest.raises(TypeError, match=r"costs\[0\] must be real"):
        ops.assign([torch.zeros(2, 2, dtype=torch.complex64)])
    with pytest.raises(ValueError, match="costs must hold 9 entries, got 4"):
        _native.extension().assign(np.zeros(4), [(3, 3)])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads_does_not_change_the_pairs(threads: int) -> None:
    costs = np.random.default_rng(1).normal(size=(200, 60, 50))  # enough work for five threads
    rows, columns = _native.extension().assign(costs.reshape(-1), [(60, 50)] * 200, threads)
    want = [linear_sum_assignment(cost) for cost in costs]
    assert np.array_equal(rows, np.concatenate([w[0] for w in want]))
    assert np.array_equal(columns, np.concatenate([w[1] for w in want]))


def test_other_python_threads_run_meanwhile() -> None:
    costs = np.random.default_rng(2).normal(size=(1, 900, 900))
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1

    other = threading.Thread(target=count)
    other.start()
    before = counted
    _native.extension().assign(costs.reshape(-1), [(900, 900)], 1)
    after = counted
    done.set()
    other.join()
    assert after > before


def test_reference_backend_is_scipy() -> None:
    costs = [torch.randn(6, 4), torch.randn(3, 3)]
    for mine, scipys in zip(ops.assign(costs), ops.assign(costs, backend="reference"), strict=True):
        assert torch.equal(mine[0], scipys[0])
        assert torch.equal(mine[1], scipys[1])
    with pytest.raises(ValueError, match=r"costs\[0\] must have an assignment"):
        ops.assign([torch.full((2, 2), math.inf)], backend="reference")


@pytest.mark.gpu
def test_pairs_come_back_on_the_device_of_the_costs() -> None:
    cost = torch.randn(7, 5)
    rows, columns = ops.assign([cost.cuda()])[0]
    want = linear_sum_assignment(cost.numpy())
    assert rows.device.type == columns.device.type == "cuda"
    assert rows.tolist() == want[0].tolist()
    assert columns.tolist() == want[1].tolist()
