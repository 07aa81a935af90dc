"""Validated settings: what a recipe may say, for every task.

A recipe is a flat TOML file with the tables ``[model] [data] [optim] [schedule] [engine] [eval]``. The tables
here are common to all tasks; a task adds its own schema for ``[data]`` and ``[eval]`` by subclassing
:class:`Settings`.
"""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    ValidationError,
    model_validator,
)

from fssops.engine.toml_text import TomlError, parse_toml, parse_toml_value


class SettingsError(ValueError):
    """A recipe or an override is wrong; the message is one line and names the key."""


class Table(BaseModel):
    """A table of a recipe: unknown keys are errors, values are not coerced, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSettings(Table):
    """``[model]``: the name of a model, its weights, and the options of its ``Config``."""

    name: str
    """One of ``fssops.models.MODELS``, as ``python -m fssops.models`` lists them."""
    weights: str = ""
    """Weights of the whole model or of its backbone: a run's folder, a file or folder of any layout that
    ``load_weights`` knows, or a name, address or owner/repository of such. Empty: random."""
    new_classes: bool = False
    """Take weights for other classes: all but the tensors that depend on the classes, which start anew."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the model's ``Config``; in a recipe they stand directly in ``[model]``."""
    _config: Any = PrivateAttr(None)

    @property
    def config(self) -> Any:
        """The model's configuration, built from the options once, when the settings were checked."""
        return self._config

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = {key: value for key, value in values.items() if key in cls.model_fields}
        options = {key: value for key, value in values.items() if key not in cls.model_fields}
        return {**fields, "options": {**values.get("options", {}), **options}}


class GroupSettings(Table):
    """One entry of ``optim.groups``: parameters whose name contains ``match`` (a shell pattern)."""

    match: str
    """Shell pattern; found anywhere in a parameter's full name."""
    lr_scale: float = Field(default=1.0, ge=0)
    """Factor of the learning rate, beside the others."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Replaces every other decay of these parameters; unset: as without the group."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Table):
    """``[optim]``: optimiser, parameter groups and gradient clipping."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """``torch.optim``'s SGD, Adam or AdamW."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate; the schedule multiplies it."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of ``sgd``."""
    nesterov: bool = False
    """Nesterov's momentum, of ``sgd``."""
    betas: Annotated[tuple[_Beta, _Beta], Strict(False)] = (0.9, 0.999)
    """Decays of both running means, of ``adam`` and ``adamw``; torch's default."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator, of ``adam`` and ``adamw``; torch's default."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of what no other setting names; of ``adamw`` apart from the gradient, else added to it."""
    weight_decay_norm: float | None = Field(default=None, ge=0)
    """Decay of normalisation layers; unset: as the others."""
    weight_decay_bias: float | None = Field(default=None, ge=0)
    """Decay of biases, but of normalisation layers; unset: as the others."""
    weight_decay_embedding: float | None = Field(default=None, ge=0)
    """Decay of ``nn.Embedding`` tables and of parameters named as position embeddings."""
    backbone_lr_scale: float = Field(default=1.0, ge=0)
    """Learning rate of parameters below a module named ``backbone``, relative to ``lr``."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the gradient of the full model; 0 does not clip."""
    clip_value: float = Field(default=0.0, ge=0)
    """Largest size of each entry of the gradient, before ``clip_norm``; 0 does not clip."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each layer of the backbone to the one before it; what follows its last layer,
    the rest of the model too, keeps ``lr``. Layers are those of ``frozen_layers``."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which is then what is scored and kept to predict with; 0 has none. It
    begins lower: at most (1 + n) / (10 + n) after n updates."""
    frozen: list[str] = Field(default_factory=list)
    """Shell patterns of parameter names that are not trained."""
    frozen_layers: int | str = 0
    """Layers of the backbone, from the first, that are not trained and stay in evaluation mode: the stem (of
    transformers the embeddings), then stages, or blocks of a plain vision transformer; ``all`` is all of it."""
    groups: list[GroupSettings] = Field(default_factory=list)
    """Parameters with a learning rate or decay of their own, ``[[optim.groups]]`` each."""

    @model_validator(mode="after")
    def _layers_are_counted_from_the_first(self) -> OptimSettings:
        if self.frozen_layers != "all" and (isinstance(self.frozen_layers, str) or self.frozen_layers < 0):
            raise ValueError(f"frozen_layers must be at least 0, or all, got {self.frozen_layers!r}")
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimSettings:
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov must be false without momentum, got true with momentum 0")
        return self


class ScheduleSettings(Table):
    """``[schedule]``: number of steps and the learning rate over them."""

    steps: int = Field(default=1000, ge=0)
    """Updates of the weights in the whole training."""
    epochs: float = Field(default=0.0, ge=0)
    """Passes over the training items, instead of ``steps``; a run says the steps that they come to. An episode of a
    few-shot system counts as an item, a pass as many as there are training images."""
    name: Literal["constant", "step", "poly", "cosine"] = "constant"
    """Factor of the learning rate after t updates: 1; ``gamma`` to the number of ``milestones`` passed;
    (1 - t / ``steps``) to the ``power``; or half a cosine from 1 to ``end_factor``."""
    milestones: list[int] = Field(default_factory=list)
    """Updates after which ``step`` lowers the learning rate."""
    gamma: float = Field(default=0.1, gt=0)
    """Factor of ``step`` at each milestone."""
    power: float = Field(default=0.9, gt=0)
    """Exponent of ``poly``."""
    end_factor: float = Field(default=0.0, ge=0, le=1)
    """Smallest factor of ``poly`` and ``cosine``."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates at the beginning whose factor is lowered further; 0 none."""
    warmup: Literal["linear", "constant"] = "linear"
    """Whether that factor rises to 1 or stays."""
    warmup_factor: float = Field(default=0.001, ge=0, le=1)
    """What it begins with."""

    @model_validator(mode="after")
    def _length_is_said_once(self) -> ScheduleSettings:
        if self.epochs and "steps" in self.model_fields_set:
            raise ValueError(f"epochs must be 0 beside steps, got epochs {self.epochs:g} and steps {self.steps}")
        return self


class EngineSettings(Table):
    """``[engine]``: how training runs, whatever is trained."""

    seed: int = Field(default=1234, ge=0, lt=1 << 63)
    """Of weights, order of the data, augmentation and episodes; the same seed repeats a run."""
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """``auto``: CUDA where there is a device, else what Lightning Fabric finds."""
    devices: int = Field(default=1, ge=1)
    """Processes on this machine; under torchrun it must equal ``--nproc-per-node``."""
    nodes: int = Field(default=1, ge=1)
    """Machines of the job."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """``auto``: one process, or DDP; ``fsdp`` shards weights, gradients and optimiser state over the processes."""
    timeout: int = Field(default=1800, ge=1)
    """Seconds after which a process that does not answer the others ends the job."""
    precision: Annotated[
        Literal["32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)
    ] = "32"
    """Of the forward pass; weights and their updates stay in float32."""
    batch_size: int = Field(default=1, ge=1)
    """Items of one optimiser step, over all processes and accumulated micro-batches."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that each process passes in one step, for batches that do not fit in memory."""
    workers: int = Field(default=1, ge=0)
    """Loader processes of each training process; the data are the same for any number."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each process; 0 leaves torch's choice."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of ``metrics.jsonl``, which hold means since the last."""
    save_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints; one is also written at the end, on an interrupt and after a validation."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 never."""
    best_metric: str = "loss"
    """What `best` is judged by: a validation metric, or `loss` (mean training loss between two checkpoints)."""
    best_mode: Literal["min", "max"] = "min"
    """Whether a larger or a smaller value is better."""
    patience: int = Field(default=0, ge=0)
    """Training ends after so many validations in a row that are no better than the best before them; 0 never."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no number ends the run, or the step is left out; it is kept for ``--replay``."""
    max_skips: int = Field(default=10, ge=1)
    """With ``skip``: that many bad steps in a row stop the run."""
    on_unreadable: Literal["stop", "skip"] = "stop"
    """``skip`` replaces an item that cannot be read by the next readable one and reports it."""
    deterministic: bool = False
    """Refuse operators whose results vary between runs (``torch.use_deterministic_algorithms``)."""
    compile: bool = False
    """Run the losses through ``torch.compile``."""
    channels_last: bool = False
    """Keep the weights of convolutions in channels-last memory."""
    tensorboard: bool = True
    """Write the folder ``tensorboard`` of the run."""

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> EngineSettings:
        micro = self.devices * self.nodes * self.accumulate
        if self.batch_size % micro:
            raise ValueError(
                f"batch_size must be a multiple of devices * nodes * accumulate = {micro}, got {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _patience_has_validations(self) -> EngineSettings:
        if self.patience and (self.best_metric == "loss" or not self.validate_every):
            raise ValueError(
                f"patience must be 0 without validate_every and a best_metric that validation measures, "
                f"got {self.patience}"
            )
        return self


class Settings(Table):
    """A whole recipe. Tasks subclass it to give ``data`` and ``eval`` their schema."""

    first_stage: ClassVar[str] = ""
    """Table of the training that comes first, also the model's part that it makes; "" for systems of one stage."""

    name: str
    """Of the recipe; run folders are called after it."""
    description: str = ""
    """One line for readers."""
    model: ModelSettings
    """Which model, from which weights, with which options."""
    data: Table = Table()
    """Where images come from and how they are augmented; each task has its own table."""
    optim: OptimSettings = OptimSettings()
    """The optimiser."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the steps."""
    engine: EngineSettings = EngineSettings()
    """How training runs."""
    eval: Table = Table()
    """What is scored, on what; each task has its own table."""

    @model_validator(mode="after")
    def _name_is_a_file_name(self) -> Settings:
        # Folders are called after it, also those of a checkpoint from elsewhere, which must not choose their place.
        if not re.fullmatch(r"\w[\w.+ -]*", self.name):
            raise ValueError(
                f"name must begin with a letter or digit and go on with these, '_', '-', '.', '+' or spaces, "
                f"got {self.name!r}"
            )
        return self

    def as_tables(self) -> dict[str, Any]:
        """Return plain nested dicts, with the model's options directly in ``model`` as in a recipe."""
        tables = self.model_dump(mode="json")
        options = tables["model"].pop("options")
        tables["model"].update(options)
        if self.schedule.epochs:
            del tables["schedule"]["steps"]
        return tables


_Schema = TypeVar("_Schema", bound=Settings)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the tables of a recipe file.

    Raises:
        SettingsError: the file is missing or no valid TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"recipe: {path} must be a readable file, got {error.strerror or error}") from None
    except (TomlError, UnicodeDecodeError) as error:
        raise SettingsError(f"recipe: {path} must be valid TOML, got {error}") from None


def apply_overrides(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``tables`` with overrides of the form ``table.key=value`` applied; values are TOML or bare words.

    Raises:
        SettingsError: an override has no ``=``, goes below a value that is no table, or is a broken list or table.
    """
    result = copy.deepcopy(dict(tables))
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise SettingsError(f"--set: an override must read table.key=value, got {override!r}")
        target = result
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set: {key.strip()} must name a key of a table, but {part} is a value")
        try:
            target[parts[-1]] = parse_toml_value(text.strip())
        except TomlError:
            raise SettingsError(
                f"--set: {key.strip()} must be a value of TOML, got {text.strip()!r} (words within a list or a table "
                'stand in quotes: ["a", "b"])'
            ) from None
    return result


def known_keys(schema: type[BaseModel], model_options: Sequence[str] = (), prefix: str = "") -> list[str]:
    """Return every dotted key that a recipe of ``schema`` may set."""
    keys: list[str] = []
    for name, info in schema.model_fields.items():
        table = _table_of(info.annotation)
        if table is ModelSettings:
            keys += [f"{prefix}{name}.{key}" for key in ("name", "weights", "new_classes", *model_options)]
        elif table is not None:
            keys += known_keys(table, (), f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
            if typing.get_origin(info.annotation) is list and (entry := _table_of(typing.get_args(info.annotation)[0])):
                keys += known_keys(entry, (), f"{prefix}{name}.")
    return keys


def validate(
    schema: type[_Schema], tables: Mapping[str, Any], where: str, model_options: Sequence[str] = ()
) -> _Schema:
    """Check tables against a schema.

    Args:
        schema: the settings class of the task.
        tables: nested dicts as read from TOML, overrides applied.
        where: what is being checked, for the message: a recipe's name or file.
        model_options: names that ``[model]`` may set besides ``name`` and ``weights``; used to find the nearest.

    Raises:
        SettingsError: one line that names the first wrong key, its rule, and for an unknown key the nearest one.
    """
    try:
        return schema.model_validate(dict(tables))
    except ValidationError as error:
        raise SettingsError(f"{where}: {_one_line(error, schema, model_options)}") from None


def nearest_key(key: str, keys: Sequence[str]) -> str:
    """The one of ``keys`` most like ``key``, by its whole name or by its last part in any table; "" if none is."""
    table, _, last = key.rpartition(".")
    tails = {candidate.rpartition(".")[2]: candidate for candidate in reversed(keys)}
    longer = [] if last in tails else [name for name in tails if name.startswith(f"{last}_")]
    tail = longer or difflib.get_close_matches(last, list(tails), n=1, cutoff=0.75)
    same_table = [candidate for candidate in keys if candidate.rpartition(".")[0] == table]
    if tail and not same_table:
        return tails[tail[0]]
    like = [name for name in keys if difflib.SequenceMatcher(a=last, b=name.rpartition(".")[2]).ratio() >= 0.6]
    inside = difflib.get_close_matches(key, [name for name in like if name in same_table], n=1, cutoff=0.8)
    if inside:
        return inside[0]
    return tails[tail[0]] if tail else next(iter(difflib.get_close_matches(key, like, n=1)), "")


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the keys whose values differ, one line each: ``optim.lr: 0.001 -> 0.0001``."""
    lines: list[str] = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines


def _table_of(annotation: Any) -> type[Table] | None:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((table for arg in typing.get_args(annotation) if (table := _table_of(arg))), None)
    return None


def _one_line(error: ValidationError, schema: type[BaseModel], model_options: Sequence[str]) -> str:
    problems = error.errors()
    # An unknown key explains a missing one, so it is told first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        if isinstance(first["input"], Mapping) and first["input"]:
            key += f".{next(iter(first['input']))}"
        keys = known_keys(schema, model_options)
        if near := nearest_key(key, keys):
            return f"unknown key {key!r}; did you mean {near!r}?{more}"
        table = key.rpartition(".")[0]
        among = [name for name in keys if name.rpartition(".")[0] == table]
        return f"unknown key {key!r}; keys{f' of [{table}]' if table else ''} are {', '.join(among)}{more}"
    if first["type"] == "missing":
        return f"{key} must be set{more}"
    if first["type"] == "value_error":
        place = f"{key}." if key else ""
        return f"{place}{first['ctx']['error']!s}{more}"
    rule = first["msg"][:1].lower() + first["msg"][1:]
    rule = rule.removeprefix("input should be ").removeprefix("value error, ")
    return f"{key} must be {rule}, got {first['input']!r}{more}"
