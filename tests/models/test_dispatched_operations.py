"""How much a prediction hands to the dispatcher: on a GPU launches bound it, and a read by the host stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import fssops
from fssops.structures import FewShotBatch, ImageBatch
from fssops.testing.dispatched import DispatchedOperations, dispatched

SIDE = 64
"""Of the images; the counts are those of any size."""


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


def prediction(name: str, model: nn.Module) -> Callable[[], Any]:
    """One prediction: of an episode with a support, of an image, or of a clip of two frames."""
    task, image = fssops.models.MODELS[name].task, torch.randn(1, 3, SIDE, SIDE)
    if task.startswith("few-shot"):
        mask = torch.zeros(1, 1, 1, SIDE, SIDE)
        mask[..., 10:30, 15:45] = 1
        labels = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.int64)
        batch = FewShotBatch(
            image[None, None], mask, 1 - mask, image[None], labels, torch.ones(1, 1, dtype=torch.int64)
        )
        return lambda: model(batch)
    if name in ("pspnet", "mm_former_segmenter"):
        return lambda: model(image)
    if name == "per_pixel_baseline":
        return lambda: model(ImageBatch([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)]))
    if task == "video":
        return lambda: model.predict(image.expand(2, -1, -1, -1), None, auxiliary=False, frames=2)
    return lambda: model.predict(image, None, auxiliary=False)


def test_every_system_is_counted() -> None:
    assert set(MOST) | UNCOUNTED == set(fssops.list_models())


@pytest.mark.parametrize("name", MOST)
def test_a_prediction_dispatches_no_more_than_it_did(name: str) -> None:
    run = prediction(name, fssops.create_model(name).eval())
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
