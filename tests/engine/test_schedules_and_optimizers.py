"""Learning rates over the steps, and which parameters get which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fssops.engine.optimizers import build_optimizer, freeze, parameter_groups
from fssops.engine.schedules import learning_rate_factor
from fssops.engine.settings import OptimSettings, ScheduleSettings, SettingsError


def test_step_schedule_equals_multi_step_lr() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="step", steps=40, milestones=[10, 20, 30]))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    published = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[10, 20, 30], gamma=0.1)
    for step in range(40):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        published.step()


def test_poly_schedule_follows_its_formula_and_floor() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="poly", steps=100, power=0.9, end_factor=0.01))
    assert factor(0) == 1.0
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(100) == 0.01


@pytest.mark.parametrize(("kind", "expected"), [("linear", [0.1, 0.55, 1.0]), ("constant", [0.1, 0.1, 1.0])])
def test_warmup_multiplies_the_schedule(kind: str, expected: list[float]) -> None:
    settings = ScheduleSettings(steps=100, warmup_steps=10, warmup=kind, warmup_factor=0.1)  # type: ignore[arg-type]
    factor = learning_rate_factor(settings)
    assert [factor(0), factor(5), factor(10)] == pytest.approx(expected)


def test_cosine_ends_at_its_floor() -> None:
    factor = learning_rate_factor(ScheduleSettings(name="cosine", steps=10, end_factor=0.2))
    assert [factor(0), factor(5), factor(10)] == pytest.approx([1.0, 0.6, 0.2])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.query_embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)


def groups_by_name(settings: OptimSettings) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(Net(), settings)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_parameter_groups_follow_kind_and_place() -> None:
    found = groups_by_name(
        OptimSettings(
            lr=1.0, weight_decay=0.05, backbone_lr_scale=0.1, weight_decay_norm=0.0, weight_decay_embedding=0.0
        )
    )
    assert found == {
        "backbone.0.weight": (0.1, 0.05),
        "backbone.0.bias": (0.1, 0.05),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "query_embed.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.05),
    }


def test_named_groups_take_precedence() -> None:
    settings = OptimSettings(
        lr=1.0, weight_decay=0.05, groups=[{"match": "head.*", "lr_scale": 10, "weight_decay": 0.0}]
    )  # type: ignore[list-item]
    assert groups_by_name(settings)["head.weight"] == (10.0, 0.0)
    assert groups_by_name(settings)["query_embed.weight"] == (1.0, 0.05)


def test_frozen_parameters_are_not_trained() -> None:
    model = Net()
    freeze(model, OptimSettings(frozen=["backbone.*"]))
    trained = [p for group in build_optimizer(model, OptimSettings()).param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in (*model.query_embed.parameters(), *model.head.parameters())}


@pytest.mark.parametrize("settings", [OptimSettings(frozen=["nothing"]), OptimSettings(groups=[{"match": "nothing"}])])  # type: ignore[list-item]
def test_pattern_that_matches_nothing_is_refused(settings: OptimSettings) -> None:
    with pytest.raises(SettingsError, match="'nothing' must match"):
        build_optimizer(Net(), settings)


def test_model_without_trained_parameters_is_refused() -> None:
    with pytest.raises(SettingsError, match="must have a parameter to train"):
        build_optimizer(Net(), OptimSettings(frozen=["*"]))


@pytest.mark.parametrize(
    ("settings", "kind", "wanted"),
    [
        (
            OptimSettings(name="adamw", lr=0.3, betas=(0.7, 0.9), eps=1e-5),
            torch.optim.AdamW,
            {"betas": (0.7, 0.9), "eps": 1e-5, "decoupled_weight_decay": True},
        ),
        (
            OptimSettings(name="adam", lr=0.3, betas=(0.7, 0.9), eps=1e-5),
            torch.optim.Adam,
            {"betas": (0.7, 0.9), "eps": 1e-5, "decoupled_weight_decay": False},
        ),
        (
            OptimSettings(name="sgd", lr=0.3, momentum=0.6, nesterov=True),
            torch.optim.SGD,
            {"momentum": 0.6, "nesterov": True},
        ),
    ],
)
def test_the_named_optimiser_gets_its_own_settings(
    settings: OptimSettings, kind: type, wanted: dict[str, object]
) -> None:
    for options, fused in (({}, False), ({"fused": False}, False), ({"fused": True}, True)):
        optimizer = build_optimizer(Net(), settings, **options)
        assert type(optimizer) is kind
        for group in optimizer.param_groups:
            assert {name: group[name] for name in wanted} == wanted
            assert bool(group["fused"]) == fused
            assert group["base_lr"] == group["lr"] == 0.3


def test_weight_decay_of_biases_and_of_a_position_is_its_own_where_it_is_set() -> None:
    """A bias of a normalisation layer goes by the layer; without a setting all decay alike."""
    found = groups_by_name(OptimSettings(lr=1.0, weight_decay=0.05, weight_decay_bias=0.4, weight_decay_norm=0.2))
    assert {name: decay for name, (_, decay) in found.items()} == {
        "backbone.0.weight": 0.05,
        "backbone.0.bias": 0.4,
        "backbone.1.weight": 0.2,
        "backbone.1.bias": 0.2,
        "query_embed.weight": 0.05,
        "head.weight": 0.05,
        "head.bias": 0.4,
    }
    assert {decay for _, decay in groups_by_name(OptimSettings(weight_decay=0.05)).values()} == {0.05}


@pytest.mark.parametrize("name", ["pos_embed", "relative_position_bias_table", "absolute_pos_embed"])
def test_positions_that_are_plain_parameters_decay_as_embeddings_do(name: str) -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    settings = OptimSettings(lr=1.0, weight_decay=0.05, weight_decay_embedding=0.0)
    found = {n: g["weight_decay"] for g in parameter_groups(Transformer(), settings) for n in g["names"]}
    assert found == {name: 0.0, "layer.weight": 0.05, "layer.bias": 0.05}


def test_rules_of_a_name_multiply_their_rates_and_the_last_decay_counts() -> None:
    rules = [{"match": "head.*", "lr_scale": 10, "weight_decay": 0.5}, {"match": "*.bias", "lr_scale": 3}]
    found = groups_by_name(OptimSettings(lr=2.0, weight_decay=0.05, backbone_lr_scale=0.1, groups=rules))  # type: ignore[arg-type]
    assert found["head.bias"] == (pytest.approx(60.0), 0.5)
    assert found["head.weight"] == (pytest.approx(20.0), 0.5)
    assert found["backbone.0.bias"] == (pytest.approx(0.6), 0.05)


def test_schedules_stay_at_their_end_and_warm_up_before_it() -> None:
    poly = learning_rate_factor(ScheduleSettings(name="poly", steps=10, power=2.0, end_factor=0.0, warmup_steps=4))
    assert poly(20) == 0.0
    assert poly(5) == pytest.approx(0.25)
    cosine = learning_rate_factor(ScheduleSettings(name="cosine", steps=8, end_factor=0.0))
    assert cosine(2) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert cosine(99) == pytest.approx(0.0)
    flat = learning_rate_factor(ScheduleSettings(name="constant", steps=8, warmup_steps=4, warmup_factor=0.2))
    assert [flat(step) for step in (0, 1, 4, 7)] == pytest.approx([0.2, 0.4, 1.0, 1.0])
