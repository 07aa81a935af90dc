"""``python -m fssops.train``: train a recipe, evaluate what it has made, leave everything in one folder."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

import fssops
from fssops.command_line import Parser, run_verb
from fssops.engine import nonfinite
from fssops.engine.checkpoints import has_checkpoint, newest_good_checkpoint, read_checkpoint, write_text_atomically
from fssops.engine.curves import draw_curves
from fssops.engine.evaluation_progress import discard_progress
from fssops.engine.interrupts import Interrupted
from fssops.engine.launch import build_fabric, run_on_first
from fssops.engine.memory import peak_memory
from fssops.engine.random_state import restore_random_state, seed_everything
from fssops.engine.run_folder import RunFolder, latest_run, new_run_path
from fssops.engine.settings import Settings, SettingsError, changed_settings
from fssops.engine.trainer import Trainer
from fssops.evaluation.scores import without_nan
from fssops.recipes import DEFAULT, compact, list_recipes
from fssops.tasks import load_settings, overridden_settings, settings_from_tables, task_of
from fssops.tasks.trained_models import build_model

_EXAMPLES = """\
examples:
  python -m fssops.train
      the default: a small PANet on generated images, two minutes on two CPU cores
  python -m fssops.train panet_pascal5i --set data.root=/data/VOCdevkit/VOC2012 --set model.weights=vgg16.pth
      a published recipe; --set changes any key, as often as needed
  python -m fssops.train panet_pascal5i --set data.fold=2 --set engine.precision=bf16 --set engine.devices=4 \\
      --set engine.batch_size=4
      another fold, mixed precision, four GPUs
  torchrun --nproc-per-node 4 -m fssops.train panet_pascal5i --set engine.batch_size=4 --set engine.strategy=fsdp
      processes that torchrun starts, here with weights sharded over them; the losses are those of one process
  python -m fssops.train mask2former_camvid --set data.root=/data/camvid
      a universal system: semantic, instance or panoptic segmentation of fixed classes
  python -m fssops.train mask2former_vis_ytvis2021_r50 --set data.root=/data/ytvis_2021 --set model.weights=coco.pkl
      a video system, started from an image checkpoint; mask2former_vis_generated takes minutes on a CPU
  python -m fssops.train --resume runs/panet_generated-20260101-120000
      go on exactly where a run stopped; --resume alone takes the newest run of the recipe
  python -m fssops.train my_recipe.toml --out runs/mine
      a recipe of one's own

a run leaves in its folder: settings.toml, versions.json, metrics.jsonl, tensorboard/, checkpoints/{last,best}.pt,
curves.png and result.json; evaluated also grid.png, best.png and worst.png."""


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser(
        "train", "Train a model from a recipe.\n\nrecipes:\n  " + "\n  ".join(compact(list_recipes())), _EXAMPLES
    )
    arguments.add_argument("recipe", nargs="?", help=f"name of a recipe or a .toml file (default: {DEFAULT})")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting"
    )
    arguments.add_argument("--out", type=Path, metavar="FOLDER", help="run folder (default: runs/<recipe>-<time>)")
    arguments.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="continue a run; without FOLDER the newest of the recipe",
    )
    arguments.add_argument("--no-eval", action="store_true", help="train only")
    arguments.add_argument("--replay", type=Path, metavar="FILE", help="run a step again that the NaN guard has kept")
    arguments.add_argument("--show", action="store_true", help="print the resolved settings and exit")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    options = parser().parse_args(arguments)
    if options.replay is not None:
        if options.recipe or options.overrides or options.out or options.resume is not None:
            raise SettingsError(
                "--replay: the file holds its settings; give no recipe, --set, --out or --resume with it"
            )
        return replay(options.replay)
    folder = _folder_to_resume(options)
    settings, earlier = _settings(options, folder)
    if options.show:
        from fssops.engine.toml_text import to_toml

        print(to_toml(settings.as_tables()), end="")
        return 0
    fabric = build_fabric(settings.engine)
    fabric.launch()
    run = RunFolder(run_on_first(fabric, lambda: _prepare(folder, options, settings)))
    try:
        return _train(settings, fabric, run, earlier, evaluate=not options.no_eval)
    finally:
        if fabric.is_global_zero:
            held = _locked.pop(run.path)
            held.unlock()
            if folder is None:
                held.remove_if_nothing_happened()


_PICTURES = ["curves.png", "grid.png", "best.png", "worst.png"]
_LEFT = ["result.json", "metrics.jsonl", *_PICTURES, "settings.toml", "checkpoints/last.pt", "checkpoints/best.pt"]
_locked: dict[Path, RunFolder] = {}


def _prepare(folder: Path | None, options: Any, settings: Settings) -> Path:
    """On the first process: make the folder and lock it."""
    run = RunFolder(folder or options.out or new_run_path(Path("runs"), settings.name))
    # A first stage's checkpoints count too: it may have been trained with other settings.
    if folder is None and any(has_checkpoint(kept) for kept in (run.checkpoints, *run.path.glob("*/checkpoints"))):
        raise SettingsError(
            f"--out: {run.path} must be a new folder, got one with a run in it; continue it with --resume"
        )
    run.create()
    run.lock()
    _locked[run.path] = run
    if run.took_over:
        print(f"note: {run.took_over}", file=sys.stderr)
    return run.path


def _folder_to_resume(options: Any) -> Path | None:
    if options.resume is None:
        return None
    if options.resume and options.recipe:
        raise SettingsError("--resume: give either a folder or a recipe, got both; change settings with --set")
    if options.resume:
        if options.out is not None:
            raise SettingsError(f"--out: a run goes on in its own folder, got {options.out} beside --resume")
        return Path(options.resume)
    if options.out is not None:
        return Path(options.out)
    name = load_settings(options.recipe or DEFAULT).name
    return latest_run(Path("runs"), name)


def _settings(options: Any, folder: Path | None) -> tuple[Settings, Mapping[str, Any] | None]:
    """Return the settings and, of a resumed run, those that it had."""
    if folder is None:
        return load_settings(options.recipe or DEFAULT, options.overrides), None
    earlier = RunFolder(folder).load_settings()
    return overridden_settings(earlier, options.overrides, f"run {folder}"), earlier


def _train(
    settings: Settings,
    fabric: Fabric,
    run: RunFolder,
    earlier: Mapping[str, Any] | None,
    *,
    evaluate: bool,
    outer: tuple[RunFolder, Settings] | None = None,
) -> int:
    """Train and evaluate in a folder; of a first stage, ``outer`` is the run that it belongs to."""
    started = time.perf_counter()
    say = print if fabric.is_global_zero else _silent
    task = task_of(settings)
    if hasattr(task, "first_stage"):
        if code := _train_first_stage(task, settings, fabric, run, evaluate=evaluate, say=say):
            return code
        if not has_checkpoint(run.checkpoints):
            earlier = None  # it was stopped in the first stage
    seed_everything(settings.engine.seed)
    model = build_model(settings, say, new_head="tell")
    if hasattr(task, "take_first_stage"):
        task.take_first_stage(model, run.path, say)
    count = sum(p.numel() for p in model.parameters())
    say(f"run            {run.path}")
    say(f"model          {settings.model.name}, {count / 1e6:.2f} million parameters, {settings.model.options}")
    dataset, lines = task.training_data()
    for line in lines:
        say(line)
    untrained = copy.deepcopy(model) if evaluate and settings.eval.baseline else None  # type: ignore[attr-defined]
    trainer = Trainer(settings, fabric, model, dataset, task.collate, run, task.validation(fabric))
    if earlier is not None and not has_checkpoint(run.checkpoints):
        say("resumed        there is no checkpoint yet; from the beginning")
    elif earlier is not None:
        path, checkpoint, problems = newest_good_checkpoint(run.checkpoints)
        for line in (*problems, *changed_settings(earlier, settings.as_tables())):
            say(f"changed        {line}" if line not in problems else f"passed over    {line}")
        trainer.restore(checkpoint)
        say(f"resumed        {path} at step {trainer.step} of {settings.schedule.steps}")
    whole = run if outer is None else outer[0]
    if fabric.is_global_zero:
        # Not before: settings that do not fit the checkpoint must not replace those that do.
        run.save_settings(settings.as_tables())
        if outer is not None:
            whole.save_settings(outer[1].as_tables())
        for name, content in task.run_files().items():
            write_text_atomically(run.path / name, json.dumps(content, indent=1) + "\n")
    try:
        fitted = trainer.fit()
    except Interrupted as stopped:
        say(f"{stopped}; saved. Continue with: python -m fssops.train --resume {whole.path}")
        return 130
    say(f"trained        {fitted.steps} steps")
    memory = peak_memory(fabric.device)
    say("peak memory    " + ", ".join(f"{name.replace('_', ' ')} {size} MB" for name, size in memory.items()))
    if trainer.sharded:
        weights = trainer.whole_model()
        model = fssops.create_model(settings.model.name, **settings.model.options).to(fabric.device)
        model.load_state_dict(weights)
    result: dict[str, Any] = {"run": str(run.path), "steps": fitted.steps, "losses": fitted.losses, "best": fitted.best}
    result["peak_memory_mb"] = memory
    if evaluate:
        task.keep = run.path
        try:
            result.update(task.evaluate_run(model, untrained, fabric, run.path, say))
        except KeyboardInterrupt:
            say(f"trained; what was evaluated is kept. Continue with: python -m fssops.train --resume {whole.path}")
            raise
    result["seconds"] = round(time.perf_counter() - started, 1)
    if fabric.is_global_zero:
        finals = result.pop("finals", {})
        draw_curves(run.metrics, run.path / "curves.png", f"{settings.name}, {fitted.steps} steps", finals)
        write_text_atomically(run.path / "result.json", json.dumps(without_nan(result), indent=2) + "\n")
    discard_progress(run.path, fabric)
    say(f"finished in {result['seconds']:.0f} s; everything is in {run.path}/:")
    say("  " + "  ".join(name for name in _LEFT if (run.path / name).exists()))
    if has_checkpoint(run.checkpoints):
        say(f"  next: python -m fssops.evaluate {run.path}    python -m fssops.predict --checkpoint {run.path} --help")
    return 0


def _train_first_stage(
    task: Any, settings: Settings, fabric: Fabric, run: RunFolder, *, evaluate: bool, say: Any
) -> int:
    """Train what a task needs first, or go on with it; nothing where that is finished or not needed."""
    stage = task.first_stage(run.path)
    if stage is None:
        return 0
    folder, earlier = RunFolder(stage.folder), None
    if has_checkpoint(folder.checkpoints):
        path, state, _ = newest_good_checkpoint(folder.checkpoints)
        earlier = folder.load_settings()
        if state["step"] >= stage.settings.schedule.steps:
            say(f"first stage    {stage.name}: finished earlier, {path}")
            for line in changed_settings(earlier, stage.settings.as_tables()):
                say(f"not changed    {line}: it was trained so")
            return 0
        say(f"first stage    {stage.name}: goes on at step {state['step']} of {stage.settings.schedule.steps}")
    else:
        # What the second stage lacks shows now, not after hours of the first.
        task.training_data()
        if evaluate:
            task.novel_runs(task.settings.data.fold)
        say(f"first stage    {stage.name}: its checkpoint is missing, so it is trained first, in {folder.path}")

    def prepare() -> None:
        # The folder may lie outside the run, shared with runs of other shots.
        folder.create()
        folder.lock()

    run_on_first(fabric, prepare)
    try:
        code = _train(stage.settings, fabric, folder, earlier, evaluate=evaluate, outer=(run, settings))
    finally:
        folder.unlock()
        folder.remove_if_nothing_happened()
    if not code:
        say(f"second stage   {settings.name}")
    return code


def replay(path: Path) -> int:
    """Run the step again that the guard against NaN has kept, and say what goes wrong where."""
    state = read_checkpoint(path)
    if state.get("kind") != "replay":
        raise SettingsError(
            f"--replay: {path} must be a file of the NaN guard, got a {state.get('kind', 'foreign')} checkpoint"
        )
    settings = settings_from_tables(json.loads(state["settings"]), str(path))
    task = task_of(settings)
    model = fssops.create_model(settings.model.name, **settings.model.options)
    model.load_state_dict(state["model"])
    model.train()
    batch, _ = nonfinite.load_replay(path, task.batch_class)
    restore_random_state(state["random"])
    here = {"accelerator": "cpu", "devices": 1, "nodes": 1, "strategy": "auto"}
    autocast = build_fabric(settings.engine.model_copy(update=here)).autocast
    with torch.autograd.set_detect_anomaly(True, check_nan=False), autocast():
        losses, bad = nonfinite.checked_losses(model, model, batch)
    print(f"step {state['step']}; images: {', '.join(nonfinite.image_names(batch))}")
    for name, value in losses.items():
        print(f"  {name} = {float(value.detach())}")
    if losses:
        torch.stack([value.float() for value in losses.values()]).sum().backward()
    restore_random_state(state["random"])
    with autocast():
        module = nonfinite.first_nonfinite_module(model, batch)
    gradient = nonfinite.first_nonfinite_gradient(model)
    for what, found in (("loss", bad), ("module", module), ("gradient", gradient)):
        print(f"first bad {what}: {found or 'none'}")
    return 1 if bad or gradient or module else 0


def _silent(*_: Any) -> None:
    return None


if __name__ == "__main__":
    run_verb("train", main)
