"""Cosine correlation on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops, reference
from fssops.testing.cases import COSINE_CORRELATION, CorrelationCase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = pytest.mark.parametrize("case", COSINE_CORRELATION, ids=lambda c: c.name)
EPS = 0.3


def _inputs(case: CorrelationCase, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(case.batch, case.channels, *case.size, dtype=torch.float64).to(device, dtype)
    support = torch.randn(case.batch * case.shots, case.channels, *case.support_size, dtype=torch.float64)
    support = support.to(device, dtype)
    if case.channels_last:
        query, support = (t.to(memory_format=torch.channels_last) for t in (query, support))
    masks = torch.rand(case.batch, case.masks, case.shots, *case.support_size, dtype=torch.float64)
    values = torch.rand_like(masks) + 0.5 if case.soft else torch.ones_like(masks)
    masks = torch.where(masks <= case.kept, values, 0).to(device, dtype)
    return query, support.unflatten(0, (case.batch, case.shots)), masks


def _rule(case: CorrelationCase) -> dict[str, Any]:
    return {
        "reduction": case.reduction,
        "k": case.k,
        "divisor": case.divisor,
        "relu": case.relu,
        "eps": EPS,
        "eps_rule": case.eps_rule,
        "shots": case.shots_rule,
    }


def _error(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None
    assert expected is not None
    return float((value.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.every_isa
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@CASES
def test_values_and_gradients_equal_the_definition(case: CorrelationCase, dtype: torch.dtype, device: str) -> None:
    query, support, masks = _inputs(case, device, dtype)
    got_query, got_support = query.clone().requires_grad_(), support.clone().requires_grad_()
    want_query, want_support = query.double().requires_grad_(), support.double().requires_grad_()
    got = ops.cosine_correlation(got_query, got_support, masks, **_rule(case))
    want = reference.cosine_correlation(want_query, want_support, masks.double(), **_rule(case))
    assert got.dtype == dtype
    assert got.shape == want.shape
    grad = torch.randn_like(want).to(dtype)
    got.backward(grad)
    want.backward(grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}[dtype]
    assert _error(got, want) < tolerance
    assert _error(got_query.grad, want_query.grad) < tolerance
    assert _error(got_support.grad, want_support.grad) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_layer_of_many_tiles_equals_the_definition(reduction: str, dtype: torch.dtype, device: str) -> None:
    query = torch.randn(1, 200, 23, 19, device=device).to(dtype)
    support = torch.randn(1, 2, 200, 24, 22, device=device).to(dtype)
    masks = torch.rand(1, 2, 24, 22, device=device) > 0.4
    got = ops.cosine_correlation(query, support, masks, reduction=reduction)
    want = reference.cosine_correlation(query.double(), support.double(), masks[:, None], reduction=reduction)
    assert _error(got, want[:, 0]) < {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("device", DEVICES)
@CASES
def test_gradients_pass_gradcheck(case: CorrelationCase, device: str) -> None:
    query, support, masks = _inputs(case, device, torch.float64)
    query, support, masks = query[:1, :3, :4, :3], support[:1, :, :3, :4, :4], masks[:1, ..., :4, :4].clone()
    masks[..., 0, 0] = 1.0
    rule = _rule(case)
    rule["k"] = min(rule["k"], 2)

    def correlate(q: Tensor, s: Tensor) -> Tensor:
        return ops.cosine_correlation(q, s, masks, **rule)

    assert torch.autograd.gradcheck(correlate, (query.clone().requires_grad_(), support.clone().requires_grad_()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("reduction", "k"), [(0, 1), (1, 1), (2, 3)], ids=["mean", "max", "topk_mean"])
def test_registration_passes_opcheck(reduction: int, k: int, device: str) -> None:
    query = [torch.randn(2, 5, 4, 4, device=device, requires_grad=True) for _ in range(2)]
    support = [torch.randn(2, 2, 5, 3, 4, device=device, requires_grad=True) for _ in range(2)]
    masks = [(torch.rand(2, 1, 2, 3, 4, device=device) > 0.4).float() for _ in range(2)]
    settings = (reduction, k, False, True, 1e-5, 0, False)
    result = torch.library.opcheck(torch.ops.fssops.cosine_correlation, (query, support, masks, *settings))
    assert set(result.values()) == {"SUCCESS"}
    values, chosen = torch.ops.fssops.cosine_correlation(query, support, masks, *settings)
    detached = [t.detach() for t in query], [t.detach() for t in support]
    for needs in ((True, True), (True, False), (False, True)):
        arguments = (torch.randn_like(values), *detached, masks, chosen, *settings, *needs)
        result = torch.library.opcheck(torch.ops.fssops.cosine_correlation_backward, arguments)
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_graph_break(device: str) -> None:
    query = [torch.randn(1, 4, 5, 5, device=device, requires_grad=True) for _ in range(2)]
    support = [torch.randn(1, 2, 4, 5, 5, device=device) for _ in range(2)]
    masks = torch.rand(1, 2, 5, 5, device=device) > 0.5

    def correlate(q: list[Tensor], s: list[Tensor], m: Tensor) -> Tensor:
        return torch.stack(ops.cosine_correlation([2 * t for t in q], s, m)).square().sum()

    compiled = torch.compile(correlate, fullgraph=True, backend="aot_eager")(query, support, masks)
    grads = torch.autograd.grad(compiled, query)
    eager = correlate(query, support, masks)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(grads, torch.autograd.grad(eager, query))


@pytest.mark.parametrize("device", DEVICES)
def test_hand_derived_values(device: str) -> None:
    # Query (3, 4). Support (1, 0), (-1, 0), (0, 2), of which the first two are kept: cosines 0.6 and -0.6.
    query = torch.tensor([3.0, 4.0], device=device).view(1, 2, 1, 1)
    support = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]], device=device).view(1, 1, 2, 1, 3)
    masks = torch.tensor([True, True, False], device=device).view(1, 1, 1, 3)

    def value(**rule: Any) -> float:
        return float(ops.cosine_correlation(query, support, masks, eps=0.0, **rule))

    assert value() == pytest.approx(0.3)
    assert value(divisor="all") == pytest.approx(0.2)
    assert value(relu=False) == pytest.approx(0.0)
    assert value(reduction="max") == pytest.approx(0.6)
    assert value(reduction="topk_mean", k=2, relu=False) == pytest.approx(0.0)
    # The zero of the background comes before -0.6.
    assert value(reduction="topk_mean", k=2, relu=False, divisor="all") == pytest.approx(0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_eps_rules_are_those_published(device: str) -> None:
    query = torch.tensor([3.0, 4.0], device=device).view(1, 2, 1, 1)  # length 5
    support = torch.tensor([0.0, 1.0], device=device).view(1, 1, 2, 1, 1)  # length 1, product 4
    masks = torch.ones(1, 1, 1, 1, device=device)
    for rule, expected in (
        ("add_to_norms", 4 / (7 * 3)),
        ("add_to_product", 4 / (5 + 2)),
        ("clamp_norms", 4 / (5 * 2)),
    ):
        got = ops.cosine_correlation(query, support, masks, eps=2.0, eps_rule=rule)
        assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "max", "topk_mean"])
def test_dense_form_equals_correlation_with_masked_features(reduction: str, device: str) -> None:
    # The composition that is replaced: background vectors are zeros and take part.
    query, support = torch.randn(1, 8, 6, 5, device=device), torch.randn(1, 1, 8, 7, 6, device=device)
    masks = (torch.rand(1, 1, 7, 6, device=device) > 0.8).float()
    q = query.flatten(2) / (query.flatten(2).norm(dim=1, keepdim=True) + 1e-5)
    s = (support[:, 0] * masks).flatten(2)
    s = s / (s.norm(dim=1, keepdim=True) + 1e-5)
    cosines = torch.bmm(q.transpose(1, 2), s)
    if reduction == "mean":
        want = cosines.clamp(min=0).mean(dim=2)
    elif reduction == "max":
        want = cosines.max(dim=2).values
    else:
        want = cosines.topk(9, dim=2).values.mean(dim=2)
    got = ops.cosine_correlation(
        query, support, masks, reduction=reduction, k=9, divisor="all", relu=reduction == "mean"
    )
    torch.testing.assert_close(got.flatten(2)[:, 0], want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "max", "topk_mean"])
@pytest.mark.parametrize("divisor", ["all", "kept"])
def test_no_kept_position_gives_zero_and_zero_gradients(reduction: str, divisor: str, device: str) -> None:
    query = torch.randn(2, 4, 3, 3, device=device, requires_grad=True)
    support = torch.randn(2, 1, 4, 3, 3, device=device, requires_grad=True)
    masks = torch.zeros(2, 1, 3, 3, device=device)
    got = ops.cosine_correlation(query, support, masks, reduction=reduction, divisor=divisor)
    got.sum().backward()
    for value in (got, query.grad, support.grad):
        assert value is not None
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("device", DEVICES)
def test_layers_of_different_sizes_go_in_one_call(device: str) -> None:
    query = [torch.randn(2, c, s, s, device=device, requires_grad=True) for c, s in ((8, 9), (16, 5), (5, 5))]
    support = [torch.randn(2, 3, c, s, s, device=device) for c, s in ((8, 7), (16, 5), (5, 4))]
    masks = [torch.rand(2, 3, *s.shape[-2:], device=device) > 0.5 for s in support]
    got = ops.cosine_correlation(query, support, masks)
    torch.stack([g.sum() for g in got]).sum().backward()
    for q, s, m, value in zip(query, support, masks, got, strict=True):
        alone = q.detach().clone().requires_grad_()
        want = reference.cosine_correlation(alone, s, m[:, None])[:, 0]
        want.sum().backward()
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(q.grad, alone.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_more_layers_than_one_launch_holds(device: str) -> None:
    query = [torch.randn(1, 3 + i, 4, 4, device=device) for i in range(35)]
    support = [torch.randn(1, 1, 3 + i, 4, 4, device=device) for i in range(35)]
    masks = torch.rand(1, 1, 4, 4, device=device) > 0.5
    for q, s, got in zip(query, support, ops.cosine_correlation(query, support, masks), strict=True):
        torch.testing.assert_close(got, reference.cosine_correlation(q, s, masks[:, None])[:, 0])


@pytest.mark.parametrize("device", DEVICES)
def test_masks_without_their_own_axis_drop_it(device: str) -> None:
    query, support = torch.randn(2, 4, 5, 6, device=device), torch.randn(2, 3, 4, 5, 5, device=device)
    masks = torch.rand(2, 2, 3, 5, 5, device=device) > 0.5
    both = ops.cosine_correlation(query, support, masks)
    assert both.shape == (2, 2, 3, 5, 6)
    assert torch.equal(ops.cosine_correlation(query, support, masks[:, 1]), both[:, 1])
    assert ops.cosine_correlation(query, support, masks[:, 1], shots="joint").shape == (2, 1, 5, 6)


@pytest.mark.parametrize("device", DEVICES)
def test_no_images_give_empty_results(device: str) -> None:
    query = torch.randn(0, 4, 5, 6, device=device, requires_grad=True)
    got = ops.cosine_correlation(
        query, torch.randn(0, 2, 4, 3, 3, device=device), torch.ones(0, 2, 3, 3, device=device)
    )
    assert got.shape == (0, 2, 5, 6)
    got.sum().backward()
    assert query.grad is not None
    assert query.grad.shape == query.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "max", "topk_mean"])
def test_no_channels_give_zero(reduction: str, device: str) -> None:
    got = ops.cosine_correlation(
        torch.randn(1, 0, 3, 3, device=device),
        torch.randn(1, 1, 0, 2, 2, device=device),
        torch.ones(1, 1, 2, 2, device=device),
        reduction=reduction,
    )
    assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_inputs_give_the_same_result(device: str) -> None:
    query = torch.randn(2, 6, 5, 7, device=device).permute(0, 3, 1, 2)[:, ::2]
    support = torch.randn(2, 4, 2, 9, 5, device=device).transpose(1, 2)[..., ::2, :].transpose(-1, -2)
    masks = torch.rand(2, 2, 5, 10, device=device)[..., ::2] - 0.5
    got = ops.cosine_correlation(query, support, masks)
    want = ops.cosine_correlation(query.contiguous(), support.contiguous(), masks.contiguous())
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "max", "topk_mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_stay_visible_where_they_are_read(value: float, reduction: str, device: str) -> None:
    query, support = torch.randn(1, 2, 2, 2, device=device), torch.randn(1, 1, 2, 2, 2, device=device)
    masks = torch.tensor([[[[True, True], [True, False]]]], device=device)
    support[..., 1, 1] = value  # background: not read
    query[0, 0, 1, 0] = value
    got = ops.cosine_correlation(query, support, masks, reduction=reduction, k=2)
    assert torch.isfinite(got).flatten().tolist() == [True, True, False, True]
    support[..., 0, 1] = value
    assert not torch.isfinite(ops.cosine_correlation(query, support, masks, reduction=reduction, k=3)).any()


@pytest.mark.parametrize("device", DEVICES)
def test_same_result_twice(device: str) -> None:
    query = torch.randn(2, 64, 20, 21, device=device, requires_grad=True)
    support = torch.randn(2, 2, 64, 20, 21, device=device, requires_grad=True)
    masks = torch.rand(2, 2, 2, 20, 21, device=device) > 0.5
    runs = []
    for _ in range(2):
        got = ops.cosine_correlation(query, support, masks)
        runs.append((got, *torch.autograd.grad(got.square().sum(), (query, support))))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    query, support = torch.randn(1, 64, 20, 21), torch.randn(1, 1, 64, 20, 21)
    masks = torch.rand(1, 1, 20, 21) > 0.5
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(ops.cosine_correlation(query, support, masks))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_half_features_as_they_are(device: str) -> None:
    query, support = (
        t.bfloat16() for t in (torch.randn(1, 8, 3, 3, device=device), torch.randn(1, 1, 8, 3, 3, device=device))
    )
    masks = torch.ones(1, 1, 3, 3, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = ops.cosine_correlation(query, support, masks)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, ops.cosine_correlation(query, support, masks))


def test_equal_largest_cosines_give_the_gradient_to_the_first() -> None:
    query = torch.ones(1, 2, 1, 1)
    support = torch.ones(1, 1, 2, 1, 3, requires_grad=True)
    weights = torch.tensor([1.0, 0.0])
    got = ops.cosine_correlation(query * weights.view(1, 2, 1, 1), support, torch.ones(1, 1, 1, 3), reduction="max")
    got.sum().backward()
    assert support.grad is not None
    assert (support.grad[0, 0, :, 0] != 0).any(dim=0).tolist() == [True, False, False]


def test_backend_reference_is_chosen_on_purpose() -> None:
    query, support, masks = torch.randn(1, 3, 4, 4), torch.randn(1, 1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    got = ops.cosine_correlation(query, support, masks, backend="reference")
    assert torch.equal(got, reference.cosine_correlation(query, support, masks[:, None])[:, 0])


GOOD: dict[str, Any] = {
    "query": torch.ones(2, 3, 4, 4),
    "support": torch.ones(2, 1, 3, 5, 5),
    "masks": torch.ones(2, 1, 5, 5),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(2, 3, 4)}, r"query must have shape \[B, C, h, w\], got \[2, 3, 4\]"),
        ({"query": []}, "query must have at least one layer, got 0"),
        ({"query": torch.ones(2, 3, 0, 4)}, r"query must have at least one position, got \[2, 3, 0, 4\]"),
        ({"query": torch.ones(2, 3, 4, 4).int()}, "query must be float32, float64, float16 or bfloat16"),
        ({"support": torch.ones(2, 3, 5, 5)}, r"support must have shape \[B, K, C, y, x\]"),
        ({"support": torch.ones(2, 1, 4, 5, 5)}, r"support must have the images and channels of query, \[2, K, 3"),
        (
            {"support": torch.ones(2, 0, 3, 5, 5), "masks": torch.ones(2, 0, 5, 5)},
            "support must have at least one shot",
        ),
        ({"support": torch.ones(2, 1, 3, 5, 5).double()}, "support must have the dtype of query, torch.float32"),
        ({"support": [torch.ones(2, 1, 3, 5, 5)] * 2}, "support must have as many layers as query, 1, got 2"),
        ({"masks": torch.ones(2, 1, 5)}, r"masks must have shape \[B, K, y, x\] or \[B, N, K, y, x\]"),
        ({"masks": torch.ones(2, 1, 4, 4)}, "masks must have the images, shots and size of support"),
        ({"masks": torch.ones(2, 1, 5, 5).long()}, "masks must be float32, float64, float16 or bfloat16"),
        ({"reduction": "median"}, "reduction must be one of mean, max, topk_mean, got 'median'"),
        ({"divisor": "some"}, "divisor must be one of all, kept, got 'some'"),
        ({"eps_rule": "none"}, "eps_rule must be one of add_to_norms, add_to_product, clamp_norms, got 'none'"),
        ({"shots": "both"}, "shots must be one of separate, joint, got 'both'"),
        ({"k": 0}, "k must be 1 to 32, got 0"),
        ({"k": 33}, "k must be 1 to 32, got 33"),
        ({"eps": -1.0}, "eps must be 0 or more, got -1.0"),
        ({"backend": "cuda"}, "backend must be one of native, reference, got 'cuda'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {**GOOD, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.cosine_correlation(arguments.pop("query"), arguments.pop("support"), arguments.pop("masks"), **arguments)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (2, [torch.ones(2, 1, 1, 5, 5).double()], "masks must be float32"),
        (2, [torch.ones(2, 1, 1, 4, 5)], "masks must have the size of support"),
        (1, [torch.ones(2, 1, 2, 5, 5)], "support must have the channels of query"),
        (3, 5, r"reduction must be an index of REDUCTIONS \(0 to 2\), got 5"),
        (4, 40, "k must be 1 to 32, got 40"),
    ],
)
def test_the_operator_itself_checks_its_arguments(index: int, value: Any, message: str) -> None:
    arguments: list[Any] = [
        [GOOD["query"]],
        [GOOD["support"]],
        [GOOD["masks"][:, None]],
        0,
        1,
        False,
        True,
        1e-5,
        0,
        False,
    ]
    arguments[index] = value
    with pytest.raises(RuntimeError, match="cosine_correlation: " + message):
        torch.ops.fssops.cosine_correlation(*arguments)


def test_raw_backward_takes_chosen_columns_of_any_layout_and_of_their_dtype_only() -> None:
    query, support, masks = torch.randn(1, 3, 2, 2), torch.randn(1, 1, 3, 2, 2), torch.ones(1, 1, 1, 2, 2)
    settings = (1, 1, False, False, 1e-5, 0, False)
    values, chosen = torch.ops.fssops.cosine_correlation([query], [support], [masks], *settings)
    strided = torch.stack((chosen, torch.zeros_like(chosen)), dim=1)[:, 0]

    def gradient(picked: Tensor) -> Tensor:
        return torch.ops.fssops.cosine_correlation_backward(
            torch.ones_like(values), [query], [support], [masks], picked, *settings, True, False
        )[0][0]

    assert torch.equal(gradient(strided), gradient(chosen))
    with pytest.raises(RuntimeError, match="chosen must be int32"):
        gradient(chosen.long())


def test_prior_mask_equals_the_published_composition() -> None:
    # MSANet section 3.7: lengths multiplied, then eps added; background positions are zero vectors.
    query, support = torch.randn(2, 16, 5, 5), torch.randn(2, 2, 16, 5, 5)
    masks = F.interpolate(torch.rand(4, 1, 9, 9), size=(5, 5), mode="bilinear", align_corners=True).view(2, 2, 5, 5)
    masks = torch.where(masks > 0.5, masks, 0)
    got = ops.cosine_correlation(
        query, support, masks, reduction="max", divisor="all", relu=False, eps=1e-7, eps_rule="add_to_product"
    )
    for shot in range(2):
        q, s = query.flatten(2), (support[:, shot] * masks[:, shot, None]).flatten(2)
        similarity = torch.bmm(s.transpose(1, 2), q)
        similarity = similarity / (s.norm(dim=1)[:, :, None] * q.norm(dim=1)[:, None] + 1e-7)
        torch.testing.assert_close(got[:, shot].flatten(1), similarity.max(dim=1).values, atol=1e-6, rtol=1e-5)
