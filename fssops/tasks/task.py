"""The contract: what the verbs and the Python API may ask of a kind of system.

A task puts data, model, engine and evaluation of one kind of system together. It is built from settings alone; data
sets are opened, and lists of episodes drawn, when they are first asked for and once. Everything that differs between
kinds of systems is said here, so that the verbs ask no other question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fssops.engine.sampling import pass_length
from fssops.engine.settings import Settings, SettingsError
from fssops.facts import Facts
from fssops.tasks.class_names import numbered_names

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from fssops.engine.trainer import Validation
    from fssops.evaluation.metrics.metric import MetricSet
    from fssops.evaluation.results import Result
    from fssops.tasks.prediction import Predictor


@dataclass(frozen=True)
class FirstStage:
    """A training that must be finished before that of a task starts.

    Attributes:
        name: for messages.
        task: what is trained.
        folder: its run folder; it may lie outside the run that needs it.
    """

    name: str
    task: Task
    folder: Path


@dataclass(frozen=True)
class Evaluation:
    """A result, and the metrics that it was formed from.

    Attributes:
        result: scores with what they were measured on.
        metrics: some keep what files and pictures are made of.
    """

    result: Result
    metrics: MetricSet


class Task(ABC):
    """A kind of system.

    Args:
        settings: the resolved recipe.

    Attributes:
        settings_class: schema of its recipes.
        several: what several systems of this kind are called, for messages.
        one: what one of them is called.
        no_folds: why no fold can be asked for.
        takes_supports: whether prediction is told its classes by labelled images.
        prediction_options: the options of ``predict`` that have an effect, beside those that all kinds share.
        title: of the evaluation that ends a training, on its progress bar.
        collate: stacks training items into the batch that ``model.losses`` takes.
        unpack_batch: rebuilds a batch from the plain values of a replay file, given as keywords.
        progress_folder: where evaluations keep how far they have come; None keeps nothing.
        trained_classes: the classes that a trained model says it has, in a form of ``classes.json``; None where it says
            nothing.
        training_facts: what is known of the training data; empty until they are opened, or where a run says nothing.
    """

    settings_class: ClassVar[type[Settings]]
    several: ClassVar[str]
    one: ClassVar[str]
    no_folds: ClassVar[str] = "{model} has fixed classes and no folds"
    takes_supports: ClassVar[bool] = False
    prediction_options: ClassVar[frozenset[str]] = frozenset()
    title: str = "evaluate"
    collate: Callable[[Sequence[Any]], Any]
    unpack_batch: Callable[..., Any]

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.config = settings.model.config
        self.progress_folder: Path | None = None
        self.trained_classes: dict[str, Any] | None = None
        self.training_facts = Facts()

    @property
    def trained_names(self) -> dict[int, str] | None:
        """Number -> name of the classes that a trained model says it has; None where it says nothing."""
        return None if self.trained_classes is None else numbered_names(self.trained_classes)

    # -- training ---------------------------------------------------------------------------------------------

    @abstractmethod
    def training_data(self) -> tuple[Any, list[str]]:
        """Return the training data set, and lines that describe it; fills ``training_facts``.

        Raises:
            SettingsError: the data set does not fit the model.
            DataError, FileNotFoundError: it cannot be read.
        """

    def items_of_pass(self) -> int:
        """Items of one pass over the training data, by which ``schedule.epochs`` are counted; raises as above."""
        dataset = self.training_data()[0]
        return pass_length(getattr(dataset, "repeats", [1.0] * len(dataset)))

    def data_demands(self) -> dict[str, Any]:
        """What ``data check --recipe`` looks at: arguments of ``check_data``, the layout's in ``options``."""
        data = self.settings.data
        return {"layout": data.source, "root": data.root or None, "options": data.options}

    @abstractmethod
    def validation(self, fabric: Fabric) -> Validation | None:
        """Return what scores the model during training; None where settings ask for no validation."""

    @abstractmethod
    def check_evaluation(self) -> None:
        """Open the evaluation data and read one item of it, so that a mistake shows before training.

        Raises:
            SettingsError: the data or what is asked of them do not fit the model.
            DataError, FileNotFoundError: they cannot be read.
        """

    def run_files(self) -> dict[str, Any]:
        """What a run folder keeps of the data, file name -> content of the JSON."""
        return {}

    def first_stage(self, run: Path) -> FirstStage | None:
        """The training that must be finished before this one; None where there is none, or its weights are given.

        Args:
            run: folder of this training.

        Raises:
            SettingsError: its settings are wrong, or its folder holds a training for other classes.
        """
        return None

    def take_first_stage(self, model: nn.Module, run: Path) -> list[str]:
        """Load what the first stage has learnt into a freshly built model; return lines that say what was loaded.

        Raises:
            CheckpointError, RunCheckpointError: its checkpoint does not fit, or is missing.
            SettingsError: it was trained for other classes.
        """
        return []

    # -- evaluation -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def rules(self) -> str:
        """What is scored and how, in a word that the folder of results is called after."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, fabric: Fabric, label: str, title: str = "evaluate", fold: int | None = None
    ) -> Evaluation:
        """Score the evaluation data; every process must call, each gets the whole result.

        Args:
            model: on the device of ``fabric``.
            fabric: launched.
            label: what to call the model.
            title: of the progress bar, and of the progress that is kept; "" shows and keeps none.
            fold: which fold's classes, for kinds that have folds; None: as settings say.
        """

    @abstractmethod
    def write(
        self, evaluation: Evaluation, model: nn.Module, fabric: Fabric, folder: Path, before: nn.Module | None = None
    ) -> list[Path]:
        """Write pictures and files of an evaluation; the first process calls alone.

        Args:
            evaluation: of this model.
            model: as evaluated.
            fabric: launched.
            folder: where the files go; it exists.
            before: the untrained model, shown beside it where pictures can.

        Returns:
            the files written.
        """

    def result_entries(self, trained: Result, before: Result | None) -> dict[str, Any]:
        """What ``result.json`` says of the evaluation at the end of a training, beside scores and their line."""
        entries: dict[str, Any] = {"trained": trained.as_json()}
        if before is not None:
            entries["untrained"] = before.as_json()
        return entries

    def gain_of(self, score: str) -> str:
        """What the difference to the untrained model is a gain of, in words; ``score`` names the main score."""
        return score

    @classmethod
    def evaluations(cls, tasks: Sequence[Any], fold: str | None) -> list[tuple[int, int | None]]:
        """Which evaluations to make of loaded models: pairs of (place of the model, fold or None).

        Args:
            tasks: of the models, all of this kind.
            fold: as asked for: a number, "all", or None.

        Raises:
            SettingsError: this kind has no folds, or there is no such fold.
        """
        if fold is not None:
            raise SettingsError(f"--fold: {cls.no_folds.format(model=tasks[0].settings.model.name)}, got {fold!r}")
        return [(place, None) for place in range(len(tasks))]

    # -- prediction -------------------------------------------------------------------------------------------

    def python_predictor(self, model: nn.Module, label: str, size: int | None = None) -> Any:
        """Return what :func:`fssops.load` gives: it segments what Python holds, prepared as settings say.

        Args:
            model: on its device, in evaluation mode.
            label: what to call it.
            size: instead of the settings': side of a few-shot system's images, shorter side of others'.

        Raises:
            SettingsError: there is none for this kind of system.
        """
        raise SettingsError(f"load: {self.one} has no predictor in Python, use python -m fssops.predict on {label}")

    @abstractmethod
    def predictor(self, model: nn.Module, label: str, options: Any) -> Predictor:
        """Return what segments pictures or videos with a model and writes the results.

        Args:
            model: on its device, in evaluation mode.
            label: what to call it.
            options: of the verb ``predict``; those of :attr:`prediction_options` and the common ones are read.

        Raises:
            SettingsError: an option does not fit the model.
        """
