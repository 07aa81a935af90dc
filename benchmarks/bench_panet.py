"""PANet-VGG, one 1-way 1-shot episode of 417 x 417, against the composition that the authors published.

``pytest benchmarks/bench_panet.py -s`` checks that they agree, times both (forward, and loss with backward), and prints
the ratios of time and of peak resident memory in fresh processes. Two CPU threads, float32 where nothing is said.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measuring import fastest, in_fresh_process, peak_megabytes, print_ratios, smooth_episode
from torch import Tensor, nn

import fssops
from fssops.models.panet import PANet
from fssops.structures import move_to

SIDE = 417
VARIANTS = ("published", "fssops", "published_bf16", "fssops_bf16")


class PublishedPANet(nn.Module):
    """The forward pass as the authors composed it: one NCHW batch, features upsampled for each mask."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
        layers: list[nn.Module] = []
        channels = 3
        for block, sizes in enumerate(widths):
            dilation = 2 if block == 4 else 1
            for position, size in enumerate(sizes):
                layers.append(nn.Conv2d(channels, size, 3, padding=dilation, dilation=dilation))
                if block < 4 or position < 2:
                    layers.append(nn.ReLU(inplace=True))
                channels = size
            if block < 4:
                layers.append(nn.MaxPool2d(3, stride=1 if block == 3 else 2, padding=1))
        self.features = nn.Sequential(*layers)

    def forward(self, support: Tensor, foreground: Tensor, background: Tensor, query: Tensor) -> Tensor:
        """Logits [1, 2, H, W] of support [1, 3, H, W], masks [1, H, W] and query [1, 3, H, W]."""
        features = self.features(torch.cat([support, query]))
        prototypes = [self.pooled(features[:1], mask) for mask in (background, foreground)]
        scores = [F.cosine_similarity(features[1:], p[..., None, None], dim=1) * 20 for p in prototypes]
        return F.interpolate(torch.stack(scores, dim=1), size=query.shape[-2:], mode="bilinear")

    @staticmethod
    def pooled(features: Tensor, mask: Tensor) -> Tensor:
        """Masked average [1, C] of features, upsampled to the mask."""
        features = F.interpolate(features, size=mask.shape[-2:], mode="bilinear")
        return torch.sum(features * mask[None], dim=(2, 3)) / (mask[None].sum(dim=(2, 3)) + 1e-5)


def runner(variant: str, device: torch.device | str = "cpu") -> Callable[[], Tensor]:
    """A function that runs one forward pass of a variant, with the same weights in all of them."""
    device = torch.device(device)
    torch.manual_seed(0)
    published = PublishedPANet().eval().to(device)
    batch = move_to(smooth_episode(SIDE, 1, 53), device)
    if variant.startswith("published"):
        arguments = (
            batch.support_images[0, 0],
            batch.support_foreground[0, 0],
            batch.support_background[0, 0],
            batch.query_images[0],
        )

        def forward() -> Tensor:
            return published(*arguments)[None]

    else:
        model = fssops.create_model("panet").eval().to(device)
        assert isinstance(model, PANet)
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), published.parameters(), strict=True):
                ours.copy_(theirs)
        del published

        def forward() -> Tensor:
            return model(batch)

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=variant.endswith("bf16")):
            return forward()

    return run


def step_runner(variant: str, device: torch.device | str = "cpu") -> Callable[[], None]:
    """A function that runs the query loss and its backward pass; the alignment loss is off in both."""
    device = torch.device(device)
    batch = move_to(smooth_episode(SIDE, 1, 53), device)
    labels = batch.query_labels[0]
    if variant == "published":
        published = PublishedPANet().to(device)
        arguments = (
            batch.support_images[0, 0],
            batch.support_foreground[0, 0],
            batch.support_background[0, 0],
            batch.query_images[0],
        )
        return lambda: F.cross_entropy(published(*arguments), labels, ignore_index=255).backward()
    model = fssops.create_model("panet", align=False).train().to(device)
    assert isinstance(model, PANet)
    return lambda: model.losses(batch)["loss_query"].backward()


def measured(variant: str) -> dict[str, float]:
    """Seconds (best of five) and peak memory in MB, in a fresh process."""
    return in_fresh_process(__file__, variant)


def measure_here(variant: str) -> dict[str, float]:
    """What :func:`measured` runs."""
    torch.set_num_threads(2)
    run = runner(variant)
    before = peak_megabytes()
    return {"seconds": fastest(run, 5), "peak_mb": peak_megabytes(), "before_mb": before}


FORWARD = "PANet-VGG 417 x 417, 1-shot, forward"
STEP = "PANet-VGG 417 x 417, 1-shot, loss and backward"


@pytest.mark.parametrize(
    ("group", "implementation", "variant"),
    [
        (FORWARD, "composition", "published"),
        (FORWARD, "fssops", "fssops"),
        (f"{FORWARD}, ours bf16", "composition", "published"),
        (f"{FORWARD}, ours bf16", "fssops", "fssops_bf16"),
        (f"{FORWARD}, both bf16", "composition", "published_bf16"),
        (f"{FORWARD}, both bf16", "fssops", "fssops_bf16"),
    ],
)
def test_forward(measure, device: torch.device, group: str, implementation: str, variant: str) -> None:
    measure(runner(variant, device), group=group, implementation=implementation)


@pytest.mark.parametrize(("implementation", "variant"), [("composition", "published"), ("fssops", "fssops")])
def test_training_step(measure, device: torch.device, implementation: str, variant: str) -> None:
    measure(step_runner(variant, device), group=STEP, implementation=implementation)


@pytest.mark.parametrize("variant", ["fssops", "fssops_bf16"])
def test_same_logits(device: torch.device, variant: str) -> None:
    ours, theirs = runner(variant, device)(), runner("published", device)()
    assert ours.shape == theirs.shape
    tolerance = 1e-4 if variant == "fssops" else 2e-2
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_time_and_resident_memory_in_fresh_processes(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("resident memory says nothing about a GPU; see the table of the other tests")
    found = {variant: measured(variant) for variant in VARIANTS}
    print_ratios("1-shot", found)
    above = {variant: row["peak_mb"] - row["before_mb"] for variant, row in found.items()}
    shares = ", ".join(f"{variant} {value / above['published']:.2f}" for variant, value in above.items())
    print(f"of the published peak above the start: {shares}")
    assert found["fssops"]["peak_mb"] < found["published"]["peak_mb"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", choices=VARIANTS, required=True)
    print(json.dumps(measure_here(parser.parse_args().measure)))
