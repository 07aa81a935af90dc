"""How much a prediction hands to the dispatcher: on a GPU launches bound it, and a read by the host stops it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import fssops
from fssops.testing.dispatched import DispatchedOperations, dispatched, one_prediction


class Counted(NamedTuple):
    """Most operations of one prediction after the first, and reads by the host among them."""

    float32: int
    bfloat16: int
    host_reads: int = 0


MOST: dict[str, Counted] = {
    "panet": Counted(69, 73),
    "msanet": Counted(603, 643, host_reads=28),
    "pspnet": Counted(178, 185),
    "mm_former": Counted(898, 1073, host_reads=3),
    "mm_former_segmenter": Counted(481, 623),
    "prototype_matching": Counted(350, 356),
    "maskformer": Counted(275, 305),
    "mask2former": Counted(471, 614),
    "mask2former_vis": Counted(526, 669),
    "mp_former": Counted(444, 578),
    "per_pixel_baseline": Counted(155, 156),
}
"""Of every system with its published sizes. These may fall, not grow; they are noted when one falls."""

UNCOUNTED = {"insid3"}
"""What they dispatch goes with the clusters that they find."""


def test_every_system_is_counted() -> None:
    assert set(MOST) | UNCOUNTED == set(fssops.list_models())


@pytest.mark.parametrize("name", MOST)
def test_a_prediction_dispatches_no_more_than_it_did(name: str) -> None:
    run = one_prediction(name)
    most, plain, autocast = MOST[name], dispatched(run), dispatched(run, torch.bfloat16)
    assert plain.total <= most.float32
    assert autocast.total <= most.bfloat16
    for operations in (plain, autocast):
        assert sum(operations.host_reads.values()) <= most.host_reads, operations.host_reads


def test_views_are_not_counted_and_reads_by_the_host_are_told() -> None:
    x = torch.arange(4.0)
    with DispatchedOperations() as operations:
        assert x.view(2, 2).t()[0].sum().item() == 2
        x.nonzero()
    assert operations.total == 3
    assert operations.host_reads == {"aten::_local_scalar_dense": 1, "aten::nonzero": 1}
