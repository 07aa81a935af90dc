"""Putting a checkpoint's tensors into a model, with a report of what went where."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fssops.models.layers.singular_values import adapted_kernels, plain_name
from fssops.weights.layouts import Layout, layouts_of
from fssops.weights.reading import Checkpoint, CheckpointError, read_weights

FSSOPS = "fssops"
# Step counters of batch normalisation: written by some trainers, read by none of the systems.
_COUNTER = "num_batches_tracked"

Shape = tuple[int, ...]


@dataclass
class LoadReport:
    """What :func:`load_weights` did. ``str(report)`` is a table for people.

    Attributes:
        source: file, folder or "state dict".
        layout: name of the layout that was recognised.
        target: "model", or the submodule that a backbone's weights went to.
        loaded: our names of the tensors that were set.
        reshaped: (name, shape in the file, shape in the model) of loaded tensors of equal size but other shape.
        missing: our names within the target that the checkpoint does not give.
        unexpected: names in the checkpoint that the model does not have.
        replaced: (name, shape in the file, shape in the model) of tensors that do not fit and kept the model's values;
            only with ``strict=False``.
        reinitialised: the same for the classifier of a checkpoint with another number of classes; never an error.
        ignored: entries of the checkpoint that are known not to matter.
        untouched: number of the model's tensors outside the target.
    """

    source: str
    layout: str
    target: str = "model"
    loaded: list[str] = field(default_factory=list)
    reshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    replaced: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    reinitialised: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    untouched: int = 0

    @property
    def complete(self) -> bool:
        """Whether every tensor of the target was set and nothing was left over."""
        return not (self.missing or self.unexpected or self.replaced)

    def __str__(self) -> str:
        def names(found: list[str]) -> str:
            return ", ".join(found[:4]) + (f", and {len(found) - 4} more" if len(found) > 4 else "")

        def shapes(found: list[tuple[str, Shape, Shape]]) -> str:
            return names([f"{name} {list(old)} -> {list(new)}" for name, old, new in found])

        rows = [
            ("source", 0, self.source),
            ("layout", 0, self.layout),
            ("loaded", len(self.loaded), f"tensors of the {self.target}"),
            ("reshaped", len(self.reshaped), shapes(self.reshaped)),
            ("missing", len(self.missing), names(self.missing)),
            ("unexpected", len(self.unexpected), names(self.unexpected)),
            ("replaced", len(self.replaced), shapes(self.replaced)),
            ("classifier", len(self.reinitialised), f"other classes, starts anew: {shapes(self.reinitialised)}"),
            ("ignored", len(self.ignored), names(self.ignored)),
            ("untouched", self.untouched, f"tensors outside the {self.target}" if self.untouched else ""),
        ]
        shown = [
            (name, str(count) if count else "", text)
            for name, count, text in rows
            if count or (text and name != "classifier")
        ]
        return "\n".join(f"{name:<11}{count:>6}  {text}".rstrip() for name, count, text in shown)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
) -> LoadReport:
    """Set a model's weights from a checkpoint of any known layout; nothing that the file holds is executed.

    The layout is recognised from the names: fssops' own, the authors', transformers', or that of a backbone alone
    (torchvision, detectron2), which then fills ``model.backbone``.

    Args:
        model: built by :func:`fssops.create_model`, or a backbone.
        source: ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file, a folder in transformers' layout, or a state
            dict.
        strict: whether a missing, unexpected or ill-shaped tensor is an error. With False they are left at the model's
            values and reported; a checkpoint of another model stays an error.

    Raises:
        FileNotFoundError: there is no such path.
        CheckpointError: the file cannot be read, is of another model, or (strict) does not fit; the model is unchanged.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_weights(source)
    _refuse_misfits(model, checkpoint)
    layout, target, prefix = _recognise(model, checkpoint)
    report = LoadReport(checkpoint.source, layout.name if layout else FSSOPS, prefix.rstrip(".") or "model")
    own = target.state_dict()
    report.untouched = len(model.state_dict()) - len(own)
    report.ignored = list(checkpoint.skipped)

    state: Mapping[str, Tensor] = checkpoint.state
    if layout is not None:
        known = [re.compile(pattern) for pattern in layout.ignore]
        report.ignored += [key for key in state if any(pattern.search(key) for pattern in known)]
        kept = {key: value for key, value in state.items() if not any(pattern.search(key) for pattern in known)}
        state = layout.convert(kept, target)
    state = adapted_kernels(target, state)

    # Stages that this backbone leaves out, since nothing uses them.
    unbuilt = getattr(target, "unbuilt", ())
    ready: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in own:
            known_absent = key.endswith(_COUNTER) or key.split(".")[0] in unbuilt
            (report.ignored if known_absent else report.unexpected).append(key)
            continue
        old, new = tuple(value.shape), tuple(own[key].shape)
        if old != new and _squeezed(old) != _squeezed(new):
            # A model names the tensors that depend on the number of classes; they alone may differ.
            other_classes = key.startswith(tuple(getattr(target, "class_dependent", ())))
            (report.reinitialised if other_classes else report.replaced).append((key, old, new))
            continue
        if old != new:
            report.reshaped.append((key, old, new))
        ready[key] = value.reshape(new)
    report.missing = [prefix + key for key in own if key not in state and not key.endswith(_COUNTER)]
    report.loaded = [prefix + key for key in ready]
    if not ready:
        raise CheckpointError(
            f"load_weights: no tensor of {checkpoint.source} fits {_name_of(model)}; {_advice(report)}"
        )
    if strict and not report.complete:
        raise CheckpointError(f"load_weights: {checkpoint.source} does not fit {_name_of(model)}: {_advice(report)}")
    with torch.no_grad():
        for key, value in ready.items():
            own[key].copy_(value)
    return report


def _squeezed(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)


def _name_of(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))


def _refuse_misfits(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse weights of a relative that would nearly fit; a model names their tensors and the reason (``misfits``)."""
    for pattern, reason in getattr(model, "misfits", ()):
        if any(re.search(pattern, key) for key in checkpoint.state):
            raise CheckpointError(f"load_weights: {checkpoint.source} does not fit {_name_of(model)}: {reason}")


def _recognise(model: nn.Module, checkpoint: Checkpoint) -> tuple[Layout | None, nn.Module, str]:
    """The layout (None: our own), the module it is for, and that module's prefix in the model's names."""
    keys = checkpoint.state.keys()
    own = {plain_name(key) for key in model.state_dict()}
    values = {plain_name(key) for key in keys if not key.endswith(_COUNTER)}
    common = len(values & own)
    if common * 10 >= len(values) * 9:
        # Some layouts name nearly everything as we do (Swin's); what is left over is theirs to explain.
        for layout in layouts_of(_name_of(model)) if common < len(values) else ():
            if layout.recognise(keys):
                return layout, model, ""
        return None, model, ""
    backbone = getattr(model, "backbone", None)
    targets = [(_name_of(model), model, "")]
    # A system may be made of others, each with weights of its own (``parts``).
    parts = [(f"{part}.", model.get_submodule(part)) for part in getattr(model, "parts", ())]
    targets += [(_name_of(part), part, prefix) for prefix, part in parts]
    if isinstance(backbone, nn.Module):
        targets.append((_name_of(backbone), backbone, "backbone."))
    for prefix, part in parts:
        if len(values & {plain_name(key) for key in part.state_dict()}) * 10 >= len(values) * 9:
            return None, part, prefix
    applicable = [name for name, _, _ in targets]
    for layout in layouts_of():
        if layout.recognise(keys):
            for name, module, prefix in targets:
                if layout.fits(name):
                    return layout, module, prefix
            raise CheckpointError(
                f"load_weights: {checkpoint.source} looks like {layout.name} weights of {layout.model}, and the model "
                f"is {' with backbone '.join(applicable)}; build the matching model, or give weights for this one"
            )
    if isinstance(backbone, nn.Module) and len(keys & backbone.state_dict().keys()) * 2 >= len(keys):
        return None, backbone, "backbone."
    if common * 2 >= len(keys):
        return None, model, ""
    accepted = "; ".join(["fssops", *(layout.name for layout in layouts_of(*applicable))])
    raise CheckpointError(
        f"load_weights: {checkpoint.source} is of no layout known for {_name_of(model)} (known: {accepted}); its first "
        f"names are {', '.join(list(keys)[:3])}"
    )


def _advice(report: LoadReport) -> str:
    problems = []
    if report.replaced:
        name, old, new = report.replaced[0]
        problems.append(f"{len(report.replaced)} of another shape, e.g. {name} is {list(old)} and must be {list(new)}")
    if report.missing:
        problems.append(f"{len(report.missing)} missing, e.g. {report.missing[0]}")
    if report.unexpected:
        problems.append(f"{len(report.unexpected)} unexpected, e.g. {report.unexpected[0]}")
    return (
        "; ".join(problems)
        + f" (layout {report.layout}); build the model with the checkpoint's options, or pass strict=False to keep the "
        "model's values for what does not fit"
    )


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's weights as safetensors, atomically, with its name and configuration as metadata.

    Args:
        model: any module; a system's ``name`` and ``config`` attributes are stored where it has them.
        path: ends in ``.safetensors``.

    Raises:
        ValueError: another ending.
        OSError: the folder cannot be written, or the disk is full; no partial file is left.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_weights: path must end in .safetensors, got {path}")
    metadata = {"format": "pt", "fssops_model": _name_of(model)}
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        metadata["fssops_config"] = json.dumps(dataclasses.asdict(config))
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = save(state, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
