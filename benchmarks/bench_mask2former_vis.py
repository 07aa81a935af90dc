"""Mask2Former-VIS-R50 on a video of 240 x 428 pixels: time and memory, whole and clip by clip.

``pytest benchmarks/bench_mask2former_vis.py -s`` segments videos of 16 and 32 frames in fresh processes and prints
seconds and peak resident memory of: ``published``, the published order of work with our modules (all frames pass the
backbone together, and the masks of all queries are formed at full size in all frames before ten are chosen);
``whole``, the same result as it is done here; and ``clips`` of 8 frames that share 2, of 64 frames too, whose memory
must not grow with the video. BENCH_THREADS sets the threads (2), BENCH_RESULTS=FILE writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import in_fresh_process, machine, peak_megabytes
from torch import Tensor
from torch.nn import functional as F

from fssops.models.mask2former_vis import Mask2FormerVIS, Mask2FormerVISConfig
from fssops.models.universal.postprocessing import best_instances

SIZE = (240, 428)
LENGTHS = (16, 32)
LONG = 64
WINDOW = 8
VARIANTS = ("published", "whole", "clips")


def model() -> Mask2FormerVIS:
    """The model of YouTube-VIS with random weights."""
    torch.manual_seed(0)
    return Mask2FormerVIS(Mask2FormerVISConfig(window=0, overlap=2)).eval()


def video(frames: int) -> Iterator[Tensor]:
    """A soft picture that drifts, made frame by frame as a decoder would."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 24, 60, generator=generator)
    wide = 255 * F.interpolate(coarse, (SIZE[0], SIZE[1] + 2 * LONG), mode="bicubic").clamp(0, 1)[0]
    for t in range(frames):
        yield wide[:, :, 2 * t : 2 * t + SIZE[1]].round().to(torch.uint8)


@torch.no_grad()
def published(network: Mask2FormerVIS, frames: int) -> Tensor:
    """Masks [10, T, H, W] in the published order of work."""
    images, _ = network.image_input(list(video(frames)))
    said = network.predict(images, None, auxiliary=False, frames=frames)
    logits = F.interpolate(said.mask_logits(0), size=said.padded_size, mode="bilinear", align_corners=False)
    queries, _, _ = best_instances(said.class_logits[-1, 0], 10)
    masks: Tensor = logits[queries][:, :, : SIZE[0], : SIZE[1]] > 0
    return masks


def run(network: Mask2FormerVIS, variant: str, frames: int) -> Any:
    """Segment a video; masks are kept as they would be for a results file."""
    if variant == "published":
        return published(network, frames)
    from fssops.run_lengths import encode

    window = WINDOW if variant == "clips" else 0
    return network.track(video(frames), window=window, keep=lambda masks: [encode(m) for m in masks.numpy()])


def _threads() -> int:
    return int(os.environ.get("BENCH_THREADS", "2"))


def measure_here(variant: str, frames: int) -> dict[str, float]:
    """Seconds of one run after a short one, and peak memory, of this process."""
    torch.set_num_threads(_threads())
    network = model()
    run(network, variant, 2)
    before = peak_megabytes()
    start = time.perf_counter()
    run(network, variant, frames)
    return {"seconds": time.perf_counter() - start, "megabytes": peak_megabytes(), "megabytes_of_two_frames": before}


def measured(variant: str, frames: int) -> dict[str, float]:
    """:func:`measure_here` in a fresh process."""
    # Large blocks straight from the system and back: glibc would else keep freed ones on its heap between the small
    # strings of masks, and what one sees would grow with the video though what is held does not.
    return in_fresh_process(__file__, variant, frames, environment={"MALLOC_MMAP_THRESHOLD_": "131072"})


def test_time_and_memory(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("resident memory says nothing about a GPU")
    rows = []
    for variant in VARIANTS:
        for frames in (*LENGTHS, LONG) if variant == "clips" else LENGTHS:
            found = measured(variant, frames)
            rows.append({"variant": variant, "frames": frames, "size": list(SIZE), **found})
            print(f"\n{variant} {frames} frames: {found['seconds']:.1f} s, {found['megabytes']:.0f} MB", flush=True)
    peaks = {(row["variant"], row["frames"]): row["megabytes"] for row in rows}
    assert peaks["clips", LONG] < 1.1 * peaks["clips", LENGTHS[-1]]
    assert peaks["clips", LENGTHS[-1]] < peaks["whole", LENGTHS[-1]] < peaks["published", LENGTHS[-1]]
    if path := os.environ.get("BENCH_RESULTS"):
        Path(path).write_text(
            json.dumps({"machine": machine(threads=_threads()), "window": WINDOW, "measurements": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FRAMES"), required=True)
    chosen = parser.parse_args().measure
    print(json.dumps(measure_here(chosen[0], int(chosen[1]))))
