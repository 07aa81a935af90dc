"""Mask2Former-R50, one image of 512 x 512 with 8 objects, against transformers with the same weights.

``pytest benchmarks/bench_mask2former.py -s`` checks that class and mask logits agree, times the forward pass and a
training step (losses and backward), and prints the ratios of time and of peak resident memory, each measured in a
fresh process. Two CPU threads, float32. Needs ``transformers``; without it only fssops is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.structures import ImageBatch, MaskTargets
from fssops.weights.transformers_layout import to_transformers, transformers_config

SIDE = 512
OBJECTS = 8
TARGETS = {"forward": (2.0, 0.6), "step": (1.8, 0.5)}
"""Times faster, and share of the peak memory, to reach on the CPU."""


def model(*, recompute: bool = False) -> Mask2Former:
    """The COCO panoptic model with random weights; attention masks are about half open."""
    torch.manual_seed(0)
    return Mask2Former(Mask2FormerConfig(recompute=recompute))


def batch(device: str = "cpu") -> ImageBatch:
    """One image and its objects: ellipses of several sizes."""
    generator = torch.Generator().manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32, generator=generator), SIDE, mode="bicubic")[0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    shapes = torch.rand(OBJECTS, 4, generator=generator)
    masks = torch.stack(
        [((x - 2 * a + 1) / (0.1 + c)) ** 2 + ((y - 2 * b + 1) / (0.1 + d)) ** 2 < 1 for a, b, c, d in shapes.tolist()]
    )
    labels = torch.randint(0, 133, (OBJECTS,), generator=generator)
    return ImageBatch([(255 * image.clamp(0, 1)).to(device)], [MaskTargets(labels.to(device), masks.to(device))])


def theirs() -> Any:
    """transformers' model with the weights of :func:`model`."""
    import transformers

    own = model()
    table = transformers_config(own)
    backbone = transformers.ResNetConfig(**{k: v for k, v in table.pop("backbone_config").items() if k != "model_type"})
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, **{k: v for k, v in table.items() if k not in ("model_type", "architectures")}
    )
    twin = transformers.Mask2FormerForUniversalSegmentation(config)
    twin.load_state_dict(to_transformers(own))
    return twin


def runner(variant: str, what: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Callable[[], Any]:
    """A function that runs one forward pass or training step of a variant.

    Args:
        variant: whose implementation: "fssops", "fssops_recompute" (less memory in training) or "transformers".
        what: "forward" or "step".
        device: where.
        dtype: of autocast; None runs in float32.
    """
    given = batch(device)
    training = what == "step"
    network: torch.nn.Module
    if variant.startswith("fssops"):
        own = network = model(recompute=variant == "fssops_recompute").to(device).train(training)

        def run() -> Any:
            return torch.stack(list(own.losses(given).values())).sum() if training else own(given)

    else:
        twin = network = theirs().to(device).train(training)
        # Its batch norms have fixed statistics in the published training.
        for module in twin.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        images, _ = model().image_input.to(device)(given.images)
        arguments: dict[str, Any] = {"pixel_values": images}
        if training:
            assert given.targets is not None
            target = given.targets[0]
            arguments |= {"mask_labels": [target.masks.float()], "class_labels": [target.labels]}

        def run() -> Any:
            said = twin(**arguments)
            return said.loss if training else said

    def measured_once() -> Any:
        network.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(training), torch.autocast(device, dtype, enabled=dtype is not None):
            result = run()
        if training:
            result.backward()
        return result

    return measured_once


def peak_megabytes() -> float:
    """Highest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(variant: str, what: str, repeats: int) -> dict[str, float]:
    """Best seconds of some runs, and peak memory, of this process."""
    torch.set_num_threads(2)
    run = runner(variant, what)
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "megabytes": peak_megabytes()}


def measured(variant: str, what: str, repeats: int = 3) -> dict[str, float]:
    """:func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", variant, what, str(repeats)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_logits_agree_with_transformers() -> None:
    pytest.importorskip("transformers")
    ours, said = runner("fssops", "forward")(), runner("transformers", "forward")()
    pairs: tuple[tuple[Tensor, Tensor], ...] = (
        (ours.class_logits[-1], said.class_queries_logits),
        (ours.mask_logits(0)[None, :, 0], said.masks_queries_logits),
    )
    for found, wanted in pairs:
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-3


@pytest.mark.parametrize("what", list(TARGETS))
def test_time_and_memory(what: str) -> None:
    variants = ("fssops", "fssops_recompute") if what == "step" else ("fssops",)
    ours = {variant: measured(variant, what) for variant in variants}
    for variant, found in ours.items():
        print(f"\n{variant} {what}: {found['seconds']:.2f} s, {found['megabytes']:.0f} MB")
        assert found["seconds"] > 0
    pytest.importorskip("transformers")
    other = measured("transformers", what)
    print(f"transformers {what}: {other['seconds']:.2f} s, {other['megabytes']:.0f} MB")
    for variant, found in ours.items():
        faster, share = other["seconds"] / found["seconds"], found["megabytes"] / other["megabytes"]
        print(
            f"{variant}: {faster:.2f} times faster (aim {TARGETS[what][0]}), {share:.2f} of the memory (aim"
            f" {TARGETS[what][1]})"
        )
        assert faster > 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=3, metavar=("VARIANT", "WHAT", "REPEATS"), required=True)
    chosen = parser.parse_args().measure
    print(json.dumps(measure(chosen[0], chosen[1], int(chosen[2]))))
