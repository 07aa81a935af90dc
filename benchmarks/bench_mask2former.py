"""Mask2Former-R50, one image of 512 x 512 with 8 objects, against transformers with the same weights.

``pytest benchmarks/bench_mask2former.py -s`` checks that class and mask logits agree, times the forward pass and a
training step (losses and backward), and prints the ratios of time and of peak resident memory, each measured in a
fresh process. Two CPU threads, float32; on a GPU bfloat16, both in one process. Without ``transformers`` only fssops is
measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from measuring import fastest, in_fresh_process, peak_megabytes, print_ratios
from torch import Tensor

from fssops.models.mask2former import Mask2Former, Mask2FormerConfig
from fssops.structures import ImageBatch, MaskTargets
from fssops.weights.transformers_folder import to_transformers, transformers_config

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


def measured(variant: str, what: str) -> dict[str, float]:
    """Seconds (best of three) and peak memory in MB, in a fresh process."""
    return in_fresh_process(__file__, variant, what)


def measure_here(variant: str, what: str) -> dict[str, float]:
    """What :func:`measured` runs."""
    torch.set_num_threads(2)
    return {"seconds": fastest(runner(variant, what), 3), "peak_mb": peak_megabytes()}


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
def test_time_and_resident_memory_in_fresh_processes(device: torch.device, what: str) -> None:
    if device.type != "cpu":
        pytest.skip("resident memory says nothing about a GPU; see the table of the other tests")
    variants = ("fssops", "fssops_recompute") if what == "step" else ("fssops",)
    ours = {variant: measured(variant, what) for variant in variants}
    if find_spec("transformers") is None:
        print_ratios(what, ours)
        pytest.skip("transformers is not there to compare with")
    other = measured("transformers", what)
    print_ratios(what, {"transformers": other, **ours})
    print("aims: {} times faster, {} of the memory".format(*TARGETS[what]))
    assert all(found["seconds"] < other["seconds"] for found in ours.values())


@pytest.mark.parametrize("what", list(TARGETS))
@pytest.mark.parametrize(("implementation", "variant"), [("composition", "transformers"), ("fssops", "fssops")])
def test_bfloat16_on_a_gpu(measure, device: torch.device, what: str, implementation: str, variant: str) -> None:  # type: ignore[no-untyped-def]
    if device.type != "cuda":
        pytest.skip("on the CPU both are measured in fresh processes")
    if variant == "transformers":
        pytest.importorskip("transformers")
    run = runner(variant, what, device.type, torch.bfloat16)
    measure(run, group=f"Mask2Former-R50 512 px {what} bfloat16", implementation=implementation)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "WHAT"), required=True)
    print(json.dumps(measure_here(*parser.parse_args().measure)))
