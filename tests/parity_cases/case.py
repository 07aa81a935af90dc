"""A case folder, the weights it stands for, and the lines that comparing it gives."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fssops.weights.layouts import layouts_of

Array = np.ndarray[Any, Any]


class CaseError(ValueError):
    """A folder that is not a case, or of a system that has not landed."""


@dataclass
class Line:
    """One array of a case.

    Attributes:
        name: of the array.
        error: largest error in the measure of the tolerance; None where the array was not compared.
        tolerance: what the error may be.
        measure: what the error is, e.g. "of max|b|", or why the array was not compared.
    """

    name: str
    error: float | None
    tolerance: float
    measure: str

    @property
    def out(self) -> bool:
        """Whether the array was compared and is out of tolerance (a NaN is)."""
        return self.error is not None and not self.error <= self.tolerance

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name:<58} not compared: {self.measure}"
        verdict = "OUT" if self.out else "ok"
        return f"{self.name:<58} {self.error:9.2e}  <= {self.tolerance:7.1e}  {verdict:<3}  {self.measure}"


@dataclass
class Case:
    """A folder in the form of shared/oracles: ``case.json`` and ``arrays.npz``."""

    folder: Path
    description: dict[str, Any]
    arrays: dict[str, Array]
    fill: Callable[..., Array]

    @classmethod
    def read(cls, folder: Path, oracle_weights: Path | None = None) -> Case:
        """Read a folder; ``oracle_weights.py`` is sought beside it and in the folders above.

        Raises:
            CaseError: something is missing.
        """
        for needed in ("case.json", "arrays.npz"):
            if not (folder / needed).exists():
                raise CaseError(f"{folder}: a case folder must hold {needed}, got none")
        description = json.loads((folder / "case.json").read_text())
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(folder, description, arrays, _fill_function(folder, oracle_weights))

    @property
    def name(self) -> str:
        return str(self.description.get("case") or self.description.get("name") or self.folder.name)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """An array as a tensor."""
        values = torch.from_numpy(np.array(self.arrays[name]))
        return values if dtype is None else values.to(dtype)

    def weights(self) -> dict[str, Tensor]:
        """The reference's state dict: every row of ``state`` filled, scaled or overridden as the case says.

        Entries that match ``keep_constructed`` are left out.
        """
        table = self.description
        salt = table.get("salt", "")
        scales: Mapping[str, float] = table.get("state_scale", {})
        rules = [_scale_rule(rule) for rule in table.get("scale_rules", [])]
        kept = [re.compile(pattern) for pattern in table.get("keep_constructed", [])]
        stored = set(table.get("weights_in_npz", []))
        state: dict[str, Tensor] = {}
        for key, shape, _ in table["state"]:
            if any(pattern.search(key) for pattern in kept):
                continue
            if key in stored:
                state[key] = self.tensor(f"weights/{key}")
                continue
            values = self.fill(key, tuple(shape), salt)
            factor = float(scales.get(key, 1.0))
            for pattern, value in rules:
                factor *= value(values.size) if pattern.search(key) else 1.0
            state[key] = torch.from_numpy(
                values if factor == 1.0 else (values * np.float32(factor)).astype(values.dtype)
            )
        return state

    def tolerance(self, kind: str, default: float) -> float:
        """The number after ``<=`` in the case's tolerance of a kind."""
        text = self.description.get("tolerance", {}).get(kind, "")
        found = re.search(r"<=\s*([0-9.eE+-]+)", text)
        return float(found[1]) if found else default

    def tolerance_of(self, name: str, default: float) -> float:
        """The tolerance of an array: of the kind that lists it, e.g. "debiased, cluster.*", else of "default"."""
        for kind in self.description.get("tolerance", {}):
            if any(fnmatchcase(name, pattern.strip()) for pattern in kind.split(",")):
                return self.tolerance(kind, default)
        return self.tolerance("default", default)

    def what(self, name: str) -> str:
        """What the case says in words of an array; empty where it says nothing."""
        return str(self.description.get("arrays", {}).get(name, {}).get("what", ""))

    def cut(self, name: str, values: Tensor) -> Tensor:
        """The part of a whole array that the case keeps: ``values[index]``, with its "index" or "subsample"."""
        index = self.description.get("arrays", {}).get(name, {}).get("index")
        index = index or self.description.get("subsample", {}).get(name)
        return values[index_of(index)] if index else values

    def share(self, kind: str, default: float) -> float:
        """The share, 0 to 1, after ``>=`` in the case's tolerance of a kind, e.g. ">= 99.9 % equal"."""
        text = self.description.get("tolerance", {}).get(kind, "")
        found = re.search(r">=\s*([0-9.]+)\s*%", text)
        return float(found[1]) / 100 if found else default

    def inputs(self) -> list[str]:
        """Names of the arrays that are given to the model."""
        table = self.description.get("arrays", {})
        return [name for name in self.arrays if table.get(name, {}).get("role") == "input"]


def _scale_rule(rule: Any) -> tuple[re.Pattern[str], Callable[[int], float]]:
    """Pattern of names, and the factor of a tensor with so many entries.

    A rule is a pair (pattern, number), or {"pattern", "multiplier"} with a number or "sqrt(numel)/number" as text.
    """
    pattern, multiplier = (rule["pattern"], rule["multiplier"]) if isinstance(rule, Mapping) else rule
    text = str(multiplier)
    if text.startswith("sqrt(numel)/"):
        divisor = float(text.removeprefix("sqrt(numel)/"))
        return re.compile(pattern), lambda entries: float(np.sqrt(entries)) / divisor
    return re.compile(pattern), lambda entries: float(text)


def _fill_function(folder: Path, given: Path | None) -> Callable[..., Array]:
    places = [given] if given else [parent / "oracle_weights.py" for parent in folder.resolve().parents[:3]]
    for place in places:
        if place.exists():
            spec = importlib.util.spec_from_file_location("oracle_weights", place)
            if spec is None or spec.loader is None:
                raise CaseError(f"{place}: must be a Python file with a function fill")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.fill  # type: ignore[no-any-return]
    raise CaseError(f"{folder}: oracle_weights.py must lie beside the case folders, or be given by --oracle-weights")


def index_of(text: str) -> tuple[Any, ...]:
    """An index as the cases write it, e.g. "[:, ::32]" or "[..., 0, 1:9]"."""
    parts: list[Any] = []
    for part in text.strip("[] ").split(","):
        if part.strip() == "...":
            parts.append(...)
        elif ":" in part:
            parts.append(slice(*(int(number) if number.strip() else None for number in part.split(":"))))
        else:
            parts.append(int(part))
    return tuple(parts)


def _array(values: Tensor | Array | float) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def compared(name: str, got: Tensor | Array | float, want: Array, tolerance: float) -> Line:
    """Largest absolute error relative to the largest absolute value wanted.

    What is kept in float16 stands for every value that rounds to it: the error counts from the nearest of these.
    """
    values = _array(got).astype(np.float64)
    if values.shape != want.shape:
        return Line(name, float("inf"), tolerance, f"shape {list(values.shape)}, wanted {list(want.shape)}")
    if want.size == 0:
        return Line(name, 0.0, tolerance, "empty")
    top = float(np.abs(want.astype(np.float64)).max())
    error = np.abs(values - want.astype(np.float64))
    measure = "of max|b|"
    if want.dtype == np.float16:
        error = np.maximum(error - np.abs(np.spacing(want)).astype(np.float64) / 2, 0)
        measure += ", beyond the rounding of float16"
    return Line(name, float(error.max()) / max(top, 1e-30), tolerance, measure)


def compared_share(name: str, got: Tensor | Array, want: Array, share: float) -> Line:
    """Share of unequal entries; at least ``share`` must be equal."""
    values = _array(got)
    if values.shape != want.shape:
        return Line(name, float("inf"), 1 - share, f"shape {list(values.shape)}, wanted {list(want.shape)}")
    return Line(name, float((values != want).mean()) if want.size else 0.0, 1 - share, "of entries differ")


def compared_exactly(name: str, got: Tensor | Array, want: Array) -> Line:
    """Number of unequal entries; none may be."""
    values = _array(got)
    if values.shape != want.shape:
        return Line(name, float("inf"), 0.0, f"shape {list(values.shape)}, wanted {list(want.shape)}")
    return Line(name, float((values != want).sum()), 0.0, "entries differ")


def not_compared(name: str, why: str) -> Line:
    """A line for an array that is not compared."""
    return Line(name, None, 0.0, why)


def summary_of(values: Tensor, form: str) -> Tensor:
    """How the cases shorten big arrays.

    Args:
        values: any shape.
        form: "stats" for [mean, population standard deviation, min, max, L2 norm], "sample" for the first 256 of every
            step-th value in C order, step = (n // 256) | 1, "channels0_8" for the first 8 channels.
    """
    if form == "stats":
        v = values.detach().double()
        return torch.stack([v.mean(), v.std(unbiased=False), v.min(), v.max(), v.norm()])
    if form == "sample":
        flat = values.detach().flatten()
        return flat[:: (flat.numel() // 256) | 1][:256]
    if form == "channels0_8":
        return values.detach()[:, :8]
    raise CaseError(f"summary must be stats, sample or channels0_8, got {form!r}")


def compared_gradient(name: str, want: Array, model: nn.Module, ours: Mapping[str, str], tolerance: float) -> Line:
    """Compare ``grad.<their parameter>``, whole or as ``.stats`` or ``.sample``, with the gradient in our model.

    Args:
        name: of the array.
        want: the array.
        model: after the backward pass.
        ours: see :func:`our_names`.
        tolerance: of the largest value.
    """
    key, _, form = name.removeprefix("grad.").rpartition(".")
    if form not in ("stats", "sample"):
        key, form = name.removeprefix("grad."), ""
    gradient = model.get_parameter(ours[key]).grad if key in ours else None
    if gradient is None:
        return not_compared(name, f"the model has no gradient for {key}")
    return compared(name, summary_of(gradient, form) if form else gradient, want, tolerance)


def our_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """The reference's names to ours, for tensors that the layout of ``state`` passes on whole."""
    name = str(getattr(model, "name", ""))
    for layout in layouts_of(name):
        if layout.recognise(state.keys()):
            places = {id(tensor): ours for ours, tensor in layout.convert(state, model).items()}
            return {key: places[id(tensor)] for key, tensor in state.items() if id(tensor) in places}
    raise CaseError(f"no layout of {name} recognises the case's names, e.g. {next(iter(state))}")
