"""A bad number in any system: what it names, what it keeps, and what a replay says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_systems import SYSTEMS, tiny_settings, tiny_trainer
from torch import nn

from fssops.engine.nonfinite import NonFiniteError
from fssops.losses.mask_criterion import bad_cost_term
from fssops.structures import MaskPredictions
from fssops.tasks.training import replay


def poisoned(system: str, folder: Path, *overrides: str) -> tuple[Any, str]:
    """A trainer whose backbone has a NaN in a weight, and that weight's name."""
    trainer = tiny_trainer(tiny_settings(system, *overrides), folder)
    names = [(n, p) for n, p in trainer.model.named_parameters() if "backbone" in n and n.endswith("weight")]
    name, parameter = names[min(3, len(names) - 1)]
    with torch.no_grad():
        parameter.view(-1)[0] = float("nan")
    return trainer, name


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_first_bad_tensor_its_layer_and_the_files_are_named_and_replayed(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, name = poisoned(system, tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert f"from parameter {name}, 1 of " in text
    assert f"first bad module: {name.removesuffix('.weight')}" in text
    assert "; images: " in text
    kept = next(tmp_path.glob("nonfinite_step0_rank0.pt"))
    assert str(kept) in text
    capsys.readouterr()
    assert replay(kept) == 1
    assert f"first bad module: {name.removesuffix('.weight')} (from parameter {name}" in capsys.readouterr().out


def test_data_that_are_bad_are_named_before_weights(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_settings("panet"), tmp_path)
    stack = trainer._collate

    def spoiled(items: Any) -> Any:
        batch = stack(items)
        batch.query_images[0, 0, 0, 3, 4] = float("inf")
        return batch

    trainer._collate = spoiled
    with pytest.raises(NonFiniteError, match=r"from batch\.query_images, 1 of \d+ values of \[4, 1, 3, 48, 48\]"):
        trainer.fit()


def predictions(**bad: tuple[int, ...]) -> MaskPredictions:
    torch.manual_seed(0)
    made = MaskPredictions(torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 8), torch.randn(2, 1, 8, 6, 6), (24, 24))
    for name, place in bad.items():
        getattr(made, name)[place] = float("nan")
    return made


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (
            {"class_logits": (1, 0, 3, 2)},
            "a bad class cost of the final head, image 0 of the batch, query 3: 1 of 20 values of class_logits",
        ),
        (
            {"mask_embeddings": (0, 1, 2, 7)},
            "a bad mask and dice cost of auxiliary head 0, image 1 of the batch, query 2: "
            "1 of 40 values of mask_embeddings",
        ),
        ({"mask_features": (1, 0, 0, 0, 0)}, "1 of 288 values of mask_features are not finite"),
    ],
)
@pytest.mark.parametrize("system", ["maskformer", "mask2former"])
def test_the_matcher_names_the_bad_cost_term(system: str, bad: dict[str, tuple[int, ...]], told: str) -> None:
    import fssops
    from fssops.losses.point_sources import RandomPoints
    from fssops.structures import MaskTargets

    options = {"num_classes": 3, "backbone": "resnet18", "channels": 32, "heads": 4, "mask_channels": 8}
    criterion: Any = fssops.create_model(system, **options).criterion
    made = predictions(**bad)
    targets = [MaskTargets(torch.tensor([0, 2]), torch.rand(2, 24, 24) > 0.5) for _ in range(2)]
    points = (RandomPoints(torch.device("cpu")),) if system == "mask2former" else ()
    with pytest.raises(ValueError, match="matcher: costs must be finite, got") as caught:
        criterion.match(made, targets, *points)
    assert told in str(caught.value)


def test_predictions_that_are_finite_but_too_large_are_told() -> None:
    made = predictions()
    made.mask_embeddings.fill_(3e38)
    assert "mask cost of the final head, image 0 of the batch, query 0" in bad_cost_term(made, 1, 0)
    assert "they are too large" in bad_cost_term(predictions(), 1, 0)


class Unrelated(nn.Module):
    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        raise ValueError("something else is wrong")


def test_another_error_is_not_taken_for_a_bad_number() -> None:
    from fssops.engine.nonfinite import checked_losses

    with pytest.raises(ValueError, match="something else is wrong"):
        checked_losses(Unrelated(), Unrelated(), None)
