"""Multi-scale deformable attention at the sizes of Mask2Former's pixel decoder, against the published PyTorch calls.

On CUDA there is a peer too: the usual kernel of one thread a channel (peers/deformable_per_channel.cu).
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops
from fssops.reference.ms_deform_attn import sampling_locations

HEADS, CHANNELS, POINTS = 8, 32, 4


@dataclass(frozen=True)
class Work:
    """One encoder layer: every token is a query."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    scattered: bool = False  # points anywhere in the image, not around their query


WORKS = [
    Work("512 px, 5376 tokens", ((16, 16), (32, 32), (64, 64))),
    Work("512 px, 5376 tokens, scattered points", ((16, 16), (32, 32), (64, 64)), scattered=True),
    Work("1024 px, 21504 tokens", ((32, 32), (64, 64), (128, 128))),
]


def composition(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """The published fallback: one grid_sample a level, all samples stacked, multiplied and summed."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        height, width = shapes[level]
        plane = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    return (stacked * weights).sum(-1).view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def fused_composition(
    value: Tensor, shapes: tuple[tuple[int, int], ...], refs: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The layer around it: softmax and location arithmetic first."""
    weights = F.softmax(logits, -1).view(offsets.shape[:-1])
    size = torch.tensor([(w, h) for h, w in shapes], device=value.device)
    locations = refs[:, :, None, :, None] + offsets / size[:, None]
    return composition(value, shapes, locations.to(value.dtype), weights)


def _inputs(work: Work, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Value, reference points, offsets and logits as an encoder layer makes them."""
    generator = torch.Generator().manual_seed(0)
    levels, tokens = len(work.shapes), sum(h * w for h, w in work.shapes)
    value = torch.randn(1, tokens, HEADS, CHANNELS, generator=generator)
    grids = []
    for height, width in work.shapes:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        grids.append(torch.stack([x, y], -1).flatten(0, 1))
    refs = torch.cat(grids)[None, :, None].repeat(1, 1, levels, 1)
    angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
    ring = torch.stack([angles.cos(), angles.sin()], -1)[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
    offsets = ring + torch.randn(1, tokens, HEADS, levels, POINTS, 2, generator=generator)
    if work.scattered:
        size = torch.tensor([(w, h) for h, w in work.shapes])[:, None]
        places = torch.rand(1, tokens, HEADS, levels, POINTS, 2, generator=generator)
        offsets = (places - refs[:, :, None, :, None]) * size
    logits = torch.randn(1, tokens, HEADS, levels * POINTS, generator=generator)
    # Reference points stay in float32: half types do not resolve a cell.
    return [value.to(device, dtype), refs.to(device), offsets.to(device, dtype), logits.to(device, dtype)]


@lru_cache(maxsize=1)
def _peer_library() -> ctypes.CDLL:
    source = Path(__file__).with_name("peers") / "deformable_per_channel.cu"
    library = Path(tempfile.mkdtemp()) / "peer.so"
    command = ["nvcc", "-O3", "-arch=native", "-shared", "-Xcompiler=-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(library))


class Peer(torch.autograd.Function):
    """The peer's kernels behind autograd, float32 on CUDA."""

    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        arguments = (value, shapes, starts, locations, weights, output)
        Peer._call("peer_forward", value, locations, arguments)
        return output

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        value, _, _, locations, weights = ctx.saved_tensors
        grads = torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights)
        Peer._call("peer_backward", value, locations, (grad.contiguous(), *ctx.saved_tensors, *grads))
        return grads[0], None, None, grads[1], grads[2]

    @staticmethod
    def _call(name: str, value: Tensor, locations: Tensor, tensors: tuple[Tensor, ...]) -> None:
        numbers = [*value.shape, locations.shape[1], locations.shape[3], locations.shape[4]]
        sizes = (ctypes.c_int * len(numbers))(*numbers)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = getattr(_peer_library(), name)(sizes, *pointers, stream)
        if status != 0:
            raise RuntimeError(f"{name}: the launch must succeed, got CUDA error {status}")


def _function(entry: str, implementation: str, work: Work, device: torch.device) -> Callable[..., Tensor]:
    shapes = work.shapes
    if implementation == "peer":
        sizes = torch.tensor(shapes, device=device)
        starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
        return lambda value, locations, weights: Peer.apply(value, sizes, starts, locations, weights)
    if implementation == "fssops":
        native = ops.ms_deform_attn if entry == "published" else ops.ms_deform_attn_fused
        return lambda value, *others: native(value, shapes, *others)
    calls = composition if entry == "published" else fused_composition
    calls = torch.compile(calls) if implementation == "compiled" else calls
    return lambda value, *others: calls(value, shapes, *others)


@pytest.mark.parametrize("implementation", ["composition", "compiled", "peer", "fssops"])
@pytest.mark.parametrize("direction", ["forward", "with_backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("entry", ["published", "fused"])
@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.name)
def test_ms_deform_attn(measure, device, work, entry, dtype, direction, implementation) -> None:  # type: ignore[no-untyped-def]
    if device.type == "cpu" and (dtype != "float32" or implementation == "peer"):
        pytest.skip("half precision and the peer are measured on the GPU")
    if implementation == "peer" and (entry != "published" or dtype != "float32"):
        pytest.skip("the peer has the published entry in float32")
    if implementation == "compiled" and (entry != "published" or work is not WORKS[0]):
        pytest.skip("compiling takes long: one size is enough")
    value, refs, offsets, logits = _inputs(work, device, getattr(torch, dtype))
    tensors = [value, refs, offsets, logits]
    if entry == "published":
        locations = sampling_locations(work.shapes, refs, offsets.float())
        weights = logits.float().softmax(-1).view(offsets.shape[:-1])
        # The published calls want one dtype; ours takes float32 locations with half values.
        keep = torch.float32 if implementation == "fssops" else value.dtype
        tensors = [value, locations.to(keep), weights.to(keep)]
    function = _function(entry, implementation, work, device)
    if dtype == "float32":
        expected = (composition if entry == "published" else fused_composition)(tensors[0], work.shapes, *tensors[1:])
        torch.testing.assert_close(function(*tensors), expected, rtol=1e-4, atol=2e-4)
    leaves = [t.detach().requires_grad_(i != 1 or entry == "published") for i, t in enumerate(tensors)]
    grad = torch.randn(1, value.shape[1], HEADS * CHANNELS, device=device).to(value.dtype)

    def with_backward() -> list[Tensor | None]:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(grad)
        return [leaf.grad for leaf in leaves]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*tensors)

    moved = float(sum(t.numel() * t.element_size() for t in tensors) + grad.numel() * grad.element_size())
    samples = value.shape[1] * HEADS * len(work.shapes) * POINTS
    products = 2.0 * 4 * CHANNELS * samples
    measure(
        forward if direction == "forward" else with_backward,
        group=f"ms_deform_attn {work.name} {entry} {dtype} {direction}",
        implementation=implementation,
        bytes_moved=moved * (1 if direction == "forward" else 3),
        operations=products * (1 if direction == "forward" else 3),
    )
