"""``python -m fssops.convert``: any checkpoint that fssops reads, written as safetensors for fssops or transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.command_line import Parser, run_verb
from fssops.models import MODELS, create_config
from fssops.weights.finding import SUFFIXES

_DESCRIPTION = """Write any checkpoint that fssops reads as safetensors, for fssops or for transformers.

The report says what was loaded, missing, unexpected or left out. Nothing that the checkpoint holds is executed."""

_EXAMPLES = """\
examples:
  python -m fssops.convert runs/panet_generated-20260101-120000 panet.safetensors
      the newest checkpoint of a run, which says itself what model it is of
  python -m fssops.convert runs/panet_generated-20260101-120000 panet/
      the same as a folder with config.json; both know classes and image size, and fssops.load takes them
  python -m fssops.convert 30000.pth panet.safetensors --model panet
      the authors' weights
  python -m fssops.convert model_final.pkl mask2former/ --model mask2former --set num_classes=133 --layout transformers
      a folder that transformers loads; the way back needs no --model"""


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser("convert", _DESCRIPTION, _EXAMPLES)
    arguments.add_argument(
        "checkpoint",
        help=".pth, .pt, .pkl or .safetensors file, run folder of fssops.train, folder in transformers' layout, or a "
        "name, address or owner/repository of such (python -m fssops.models --weights)",
    )
    arguments.add_argument(
        "output",
        type=Path,
        help="file to write, ending in .safetensors, or a folder; with --layout transformers a folder",
    )
    arguments.add_argument(
        "--model",
        choices=list(MODELS),
        metavar="NAME",
        help="system that the weights are for, see python -m fssops.models; a run, a file that fssops has converted "
        "and a folder in transformers' layout say it themselves",
    )
    arguments.add_argument(
        "--layout",
        choices=("fssops", "transformers"),
        default="fssops",
        help="how to write: with our names, one file or a folder that fssops.load takes; or a folder with config.json "
        "and model.safetensors that transformers loads",
    )
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the model, e.g. backbone=resnet50"
    )
    arguments.add_argument(
        "--allow-mismatch", action="store_true", help="convert what fits; the rest keeps random weights and is listed"
    )
    arguments.add_argument("--force", action="store_true", help="overwrite the output")
    return arguments


def _model_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are JSON where they can be, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set must be KEY=VALUE, got {pair!r}")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint and return the exit code."""
    options = parser().parse_args(arguments)
    folder = options.layout == "transformers"
    if options.output.suffix in SUFFIXES and (folder or options.output.suffix != ".safetensors"):
        rule = "be a folder with --layout transformers" if folder else "end in .safetensors or be a folder"
        raise ValueError(f"output must {rule}, got {options.output}")
    if options.output.exists() and not options.force:
        raise ValueError(f"output must not exist (or give --force), got {options.output}")
    if not options.output.absolute().parent.is_dir():
        raise ValueError(f"output must lie in a folder that exists, got {options.output}")
    from fssops.tasks.described_models import kept_of_run
    from fssops.weights import find_weights, load_weights, read_weights, save_pretrained
    from fssops.weights.pretrained import refuse_larger_model

    path = find_weights(options.checkpoint, "checkpoint").path
    checkpoint = read_weights(path)
    if options.model is not None:
        name, described = str(options.model), dict[str, Any]()
    elif checkpoint.model or checkpoint.config:
        name, described = checkpoint.described_model()
    else:
        raise ValueError(
            f"--model must be given unless the checkpoint is a run, converted by fssops, or a folder with config.json, "
            f"got {checkpoint.source}"
        )
    config = create_config(name, {**described, **_model_options(options.set)})
    if described:
        refuse_larger_model(name, config, checkpoint)
    model = MODELS[name].model_class()(config)
    mismatch = options.allow_mismatch
    report = load_weights(model, checkpoint, strict=not mismatch, new_head="tell" if mismatch else "refuse")
    known = kept_of_run(checkpoint, path)
    if folder:
        from fssops.weights.transformers_folder import write_transformers

        rows = (known["classes"] or {}).get("classes", [])
        write_transformers(model, options.output, [row["name"] for row in rows] or None)
    else:
        save_pretrained(model, options.output, **known)
    print(report)
    print(f"{'written':<11}        {options.output}")
    return 0


if __name__ == "__main__":
    run_verb("convert", main)
