"""MM-Former-R50, one evaluation episode of 480 x 480, against the composition that the authors published.

``pytest benchmarks/bench_mm_former.py -s`` checks that both agree, times them with 1 and 5 shots, in float32 and bf16,
with proposals and supports kept, and a further class in the same image, and prints the ratios of time and of peak
resident memory in fresh processes, and where the time goes. Two CPU threads, float32 where nothing is said. The weights
are random, and the same in all variants; the published code runs every kernel as a product of singular values.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measuring import Stopwatch, fastest, in_fresh_process, peak_megabytes, print_ratios, smooth_episode
from torch import Tensor

import fssops
from fssops.models.mm_former import MMFormer
from fssops.structures import move_to
from fssops.testing.published_mm_former import PublishedMMFormer

SIDE = 480
VARIANTS = ("published", "fssops", "fssops_further_class", "fssops_kept", "published_bf16", "fssops_bf16")
"""Of ``fssops_further_class`` the query is kept and the supports are new; of ``fssops_kept`` both are kept."""


def network(device: torch.device | str = "cpu") -> MMFormer:
    """The published network with random weights, residual branches damped and queries spread so that masks differ."""
    torch.manual_seed(0)
    model = fssops.create_model("mm_former", backbone="resnet50", behaviour="published")
    assert isinstance(model, MMFormer)
    for name, value in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            value.fill_(0.25)
        elif name.endswith(("query_feat.weight", "query_embed.weight")):
            value.mul_(4)
    return model.eval().to(device)


def runner(variant: str, shots: int = 1, device: torch.device | str = "cpu") -> Callable[[], Tensor]:
    """A function that runs one episode of a variant and returns background and foreground [1, 1, 2, H, W]."""
    device = torch.device(device)
    model, batch = network(device), move_to(smooth_episode(SIDE, shots, 60), device)
    bf16 = variant.endswith("bf16")

    def summary() -> object:
        shots_seen = [model._features(image[None], proposals=False) for image in batch.support_images[0, 0]]
        features = {name: torch.cat([seen[name] for seen in shots_seen]) for name in shots_seen[0]}
        return model.summarise(features, batch.support_foreground, batch.support_background)

    def kept_query() -> dict[str, Tensor]:
        return model.query_features(model.encode(batch.query_images[0]))

    if variant.startswith("published"):
        published = PublishedMMFormer(model)
        published.drop_plain_kernels()
        arguments = (
            batch.query_images[0],
            batch.support_images[0, :1].flatten(0, 1)[None],
            batch.support_foreground[0],
        )

        def forward() -> Tensor:
            return published(*arguments)[None]

    elif variant in ("fssops_further_class", "fssops_kept"):
        with torch.inference_mode():
            query = kept_query()
            support = summary() if variant == "fssops_kept" else None

        def forward() -> Tensor:
            found = support if support is not None else summary()
            return model.match(found, query, (SIDE, SIDE))  # type: ignore[arg-type]

    else:

        def forward() -> Tensor:
            return model(batch)

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return forward()

    return run


def measured(variant: str, shots: int) -> dict[str, float]:
    """Seconds (best of two) and peak memory in MB, in a fresh process."""
    return in_fresh_process(__file__, variant, shots)


def measure_here(variant: str, shots: int) -> dict[str, float]:
    """What :func:`measured` runs."""
    torch.set_num_threads(2)
    run = runner(variant, shots)
    # Building the model and its factors is not part of an episode.
    Path("/proc/self/clear_refs").write_text("5")
    return {"seconds": fastest(run, 2), "peak_mb": peak_megabytes()}


def steps_of_an_episode(shots: int = 1) -> dict[str, float]:
    """Seconds of each step of ours, best of three."""
    model, batch = network(), smooth_episode(SIDE, shots, 60)
    segmenter, timed = model.segmenter, Stopwatch()
    with torch.inference_mode():
        image = batch.query_images[0]
        maps = timed("backbone, an image", lambda: segmenter.features(image))
        timed("self-alignment and projection", lambda: model._aligned_maps(maps))
        inputs = timed("pixel decoder, input projections", lambda: segmenter.pixel_inputs(maps))
        decoded = timed("pixel decoder, the rest", lambda: segmenter.pixel_decoder.decode(*inputs))
        memory = timed(
            "transformer decoder, memory",
            lambda: segmenter.transformer_decoder.prepare(
                decoded.memory,
                decoded.sizes,
                decoded.mask_features[:, None],
            ),
        )
        timed("transformer decoder, layers", lambda: segmenter.transformer_decoder(memory, auxiliary=False))
        query = model.encode(image)
        timed("all of the proposals", lambda: model.query_features(query))
        query = model.query_features(query)
        features = model._features(batch.support_images[0, 0, :1], proposals=False)
        support = timed(
            "support summary",
            lambda: model.summarise(features, batch.support_foreground[:, :, :1], batch.support_foreground),
        )
        timed("cross-alignment, pooling, merging", lambda: model.compare(support, query))
        timed("whole match, all kept", lambda: model.match(support, query, (SIDE, SIDE)))
    return timed.seconds


GROUP = "MM-Former-R50 480 x 480, {}-shot"


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize(
    ("kind", "implementation", "variant"),
    [
        ("", "composition", "published"),
        ("", "fssops", "fssops"),
        (", a further class", "composition", "published"),
        (", a further class", "fssops", "fssops_further_class"),
        (", ours all kept", "composition", "published"),
        (", ours all kept", "fssops", "fssops_kept"),
        (", ours bf16", "composition", "published"),
        (", ours bf16", "fssops", "fssops_bf16"),
    ],
)
def test_episode(measure, device: torch.device, shots: int, kind: str, implementation: str, variant: str) -> None:
    measure(runner(variant, shots, device), group=GROUP.format(shots) + kind, implementation=implementation)


@pytest.mark.parametrize("variant", ["fssops", "fssops_further_class", "fssops_kept"])
def test_same_map(device: torch.device, variant: str) -> None:
    ours, theirs = runner(variant, 2, device)(), runner("published", 2, device)()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


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
    print("\nstep                                        ms")
    for name, seconds in found.items():
        print(f"{name:<38} {1e3 * seconds:8.1f}")
    assert found["whole match, all kept"] < found["backbone, an image"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "SHOTS"), required=True)
    variant, shots = parser.parse_args().measure
    print(json.dumps(measure_here(variant, int(shots))))
