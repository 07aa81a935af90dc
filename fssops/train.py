"""``python -m fssops.train``: train a recipe, evaluate what it has made, leave everything in one folder.

From Python ``fssops.train(...)`` does the same, see :func:`fssops.api.train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fssops.command_line import CallableVerb, Parser, run_verb
from fssops.engine.settings import SettingsError
from fssops.recipes import DEFAULT, compact, list_recipes

if TYPE_CHECKING:
    from fssops.tasks.own_data import OwnRecipe
    from fssops.tasks.task import Task

_EXAMPLES = """\
examples:
  python -m fssops.train
      the default: a small PANet on generated images, two minutes on two CPU cores
  python -m fssops.train --data my_folder
      a folder of one's own: looks at the data, chooses task, split, model, size, batch and length, says why, and writes
      the recipe into the run, to be edited and trained again; --task --model --weights --epochs --size --batch --lr
      --freeze say what is not to be chosen (docs/own_data.md)
  python -m fssops.train --data my_folder --weights runs/earlier
      goes on from all weights of another training but its class head
  python -m fssops.train panet_pascal5i --set data.root=/data/VOCdevkit/VOC2012
      a published recipe, from the ImageNet weights that it names, fetched once; --set changes any key, as often as
      needed: --set model.weights=FILE without a network
  python -m fssops.train panet_pascal5i --set data.fold=2 --set engine.precision=bf16 --set engine.devices=4 \\
      --set engine.batch_size=4
      another fold, mixed precision, four GPUs
  torchrun --nproc-per-node 4 -m fssops.train panet_pascal5i --set engine.batch_size=4 --set engine.strategy=fsdp
      processes that torchrun starts, here with weights sharded over them; the losses are those of one process
  python -m fssops.train mask2former_camvid --set data.root=/data/camvid
      a universal system: semantic, instance or panoptic segmentation of fixed classes
  python -m fssops.train mask2former_vis_ytvis2021_r50 --set data.root=/data/ytvis_2021 --set model.weights=coco.pkl \\
      --set model.new_classes=true
      a video system, from an image checkpoint of other classes; mask2former_vis_generated takes minutes on a CPU
  python -m fssops.train --resume runs/panet_generated-20260101-120000
      go on exactly where a run stopped; --resume alone takes the newest run of the recipe
  python -m fssops.train my_recipe.toml --out runs/mine
      a recipe of one's own

a run leaves in its folder: settings.toml, versions.json, metrics.{jsonl,csv}, tensorboard/, checkpoints/{last,best}.pt,
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
    own = arguments.add_argument_group("a folder of one's own")
    own.add_argument("--data", type=Path, metavar="FOLDER", help="train on a folder in any layout, without a recipe")
    own.add_argument("--task", metavar="TASK", help="semantic, instance, panoptic, video or few-shot")
    own.add_argument("--model", metavar="NAME", help="a system, or published weights of one (python -m fssops.models)")
    own.add_argument("--weights", metavar="RUN|FILE|NAME", help="start from these: a backbone's, or a whole system's")
    own.add_argument("--epochs", type=float, metavar="N", help="passes over the training images")
    own.add_argument("--size", type=int, metavar="PIXELS", help="side of training images")
    own.add_argument("--batch", type=int, metavar="N", help="images of a step")
    own.add_argument("--lr", type=float, metavar="RATE", help="learning rate")
    own.add_argument(
        "--freeze", type=_layers, metavar="N|all", help="first layers of the backbone that stay as they are"
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
        from fssops.tasks.training import replay

        return replay(options.replay)
    own = _own_recipe(options)
    folder = _folder_to_resume(options)
    task, earlier = (own.task(), None) if own else _task(options, folder)
    if options.show:
        from fssops.engine.toml_text import to_toml

        print(own.text(options.out or Path("RUN")) if own else to_toml(task.settings.as_tables()), end="")
        return 0
    from fssops.tasks.training import train_in_folder

    settle = None if own is None else own.settled
    code, _ = train_in_folder(task, earlier, folder, out=options.out, evaluate=not options.no_eval, settle=settle)
    return code


_CHOSEN = ("task", "model", "weights", "epochs", "size", "batch", "lr", "freeze")
"""Options that replace what ``--data`` chooses."""


def _own_recipe(options: Any) -> OwnRecipe | None:
    """What is chosen for ``--data``; None without it."""
    given = {name: value for name in _CHOSEN if (value := getattr(options, name)) is not None}
    if options.data is None:
        if given:
            name = next(iter(given))
            raise SettingsError(f"--{name}: must come with --data FOLDER; a recipe is changed by --set KEY=VALUE")
        return None
    if options.recipe or options.resume is not None:
        raise SettingsError("--data: must come without a recipe and --resume, which know their data")
    from fssops.tasks.own_data import recipe_for

    own = recipe_for(options.data, overrides=options.overrides, **given)
    if not options.show:
        own.say()
    return own


def _layers(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of layers or all, got {text!r}")
    return text if text == "all" else int(text)


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
    from fssops.engine.run_folder import latest_run
    from fssops.tasks import load_task

    return latest_run(Path("runs"), load_task(options.recipe or DEFAULT).settings.name)


def _task(options: Any, folder: Path | None) -> tuple[Task, Mapping[str, Any] | None]:
    """Return what to train and, of a resumed run, the settings that it had."""
    from fssops.engine.run_folder import RunFolder
    from fssops.tasks import load_task, task_from_tables

    if folder is None:
        return load_task(options.recipe or DEFAULT, options.overrides), None
    earlier = RunFolder(folder).load_settings()
    return task_from_tables(earlier, f"run {folder}", options.overrides), earlier


if __name__ == "__main__":
    run_verb("train", main)
else:
    sys.modules[__name__].__class__ = CallableVerb
