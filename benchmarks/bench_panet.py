"""PANet-VGG, one 1-way 1-shot episode of 417 x 417, against the composition that the authors published.

``pytest benchmarks/bench_panet.py -s`` times both, checks that they agree, and prints the ratios of time and of peak
memory; every memory figure comes from a fresh process. Two CPU threads, float32 unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fssops
from fssops.models.panet import PANet
from fssops.structures import FewShotBatch

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


def episode() -> FewShotBatch:
    """A 1-way 1-shot episode of smooth random images with an elliptic foreground of about 15 %."""
    generator = torch.Generator().manual_seed(7)
    images = F.interpolate(torch.randn(2, 3, 53, 53, generator=generator), size=(SIDE, SIDE), mode="bicubic")
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    mask = ((x / 0.5) ** 2 + (y / 0.4) ** 2 < 1).float()
    return FewShotBatch(
        support_images=images[None, None, :1],
        support_foreground=mask[None, None, None],
        support_background=1 - mask[None, None, None],
        query_images=images[None, 1:],
        query_labels=torch.zeros(1, 1, SIDE, SIDE, dtype=torch.long),
        classes=torch.ones(1, 1, dtype=torch.long),
    )


def runner(variant: str) -> Callable[[], Tensor]:
    """A function that runs one forward pass of a variant, with the same weights in all of them."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    published = PublishedPANet().eval()
    batch = episode()
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
        model = fssops.create_model("panet").eval()
        assert isinstance(model, PANet)
        ours = list(model.parameters())
        with torch.no_grad():
            for mine, theirs in zip(ours, published.parameters(), strict=True):
                mine.copy_(theirs)
        del published, ours

        def forward() -> Tensor:
            return model(batch)

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=variant.endswith("bf16")):
            return forward()

    return run


def measured(variant: str) -> dict[str, float]:
    """Seconds (best of three) and peak memory in MB, in a fresh process."""
    command = [sys.executable, __file__, "--measure", variant]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peak_megabytes() -> float:
    """Highest resident memory of this process; getrusage would count the parent's before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(variant: str) -> dict[str, float]:
    """What :func:`measured` runs."""
    run = runner(variant)
    before = peak_megabytes()
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak = peak_megabytes()
    return {"seconds": min(seconds[1:]), "peak_mb": peak, "before_mb": before}


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(benchmark, variant: str) -> None:
    run = runner(variant)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


def test_same_logits() -> None:
    ours, theirs = runner("fssops")(), runner("published")()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_ratio_of_time_and_memory() -> None:
    found = {variant: measured(variant) for variant in VARIANTS}
    base = found["published"]
    print("\nvariant          seconds  times faster  peak MB  of published  of that above the start")
    for variant, row in found.items():
        above = (row["peak_mb"] - row["before_mb"]) / (base["peak_mb"] - base["before_mb"])
        print(
            f"{variant:<16} {row['seconds']:7.3f}  {base['seconds'] / row['seconds']:12.2f}  {row['peak_mb']:7.0f}  "
            f"{row['peak_mb'] / base['peak_mb']:12.2f}  {above:23.2f}"
        )
    assert found["fssops"]["seconds"] < base["seconds"]
    assert found["fssops"]["peak_mb"] < base["peak_mb"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", choices=VARIANTS, required=True)
    print(json.dumps(measure(parser.parse_args().measure)))
