"""Cases of the deformable attention operator: outputs and gradients in two precisions, and the authors' module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fssops import ops
from fssops.models.layers.ms_deform_attn import MSDeformAttn
from parity_cases.case import Case, Line, compared, not_compared

BOX_SIDE = 0.3
"""Width and height that the module's case with boxes adds to its reference points."""


def recognise(description: dict[str, Any]) -> bool:
    """Whether a case.json is one of the operator's."""
    return str(description.get("system", "")).startswith("MSDeformAttn operator")


def _tolerance(case: Case, suffix: str) -> float:
    found = re.search(rf"{suffix}:\s*([0-9.eE+-]+)", str(case.description.get("tolerances", "")))
    return float(found[1]) if found else {"f64": 1e-10, "f32": 1e-5}[suffix]


def _operator(case: Case, shapes: list[tuple[int, int]], dtype: torch.dtype) -> dict[str, Tensor]:
    names = ("value", "sampling_locations", "attention_weights")
    leaves = {name: case.tensor(name, dtype).requires_grad_() for name in names}
    output = ops.ms_deform_attn(leaves["value"], shapes, leaves["sampling_locations"], leaves["attention_weights"])
    output.backward(case.tensor("grad_output", dtype))
    found = {"output": output}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            found[f"grad_{name}"] = leaf.grad
    return found


def _module(case: Case, shapes: list[tuple[int, int]]) -> dict[str, Tensor]:
    sizes = case.description["case"]
    module = MSDeformAttn(sizes["M"] * sizes["D"], sizes["M"], len(shapes), sizes["P"]).eval()
    found = {"init_sampling_offsets_bias": module.sampling_offsets.bias.detach().clone()}
    module.load_state_dict(case.weights())
    query, tokens = case.tensor("mod_query"), case.tensor("mod_input_flatten")
    points = case.tensor("mod_reference_points")
    boxes = torch.cat([points, torch.full_like(points, BOX_SIDE)], -1)
    with torch.no_grad():
        found["mod_output"] = module(query, points, tokens, shapes, case.tensor("mod_padding_mask", torch.bool))
        found["mod_output_ref4"] = module(query, boxes, tokens, shapes)
    return found


def run(case: Case) -> Iterator[Line]:
    """Compare every array of a case."""
    shapes = [(int(h), int(w)) for h, w in case.description["spatial_shapes"]]
    found: dict[str, tuple[Tensor, str]] = {}
    for suffix, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        found |= {f"{name}_{suffix}": (value, suffix) for name, value in _operator(case, shapes, dtype).items()}
    if "mod_query" in case.arrays:
        found |= {name: (value, "f32") for name, value in _module(case, shapes).items()}
    for name, want in case.arrays.items():
        if name in found:
            value, suffix = found[name]
            yield compared(name, value, want.reshape(tuple(value.shape)), _tolerance(case, suffix))
        else:
            yield not_compared(name, "input of the operator or the module")
