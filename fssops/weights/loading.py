"""Putting a checkpoint's tensors into a model, with a report of what went where."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fssops.models import MODELS, create_config
from fssops.models.layers.singular_values import adapted_kernels, plain_name
from fssops.weights.layout import State
from fssops.weights.reading import DESCRIPTION, Checkpoint, CheckpointError, read_weights
from fssops.weights.recognition import COUNTER, FSSOPS, name_of, recognise

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
        reinitialised: the same for the tensors of a head for another number of classes, which starts anew; only with
            ``new_head="tell"``.
        ignored: entries of the checkpoint that are known not to matter.
        passed_over: a line for each newer checkpoint of a run's folder that could not be read.
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
    passed_over: list[str] = field(default_factory=list)
    untouched: int = 0

    @property
    def complete(self) -> bool:
        """Whether every tensor of the target was set and nothing was left over."""
        return not (self.missing or self.unexpected or self.replaced)

    def __str__(self) -> str:
        def names(entries: list[str]) -> str:
            return ", ".join(entries[:4]) + (f", and {len(entries) - 4} more" if len(entries) > 4 else "")

        def shapes(entries: list[tuple[str, Shape, Shape]]) -> str:
            return names([f"{name} {list(old)} -> {list(new)}" for name, old, new in entries])

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
            ("passed over", len(self.passed_over), "; ".join(self.passed_over)),
            ("untouched", self.untouched, f"tensors outside the {self.target}"),
        ]
        return "\n".join(
            f"{name:<11}{count or '':>6}  {text}" for name, count, text in rows if count or name in ("source", "layout")
        )


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any] | Checkpoint,
    *,
    strict: bool = True,
    new_head: Literal["refuse", "tell"] = "refuse",
) -> LoadReport:
    """Set a model's weights from a checkpoint of any known layout; nothing that the file holds is executed.

    The layout is recognised from the names: fssops' own, the authors', transformers', or that of a backbone alone
    (torchvision, detectron2), which then fills ``model.backbone``.

    Args:
        model: built by :func:`fssops.create_model`, or a backbone.
        source: ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file, the folder of a run (its newest checkpoint that
            is whole), a folder in transformers' layout or of :func:`save_pretrained`, a name, address or repository
            (:func:`fssops.weights.find_weights`), a state dict, or what :func:`read_weights` has read.
        strict: whether a missing, unexpected or ill-shaped tensor is an error. With False they are left at the model's
            values and reported; a checkpoint of another model stays an error.
        new_head: what becomes of weights for another number of classes. "refuse": an error. "tell": all but the
            tensors that depend on the classes are set; those keep the model's random values and are reported, for a
            training that goes on from here. Frozen ones, which no training would change, are an error all the same.

    Raises:
        FileNotFoundError: nothing is called so.
        UnavailableWeightsError: it cannot be fetched.
        CheckpointError: the file cannot be read, is of another model, holds a value that is not finite, or does not
            fit; the model is unchanged.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_weights(source)
    _refuse_misfits(model, checkpoint)
    (layout, target, prefix), state, outside = recognise(model, checkpoint)
    report = LoadReport(
        checkpoint.source,
        layout.name if layout else FSSOPS,
        prefix.rstrip(".") or "model",
        ignored=[*checkpoint.skipped, *outside],
        passed_over=list(checkpoint.passed_over),
    )
    if layout is not None:
        ignore = [re.compile(pattern) for pattern in layout.ignore]
        ignored = [key for key in state if any(pattern.search(key) for pattern in ignore)]
        report.ignored += ignored
        state = layout.convert({key: value for key, value in state.items() if key not in set(ignored)}, target)
    _refuse_nonfinite(state, target, prefix, checkpoint.source)
    ready = _sorted_out(adapted_kernels(target, state), target, prefix, report)
    report.untouched = len(model.state_dict()) - len(target.state_dict())
    if not ready or (strict and not report.complete):
        raise CheckpointError(
            f"weights: {checkpoint.source} does not fit {name_of(model)}: {_misfit(model, checkpoint, report)}"
        )
    _refuse_new_head(target, prefix, report, new_head)
    tensors = target.state_dict()
    with torch.no_grad():
        for key, value in ready.items():
            tensors[key].copy_(value)
    return report


def _sorted_out(state: State, target: nn.Module, prefix: str, report: LoadReport) -> dict[str, Tensor]:
    """The tensors that fit the target, in its shapes; what becomes of all others is written into the report."""
    tensors = target.state_dict()
    unbuilt = getattr(target, "unbuilt", ())  # stages that this backbone leaves out, since nothing uses them
    class_dependent = tuple(getattr(target, "class_dependent", ()))
    ready: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in tensors:
            immaterial = key.endswith(COUNTER) or key.split(".")[0] in unbuilt
            (report.ignored if immaterial else report.unexpected).append(key)
            continue
        old, new = tuple(value.shape), tuple(tensors[key].shape)
        if _squeezed(old) != _squeezed(new):
            other_classes = key.startswith(class_dependent) and _squeezed(old[1:]) == _squeezed(new[1:])
            (report.reinitialised if other_classes else report.replaced).append((key, old, new))
            continue
        if old != new:
            report.reshaped.append((key, old, new))
        ready[key] = value.reshape(new)
    report.missing = [prefix + key for key in tensors if key not in state and not key.endswith(COUNTER)]
    report.loaded = [prefix + key for key in ready]
    return ready


def _squeezed(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)


def _refuse_misfits(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse weights of a relative that would nearly fit; a model names their tensors and the reason (``misfits``)."""
    for pattern, reason in getattr(model, "misfits", ()):
        if any(re.search(pattern, key) for key in checkpoint.state):
            raise CheckpointError(f"weights: {checkpoint.source} does not fit {name_of(model)}: {reason}")


def _refuse_new_head(target: nn.Module, prefix: str, report: LoadReport, new_head: str) -> None:
    """Refuse weights for other classes where no training follows, and for a frozen head, which stays as it is."""
    trained = {name for name, parameter in target.named_parameters() if parameter.requires_grad}
    frozen = [entry for entry in report.reinitialised if entry[0] not in trained]
    if not report.reinitialised or (new_head == "tell" and not frozen):
        return
    name, old, new = (frozen or report.reinitialised)[0]
    config = getattr(target, "config", None)
    option = next((option for option in ("num_classes", "base_classes") if hasattr(config, option)), "")
    # A head may have a row more, for the background or for no object, so rows are compared and not counted.
    classes = getattr(config, option, new[0])
    given = classes + old[0] - new[0]
    ways = [f"build the model with {option}={given}"] if option else []
    ways.append(
        f"give weights for {classes} classes"
        if frozen
        else "train from these weights with model.new_classes=true, which starts the head anew"
    )
    raise CheckpointError(
        f"weights: {report.source}: {prefix}{name} must be for {classes} classes, as the model's is, got one for "
        f"{given}{', and it is frozen, so training would leave it random' if frozen else ''}; {', or '.join(ways)}"
    )


def _refuse_nonfinite(state: State, target: nn.Module, prefix: str, source: str) -> None:
    names = {plain_name(key) for key in target.state_dict()}
    counts = {key: int((~torch.isfinite(value)).sum()) for key, value in state.items() if plain_name(key) in names}
    bad = [key for key, count in counts.items() if count]
    if bad:
        others = f" (and {len(bad) - 1} more tensors hold such values)" if len(bad) > 1 else ""
        raise CheckpointError(
            f"weights: {source}: {prefix}{bad[0]} must be finite, got {counts[bad[0]]} of {state[bad[0]].numel()} "
            f"values that are NaN or infinite{others}; take an earlier checkpoint"
        )


def _misfit(model: nn.Module, checkpoint: Checkpoint, report: LoadReport) -> str:
    """Why weights do not fit: options that differ, where they are known, and an example of each kind of misfit."""
    problems = [*_differing_options(model, checkpoint)]
    if report.replaced:
        name, old, new = report.replaced[0]
        problems.append(f"{len(report.replaced)} of another shape, e.g. {name} is {list(old)} and must be {list(new)}")
    if report.missing:
        problems.append(f"{len(report.missing)} missing, e.g. {report.missing[0]}")
    if report.unexpected:
        problems.append(f"{len(report.unexpected)} unexpected, e.g. {report.unexpected[0]}")
    return f"{'; '.join(problems)} (layout {report.layout}); build the model with the options that these weights have"


def _differing_options(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """In what the model of a checkpoint, where it says which that is, is another one."""
    if not checkpoint.model:
        return []
    modules = [model, *(model.get_submodule(part) for part in getattr(model, "parts", ()))]
    ours: Any = next((module.config for module in modules if name_of(module) == checkpoint.model), None)
    if ours is None:
        return [f"it is of {checkpoint.model}"]
    try:
        theirs = create_config(checkpoint.model, checkpoint.options)
    except ValueError:  # options of another version
        return []
    options = [option.name for option in dataclasses.fields(theirs)]
    options = [option for option in options if getattr(theirs, option) != getattr(ours, option)]
    shapes = shapes_of(checkpoint.model, ours, {})
    options = [o for o in options if shapes_of(checkpoint.model, ours, {o: getattr(theirs, o)}) != shapes] or options
    if not options:
        return []
    given, built = (", ".join(f"{o}={getattr(config, o)!r}" for o in options) for config in (theirs, ours))
    return [f"it was made with {given}, and the model has {built}"]


def shapes_of(name: str, config: Any, changes: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Names and shapes of a model's tensors under changed options; None where such a model cannot be built."""
    try:
        with torch.device("meta"):
            model = MODELS[name].model_class()(dataclasses.replace(config, **changes))
    except (ValueError, RuntimeError):
        return None
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith(COUNTER)}


def describe(
    model: nn.Module, classes: Mapping[str, Any] | None = None, preprocessing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What weights of ours say of their model, by the keys of :data:`fssops.weights.reading.DESCRIPTION`.

    Args:
        model: any module; a system's ``name`` and ``config`` attributes are told where it has them.
        classes: in the form of a run's ``classes.json``, where they are known.
        preprocessing: tables of a recipe that say how images enter the model, where it is known.
    """
    config = getattr(model, "config", None)
    options = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    known = {"model": name_of(model), "options": options, "classes": classes, "preprocessing": preprocessing}
    return {key: known[entry] for entry, key in DESCRIPTION.items() if known[entry]}


def save_weights(model: nn.Module, path: str | os.PathLike[str], **known: Mapping[str, Any] | None) -> None:
    """Write a model's weights as safetensors, atomically, with its name and configuration as metadata.

    Args:
        model: any module.
        path: ends in ``.safetensors``.
        **known: ``classes`` and ``preprocessing`` of :func:`describe`.

    Raises:
        ValueError: another ending.
        OSError: the folder cannot be written, or the disk is full; no partial file is left.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_weights: path must end in .safetensors, got {path}")
    described = describe(model, **known).items()
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in described}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = save(state, {"format": "pt", **metadata})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
