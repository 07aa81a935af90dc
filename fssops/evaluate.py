"""``python -m fssops.evaluate``: score checkpoints by a named protocol, and say exactly what was measured.

From Python ``fssops.evaluate(...)`` does the same, see :func:`fssops.api.evaluate`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fssops.command_line import CallableVerb, Parser, print_table, run_verb
from fssops.engine.settings import SettingsError
from fssops.protocols import PROTOCOLS

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fssops.tasks.trained_models import TrainedModel

logger = logging.getLogger(__name__)

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
  python -m fssops.evaluate mask2former-r50-coco-panoptic --set data.root=/data/coco
      published weights by name, fetched once (python -m fssops.models --weights lists them)
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
        metavar="CHECKPOINT",
        help="run folder, checkpoint of a run, weights file, or a name, address or owner/repository of weights "
        "(python -m fssops.models --weights)",
    )
    arguments.add_argument(
        "--recipe", help="for weights without settings: name of a recipe (python -m fssops.models) or a .toml file"
    )
    arguments.add_argument("--protocol", help=f"one of {', '.join(PROTOCOLS)} (default: the recipe's)")
    arguments.add_argument("--fold", help="0, 1, 2, 3 or all (default: the fold that was trained)")
    arguments.add_argument(
        "--which",
        choices=("last", "best"),
        help="checkpoint of a run folder (default: the one that its training evaluated)",
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
    from fssops.engine.launch import build_fabric
    from fssops.tasks.trained_models import load_trained, untrained_model

    loaded = [load_trained(path, options.recipe, overrides, options.which) for path in options.checkpoints]
    loaded = loaded or [untrained_model(options.recipe, overrides)]
    task = loaded[0].task
    kinds = list(dict.fromkeys(one.task.several for one in loaded))
    if len(kinds) > 1:
        raise SettingsError(f"CHECKPOINT: all must be of one kind, got {' and '.join(kinds)}; evaluate them apart")
    wanted = task.evaluations([one.task for one in loaded], options.fold)
    fabric = build_fabric(task.settings.engine)
    fabric.launch()
    with _results_folder(options, task.settings.name, task.rules, fabric) as folder:
        _evaluate(loaded, wanted, options, fabric, folder)
    return 0


def _evaluate(
    loaded: Sequence[TrainedModel],
    wanted: Sequence[tuple[int, int | None]],
    options: Any,
    fabric: Fabric,
    folder: Path,
) -> None:
    """Score models, and print what the files in the folder say."""
    from fssops.tasks.scoring import score, seen_folds

    results, written = score(loaded, wanted, fabric, folder)
    if not fabric.is_global_zero:
        return
    kind = type(results[0])
    for title, rows in kind.report_tables(results, options.classes):
        print_table(rows[1:], rows[0], title=title)
    for line in [*kind.report_lines(results), *(seen_folds(loaded, wanted) if options.checkpoints else ())]:
        print(line)
    print(f"written: {folder}/ ({', '.join(str(path.relative_to(folder)) for path in written)})")


@contextmanager
def _results_folder(options: Any, name: str, rules: str, fabric: Fabric) -> Iterator[Path]:
    """The folder of the results, the same on every process; it keeps how far evaluation has come until it is done."""
    from fssops.engine.launch import run_on_first
    from fssops.engine.run_folder import missing_folders, remove_empty

    made: list[Path] = []

    def make() -> Path:
        folder: Path = options.out or _default_folder(options.checkpoints, name, rules)
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"--out: {folder} must be a folder, got a file")
        made.extend(missing_folders(folder))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    folder: Path = run_on_first(fabric, make)
    try:
        yield folder
    except KeyboardInterrupt:
        logger.warning("what was counted is kept; the same command with --out %s goes on", folder)
        raise
    except Exception:
        remove_empty(made)
        raise


def _default_folder(checkpoints: Sequence[str], name: str, rules: str) -> Path:
    below = f"evaluation-{rules}-{time.strftime('%Y%m%d-%H%M%S')}"
    if len(checkpoints) == 1 and Path(checkpoints[0]).is_dir():
        return Path(checkpoints[0]) / below
    return Path("runs") / f"{name}-{below}"


if __name__ == "__main__":
    run_verb("evaluate", main)
else:
    sys.modules[__name__].__class__ = CallableVerb
