"""What is kept of weights for prediction is never stale: every way to change a weight is followed by its new value."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fssops.models.layers.attention import MultiheadAttention
from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.derived import DerivingModule, Linear
from fssops.models.layers.ms_deform_attn import MSDeformAttn
from fssops.models.layers.singular_values import SingularValueConv
from fssops.testing.dispatched import DispatchedOperations


def convolution(norm: str = "batch") -> ConvNorm:
    made = ConvNorm(3, 4, 3, norm=norm, bias=True)  # type: ignore[arg-type]
    _draw(made)
    return made.eval()


def _draw(module: nn.Module, seed: int = 1) -> None:
    """Values of its own for every tensor of a module, none of them a neutral one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)


IMAGE = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predicted(module: nn.Module) -> Tensor:
    return module(IMAGE)  # type: ignore[no-any-return]


@torch.no_grad()
def expected(module: ConvNorm) -> Tensor:
    """The convolution, then the normalisation."""
    norm = module.norm
    y = nn.functional.conv2d(IMAGE, module.kernel(), module.bias, padding=1)
    affine = (norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[union-attr]
    return nn.functional.batch_norm(y, *affine, eps=norm.eps)  # type: ignore[arg-type,union-attr]


def _step(module: ConvNorm) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(IMAGE).square().mean().backward()
    optimizer.step()


def _train(module: ConvNorm) -> None:
    module.norm.train()  # type: ignore[union-attr]
    module(IMAGE)
    module.norm.eval()  # type: ignore[union-attr]


def _run_statistics_alone(module: ConvNorm) -> None:
    module.norm.train()(IMAGE.expand(4, -1, -1, -1)[:, :1].expand(-1, 4, -1, -1))  # type: ignore[union-attr]
    module.norm.eval()  # type: ignore[union-attr]


def _replace_twice(module: ConvNorm) -> None:
    """The second new tensor may well lie where the first one lay."""
    for number in (2.0, 3.0):
        module.weight.data = torch.full_like(module.weight, number)


def _in_inference_mode(module: ConvNorm) -> None:
    with torch.inference_mode():
        module.weight.mul_(2)


def _inside_data(module: ConvNorm) -> None:
    """PyTorch does not count it; going to evaluation forgets what was kept."""
    module.weight.data.mul_(2)
    module.eval()


def _load(module: ConvNorm, assign: bool = False) -> None:
    other = convolution()
    _draw(other, seed=2)
    module.load_state_dict(other.state_dict(), assign=assign)


def _set(module: nn.Module, name: str, factor: float) -> None:
    with torch.no_grad():
        owner = module.get_submodule(name.rpartition(".")[0])
        getattr(owner, name.rpartition(".")[2]).mul_(factor)


CHANGES: dict[str, Callable[[ConvNorm], object]] = {
    "weight in place": lambda m: _set(m, "weight", 2.0),
    "bias in place": lambda m: _set(m, "bias", 2.0),
    "scale in place": lambda m: _set(m, "norm.weight", 2.0),
    "shift in place": lambda m: _set(m, "norm.bias", 2.0),
    "mean in place": lambda m: _set(m, "norm.running_mean", 2.0),
    "variance in place": lambda m: _set(m, "norm.running_var", 2.0),
    "eps": lambda m: setattr(m.norm, "eps", 0.5),
    "a step of an optimizer": _step,
    "statistics moved by training": _train,
    "statistics moved by the norm alone": _run_statistics_alone,
    "loading": _load,
    "loading by assignment": lambda m: _load(m, assign=True),
    "another parameter": lambda m: setattr(m, "weight", nn.Parameter(m.weight.detach() * 2)),
    "data replaced twice": _replace_twice,
    "in inference mode": _in_inference_mode,
    "inside data, then eval": _inside_data,
    "another type and back": lambda m: (m.half(), m.double(), m.float()),
    "another norm": lambda m: setattr(m, "norm", copy.deepcopy(convolution("frozen").norm)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fold_follows_every_change(change: str) -> None:
    module = convolution()
    before = predicted(module)
    assert module._kept is not None
    CHANGES[change](module)
    torch.testing.assert_close(predicted(module), expected(module))
    if change not in ("another type and back", "another norm"):
        assert not torch.allclose(predicted(module), before)


def test_what_is_kept_is_used_and_is_no_part_of_state_copies_or_pickles() -> None:
    module = convolution()
    names = list(module.state_dict())
    first = predicted(module)
    with DispatchedOperations() as operations:
        second = predicted(module)
    assert dict(operations.counts) == {"aten::convolution": 1}
    assert torch.equal(second, first)
    assert list(module.state_dict()) == names
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert other._kept is None
        assert torch.equal(predicted(other), first)
    assert module._kept is not None
    assert module.train()._kept is None


def test_a_copy_and_its_original_change_apart() -> None:
    module = convolution()
    predicted(module)
    other = copy.deepcopy(module)
    _set(other, "weight", 2.0)
    torch.testing.assert_close(predicted(other), expected(other))
    torch.testing.assert_close(predicted(module), expected(module))


def test_gradients_reach_weights_after_a_prediction() -> None:
    module = convolution()
    predicted(module)
    module(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_weights_that_do_not_tell_their_changes_are_not_kept() -> None:
    shared = convolution()
    shared.share_memory()
    with torch.inference_mode():
        made = convolution()
    for module in (shared, made):
        predicted(module)
        assert module._kept is None
    shared.weight.data.mul_(2)  # as another process would
    torch.testing.assert_close(predicted(shared), expected(shared))


def test_derivatives_by_weights_pass_what_was_kept() -> None:
    module = convolution()
    predicted(module)
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        direction = {"weight": torch.ones_like(weights["weight"])}

        def output(weight: Tensor) -> Tensor:
            return torch.func.functional_call(module, {**weights, "weight": weight}, (IMAGE,))  # type: ignore[no-any-return]

        _, tangent = torch.func.jvp(output, (weights["weight"],), (direction["weight"],))
        torch.testing.assert_close(tangent, output(weights["weight"] + 1) - output(weights["weight"]))
    torch.testing.assert_close(predicted(module), expected(module))


def test_fake_tensors_are_not_kept() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = convolution()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        module(IMAGE)
    torch.testing.assert_close(predicted(module), expected(module))


def test_a_compiled_model_follows_its_weights() -> None:
    module = convolution()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(predicted(compiled), expected(module))
        _set(module, "norm.running_var", 2.0)


def test_a_product_of_factors_is_folded_anew_when_its_values_change() -> None:
    module = SingularValueConv(convolution("frozen"))
    torch.testing.assert_close(predicted(module), expected(module))
    _set(module, "singular_values", 2.0)
    torch.testing.assert_close(predicted(module), expected(module))


def attended(module: nn.Module) -> Tensor:
    x = torch.rand(1, 5, 32, generator=torch.Generator().manual_seed(0))
    if isinstance(module, MultiheadAttention):
        return module(x, x, x)  # type: ignore[no-any-return]
    if isinstance(module, MSDeformAttn):
        return module(x, torch.full((1, 5, 1, 2), 0.5), x, [(1, 5)])  # type: ignore[no-any-return]
    return module(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make", [lambda: Linear(32, 8), lambda: MultiheadAttention(32, 4), lambda: MSDeformAttn(32, 4, 1, 2)]
)
def test_weights_in_autocasts_type_follow_changes_and_are_those_of_training(make: Callable[[], DerivingModule]) -> None:
    module = make()
    _draw(module)
    for factor in (1.0, 0.5):
        for name, _ in module.named_parameters():
            _set(module, name, factor)
        with torch.autocast("cpu", torch.bfloat16):
            trained = attended(module)  # autocast's own casts
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(attended(module), trained.detach(), rtol=0, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(attended(module).float(), trained.detach().float(), rtol=0.03, atol=0.03)
