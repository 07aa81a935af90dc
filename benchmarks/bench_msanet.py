"""MSANet-R50, one evaluation episode of 473 x 473, against the composition that the authors published.

``pytest benchmarks/bench_msanet.py -s`` checks that both agree, times them with 1 and 5 shots, in float32 and bf16, and
with features cached, and prints the ratios of time and of peak resident memory in fresh processes, and where the time
goes. Two CPU threads, float32 where nothing is said. The weights are random, and the same in all variants.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import pytest
import torch
from measuring import Stopwatch, fastest, in_fresh_process, peak_megabytes, print_ratios, smooth_episode
from torch import Tensor

import fssops
from fssops.models.msanet import MSANet
from fssops.models.msanet.compared_layers import QueryLayers
from fssops.structures import move_to
from fssops.testing.published_msanet import PublishedMSANet

SIDE = 473
VARIANTS = ("published", "fssops", "fssops_cached", "published_bf16", "fssops_bf16")


def network(shots: int, device: torch.device | str = "cpu") -> MSANet:
    """The published network with random weights, residual branches damped so that features stay near unit scale."""
    torch.manual_seed(0)
    model = fssops.create_model("msanet", backbone="resnet50", shots=shots, behaviour="published")
    assert isinstance(model, MSANet)
    for name, value in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            value.fill_(0.25)
    return model.eval().to(device)


def runner(variant: str, shots: int = 1, device: torch.device | str = "cpu") -> Callable[[], Tensor]:
    """A function that runs one episode of a variant and returns the ensemble's map [1, 1, 2, H, W]."""
    device = torch.device(device)
    model, batch = network(shots, device), move_to(smooth_episode(SIDE, shots, 60), device)
    bf16 = variant.endswith("bf16")
    if variant.startswith("published"):
        published = PublishedMSANet(model)
        arguments = (batch.query_images[0], batch.support_images[0], batch.support_foreground[0])

        def forward() -> Tensor:
            return published(*arguments)[0][None]

    elif variant.endswith("cached"):
        with torch.inference_mode():
            supports = model.encode(batch.support_images[0, 0])
            query = model.query_features(model.encode(batch.query_images[0]))

        def forward() -> Tensor:
            summary = model.summarise(supports, batch.support_foreground, batch.support_background)
            return model.match(summary, query, (SIDE, SIDE))

    else:

        def forward() -> Tensor:
            return model(batch)

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return forward()

    return run


def measured(variant: str, shots: int) -> dict[str, float]:
    """Seconds (best of three) and peak memory in MB, in a fresh process."""
    return in_fresh_process(__file__, variant, shots)


def measure_here(variant: str, shots: int) -> dict[str, float]:
    """What :func:`measured` runs."""
    torch.set_num_threads(2)
    run = runner(variant, shots)
    return {"seconds": fastest(run, 3), "peak_mb": peak_megabytes()}


def steps_of_an_episode(shots: int = 1) -> dict[str, float]:
    """Seconds of each step of ours, best of three."""
    model, batch, timed = network(shots), smooth_episode(SIDE, shots, 60), Stopwatch()
    with torch.inference_mode():
        supports = timed("backbone, supports", lambda: model.encode(batch.support_images[0, 0]))
        query = timed("backbone, query", lambda: model.encode(batch.query_images[0]))
        outputs = model._frozen().outputs(query)
        timed("base learner", lambda: model.base_learner.head(outputs[2]))
        query = model.query_features(query)
        summary = timed(
            "support summary",
            lambda: model.summarise(supports, batch.support_foreground, batch.support_background),
        )
        layers = QueryLayers(summary, 1)
        take_all = model._frozen().replay
        timed("similarity", lambda: take_all(query, QueryLayers(summary, 1).taker([0])))
        timed("prior mask", lambda: layers.prior(outputs[2]))
        merged = model.compare(summary, query).merged
        timed("decoder", lambda: model.decoder(merged))
        timed("whole match, features cached", lambda: model.match(summary, query, (SIDE, SIDE)))
    return timed.seconds


GROUP = "MSANet-R50 473 x 473, {}-shot"


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize(
    ("kind", "implementation", "variant"),
    [
        ("", "composition", "published"),
        ("", "fssops", "fssops"),
        (", ours cached", "composition", "published"),
        (", ours cached", "fssops", "fssops_cached"),
        (", ours bf16", "composition", "published"),
        (", ours bf16", "fssops", "fssops_bf16"),
    ],
)
def test_episode(measure, device: torch.device, shots: int, kind: str, implementation: str, variant: str) -> None:
    measure(runner(variant, shots, device), group=GROUP.format(shots) + kind, implementation=implementation)


@pytest.mark.parametrize("variant", ["fssops", "fssops_cached", "fssops_bf16"])
def test_same_map(device: torch.device, variant: str) -> None:
    ours, theirs = runner(variant, 1, device)(), runner("published", 1, device)()
    assert ours.shape == theirs.shape
    tolerance = 5e-3 if variant.endswith("bf16") else 1e-4
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_time_and_resident_memory_in_fresh_processes(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("resident memory says nothing about a GPU; see the table of the other tests")
    for shots in (1, 5):
        found = {variant: measured(variant, shots) for variant in VARIANTS}
        print_ratios(f"{shots}-shot", found)
        assert found["fssops"]["peak_mb"] < found["published"]["peak_mb"]


def test_where_the_time_goes(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("wall times of single steps mean little where kernels are queued")
    found = steps_of_an_episode()
    print("\nstep                              ms")
    for name, seconds in found.items():
        print(f"{name:<30} {1e3 * seconds:7.1f}")
    assert found["whole match, features cached"] < found["backbone, query"] + found["base learner"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "SHOTS"), required=True)
    variant, shots = parser.parse_args().measure
    print(json.dumps(measure_here(variant, int(shots))))
