"""``python -m fssops.evaluate``: score checkpoints by a named protocol, and say exactly what was measured."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from fssops.command_line import Parser, run_verb
from fssops.engine.evaluation_progress import discard_progress
from fssops.engine.launch import build_fabric, run_on_first
from fssops.engine.random_state import seed_everything
from fssops.engine.run_folder import missing_folders, remove_empty
from fssops.engine.settings import Settings, SettingsError
from fssops.evaluation.results import FewShotResult
from fssops.protocols import PROTOCOLS
from fssops.tasks import load_settings, task_of
from fssops.tasks.base_class_settings import BaseClassSettings
from fssops.tasks.fixed_class_reports import report
from fssops.tasks.trained_models import build_model, load_for_use
from fssops.tasks.universal_settings import UniversalSettings
from fssops.tasks.video_settings import VideoSettings

Loaded = Sequence[tuple[Settings, nn.Module, str]]
"""Settings, model and what to call it, of each checkpoint."""

_EXAMPLES = """\
examples:
  python -m fssops.evaluate runs/panet_generated-20260101-120000
      a run of fssops.train: its data, its fold, the protocol of its recipe
  python -m fssops.evaluate runs/fold0 runs/fold1 runs/fold2 runs/fold3 --protocol panet --fold all
      one run a fold, each evaluated on its own fold, and their mean
  python -m fssops.evaluate vgg16_authors.pth --recipe panet_pascal5i --set data.root=/data/VOCdevkit/VOC2012 \\
      --fold 0 --set eval.shots=5
      weights of any known layout, with a recipe that says which model and data they are for
  python -m fssops.evaluate model_final.pkl --recipe mask2former_ade20k_semantic_r50 --set data.root=/data/ADE
      a universal system with the authors' weights; add --classes for the table of classes
  python -m fssops.evaluate model_final.pkl --recipe mask2former_vis_ytvis2021_r50 --set data.root=/data/ytvis_2021 \\
      --set eval.window=40
      a video system, at most 40 frames of a video held at once; submission.json and .zip are for the servers
  python -m fssops.evaluate runs/mask2former_generated-20260101-120000 --set eval.layer_measures=true
      also how the layers of a masked-attention decoder go along: the two measures of MP-Former
  python -m fssops.evaluate --recipe panet_generated --set eval.annotation=box
      an untrained model; supports marked by boxes
  python -m fssops.evaluate runs/mine --out scores/mine
      interrupted (also by kill -9), the same command with the same --out goes on where it was
  torchrun --nproc-per-node 4 -m fssops.evaluate runs/mine
      several processes share the images or episodes; the result is that of one

protocols:
"""


def parser() -> Parser:
    """Build the argument parser."""
    protocols = "\n".join(f"  {row.name:<10}{row.describe()}\n{'':<12}({row.source})" for row in PROTOCOLS.values())
    arguments = Parser("evaluate", "Evaluate trained models by a protocol.", _EXAMPLES + protocols)
    arguments.add_argument(
        "checkpoints",
        nargs="*",
        type=Path,
        metavar="CHECKPOINT",
        help="run folder, checkpoint of a run, or weights file",
    )
    arguments.add_argument(
        "--recipe", help="for weights without settings: name of a recipe (python -m fssops.models) or a .toml file"
    )
    arguments.add_argument("--protocol", help=f"one of {', '.join(PROTOCOLS)} (default: the recipe's)")
    arguments.add_argument("--fold", help="0, 1, 2, 3 or all (default: the fold that was trained)")
    arguments.add_argument(
        "--which", choices=("last", "best"), default="last", help="checkpoint of a run folder (default: last)"
    )
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting"
    )
    arguments.add_argument("--out", type=Path, metavar="FOLDER", help="default: <run>/evaluation-<protocol>-<time>")
    arguments.add_argument("--classes", action="store_true", help="print a table of the classes as well")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    options = parser().parse_args(arguments)
    if not options.checkpoints and not options.recipe:
        raise SettingsError("CHECKPOINT: give a run folder or a weights file, or --recipe for an untrained model")
    overrides = list(options.overrides)
    if options.protocol:
        overrides.append(f"eval.protocol={json.dumps(options.protocol)}")
    loaded = [load_for_use(path, options.recipe, overrides, options.which) for path in options.checkpoints]
    if not loaded:
        settings = load_settings(options.recipe, overrides)
        seed_everything(settings.engine.seed)
        model = build_model(settings)
        loaded = [(settings, model, f"{settings.name}{'' if settings.model.weights else ', random weights'}")]
    kind = _kind_of([settings for settings, _, _ in loaded])
    if options.fold is not None and kind.no_folds:
        raise SettingsError(f"--fold: {kind.no_folds.format(model=loaded[0][0].model.name)}, got {options.fold!r}")
    rules = kind.rules(loaded[0][0])
    fabric = build_fabric(loaded[0][0].engine)
    fabric.launch()
    with _results_folder(options, loaded[0][0], rules, fabric) as folder:
        kind.evaluate(loaded, options, fabric, folder)
    return 0


def _evaluate_few_shot(loaded: Loaded, options: Any, fabric: Fabric, folder: Path) -> None:
    pairs = _folds(options.fold, [settings for settings, _, _ in loaded])
    distinct = len({fold for _, fold in pairs}) == len(pairs)
    results: list[FewShotResult] = []
    trained_on: list[int] = []
    written: list[Path] = []
    for index, fold in pairs:
        settings, model, label = loaded[index]
        task = task_of(settings)
        task.keep = folder
        model.to(fabric.device).eval()
        result = task.evaluate(model, fabric, fold, label, f"fold {fold}")
        results.append(result)
        if fold != settings.data.fold and options.checkpoints:  # type: ignore[attr-defined]
            trained_on.append(fold)
        if fabric.is_global_zero:
            name = f"fold{fold}" if distinct else f"model{index}"
            pictures = folder if len(pairs) == 1 else folder / name
            pictures.mkdir(exist_ok=True)
            written += [*task.gallery(model, fabric, result, pictures), *_save_lists(task, fold, pictures)]
    if fabric.is_global_zero:
        report(results, folder, options.classes)
        for fold in trained_on:
            print(f"warning: fold {fold} is not the fold that was trained: its classes may have been seen in training")
        _say_written(folder, written)


def _evaluate_base_classes(loaded: Loaded, options: Any, fabric: Fabric, folder: Path) -> None:
    results = []
    written: list[Path] = []
    for index, (settings, model, label) in enumerate(loaded):
        task = task_of(settings)
        task.keep = folder
        results.append(task.evaluate(model.to(fabric.device).eval(), fabric, label))
        if fabric.is_global_zero:
            pictures = folder if len(loaded) == 1 else folder / f"model{index}"
            pictures.mkdir(exist_ok=True)
            written += task.gallery(model, fabric, results[-1], pictures)
    if fabric.is_global_zero:
        report(results, folder, options.classes)
        _say_written(folder, written)


def _evaluate_fixed_classes(loaded: Loaded, options: Any, fabric: Fabric, folder: Path) -> None:
    from fssops.tasks.fixed_class_reports import evaluate_models

    evaluate_models(loaded, fabric, folder, classes=options.classes)


@dataclass(frozen=True)
class _Kind:
    """Systems that are evaluated alike.

    Attributes:
        settings: class of their settings.
        name: what to call several of them.
        rules: what the folder of the results is called after, from the settings.
        evaluate: writes the results into a folder.
        no_folds: why they take no ``--fold``; empty where they do.
    """

    settings: type[Settings]
    name: str
    rules: Callable[[Any], str]
    evaluate: Callable[[Loaded, Any, Fabric, Path], None]
    no_folds: str = "{model} has fixed classes and no folds"


_KINDS = (
    _Kind(UniversalSettings, "systems of fixed classes", lambda given: given.data.truth, _evaluate_fixed_classes),
    _Kind(VideoSettings, "video systems", lambda _: "video", _evaluate_fixed_classes),
    _Kind(
        BaseClassSettings,
        "base learners",
        lambda _: "base",
        _evaluate_base_classes,
        "a base learner knows the classes of its own fold alone",
    ),
    # The task knows the protocol; a name from elsewhere must not decide where a folder is made.
    _Kind(Settings, "few-shot systems", lambda given: task_of(given).protocol.name, _evaluate_few_shot, ""),
)


def _kind_of(settings: Sequence[Settings]) -> _Kind:
    kinds = {next(kind for kind in _KINDS if isinstance(one, kind.settings)): None for one in settings}
    if len(kinds) > 1:
        names = " and ".join(kind.name for kind in kinds)
        raise SettingsError(f"CHECKPOINT: all must be of one kind, got {names}; evaluate them apart")
    return next(iter(kinds))


def _say_written(folder: Path, files: Sequence[Path]) -> None:
    names = ["results.json", *(str(path.relative_to(folder)) for path in files)]
    print(f"written: {folder}/ ({', '.join(names)})")


def _folds(text: str | None, settings: Sequence[Settings]) -> list[tuple[int, int]]:
    """Return pairs of (index of the model, fold)."""
    own = [one.data.fold for one in settings]  # type: ignore[attr-defined]
    if text is None:
        return list(enumerate(own))
    if text == "all":
        if len(settings) == 1:
            return [(0, fold) for fold in range(4)]
        if sorted(own) != [0, 1, 2, 3]:
            raise SettingsError(f"--fold: all needs one run of each fold 0 to 3 (or a single model), got folds {own}")
        return sorted(enumerate(own), key=lambda pair: pair[1])
    if text not in ("0", "1", "2", "3"):
        raise SettingsError(f"--fold: fold must be 0, 1, 2, 3 or all, got {text!r}")
    return [(index, int(text)) for index in range(len(settings))]


@contextmanager
def _results_folder(options: Any, settings: Settings, rules: str, fabric: Fabric) -> Iterator[Path]:
    """The folder of the results, the same on every process; it keeps how far evaluation has come until it is done."""

    made: list[Path] = []

    def make() -> Path:
        folder: Path = options.out or _default_folder(options.checkpoints, settings, rules)
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"--out: {folder} must be a folder, got a file")
        made.extend(missing_folders(folder))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    folder: Path = run_on_first(fabric, make)
    try:
        yield folder
    except KeyboardInterrupt:
        if fabric.is_global_zero:
            print(f"what was counted is kept; the same command with --out {folder} goes on", file=sys.stderr)
        raise
    except Exception:
        remove_empty(made)
        raise
    discard_progress(folder, fabric)


def _default_folder(checkpoints: Sequence[Path], settings: Settings, rules: str) -> Path:
    name = f"evaluation-{rules}-{time.strftime('%Y%m%d-%H%M%S')}"
    if len(checkpoints) == 1 and checkpoints[0].is_dir():
        return checkpoints[0] / name
    return Path("runs") / f"{settings.name}-{name}"


def _save_lists(task: Any, fold: int, folder: Path) -> list[Path]:
    _, runs, seeds = task.novel_runs(fold)
    paths = [folder / f"episodes-seed{seed}.json" for seed in seeds]
    for run, path in zip(runs, paths, strict=True):
        run.episodes.save(path)
    return paths


if __name__ == "__main__":
    run_verb("evaluate", main)
