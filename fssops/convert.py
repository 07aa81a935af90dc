"""``python -m fssops.convert``: any checkpoint that fssops reads, written as safetensors for fssops or transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fssops.command_line import Parser, exit_code_of
from fssops.engine.checkpoints import CheckpointError, has_checkpoint, newest_good_checkpoint, read_checkpoint
from fssops.models import MODELS, create_model
from fssops.weights import load_weights, save_weights

_DESCRIPTION = """Write any checkpoint that fssops reads as safetensors, for fssops or for transformers.

The report says what was loaded, missing, unexpected or left out. Nothing that the checkpoint holds is executed."""

_EXAMPLES = """\
examples:
  python -m fssops.convert runs/panet_generated-20260101-120000 panet.safetensors
      the newest checkpoint of a run, which says itself what model it is of
  python -m fssops.convert 30000.pth panet.safetensors --model panet
      the authors' weights
  python -m fssops.convert model_final.pkl mask2former/ --model mask2former --set num_classes=133 --layout transformers
      a folder that transformers loads; the way back needs no --model"""


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser("convert", _DESCRIPTION, _EXAMPLES)
    arguments.add_argument(
        "checkpoint",
        help=".pth, .pt, .pkl or .safetensors file, run folder of fssops.train, or folder in transformers' layout",
    )
    arguments.add_argument(
        "output", type=Path, help="file to write, ending in .safetensors; with --layout transformers a folder"
    )
    arguments.add_argument(
        "--model",
        choices=list(MODELS),
        metavar="NAME",
        help="system that the weights are for, see python -m fssops.models; a run and a folder in transformers' layout "
        "say it themselves",
    )
    arguments.add_argument(
        "--layout",
        choices=("fssops", "transformers"),
        default="fssops",
        help="how to write: one file with our names, or config.json and model.safetensors that transformers loads",
    )
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the model, e.g. backbone=resnet50"
    )
    arguments.add_argument(
        "--allow-mismatch", action="store_true", help="convert what fits; the rest keeps random weights and is listed"
    )
    arguments.add_argument("--force", action="store_true", help="overwrite the output")
    return arguments


def _options(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set must be KEY=VALUE, got {pair!r}")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def _described(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """Model and options that the settings of a run's checkpoint, or a folder's ``config.json``, ask for."""
    if (checkpoint / "config.json").is_file():
        from fssops.weights.reading import read_json_object
        from fssops.weights.transformers_layout import options_of

        return options_of(read_json_object(checkpoint / "config.json"))
    try:
        tables = json.loads(read_checkpoint(checkpoint)["settings"])
    except (CheckpointError, KeyError):
        raise ValueError(
            f"--model must be given unless the checkpoint is a run or a folder with config.json, got {checkpoint}"
        ) from None
    from fssops.tasks import settings_from_tables

    settings = settings_from_tables(tables, str(checkpoint))
    return settings.model.name, settings.model.options


def _write_transformers(model: nn.Module, folder: Path) -> None:
    from fssops.models.universal import UniversalModel
    from fssops.weights.transformers_layout import write_transformers

    if not isinstance(model, UniversalModel):
        raise ValueError(f"--layout transformers must be of maskformer or mask2former, got {model.name}")
    write_transformers(model, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint and return the exit code, see :mod:`fssops.command_line`."""
    return exit_code_of("convert", _convert, sys.argv[1:] if arguments is None else arguments)


def _convert(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    folder = options.layout == "transformers"
    if (options.output.suffix == ".safetensors") == folder:
        rule = "be a folder with --layout transformers" if folder else "end in .safetensors"
        raise ValueError(f"output must {rule}, got {options.output}")
    if options.output.exists() and not options.force:
        raise ValueError(f"output must not exist (or give --force), got {options.output}")
    if not options.output.absolute().parent.is_dir():
        raise ValueError(f"output must lie in a folder that exists, got {options.output}")
    source = Path(options.checkpoint)
    if not source.exists():
        raise ValueError(f"checkpoint: path must exist, got {source}")
    if has_checkpoint(source / "checkpoints"):
        source, _, _ = newest_good_checkpoint(source / "checkpoints")
    name, described = _described(source) if options.model is None else (options.model, {})
    model = create_model(name, **{**described, **_options(options.set)})
    report = load_weights(model, source, strict=not options.allow_mismatch)
    if folder:
        _write_transformers(model, options.output)
    else:
        save_weights(model, options.output)
    print(report)
    print(f"{'written':<11}        {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
