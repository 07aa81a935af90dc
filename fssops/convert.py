"""python -m fssops.convert: any checkpoint that fssops reads, written as safetensors, for fssops or for transformers.

The report says what was loaded, missing, unexpected or left out. Nothing that the checkpoint holds is executed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fssops.models import MODELS, create_model
from fssops.weights import load_weights, save_weights


def _options(given: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are JSON where they can be, else text."""
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"convert: --set must be KEY=VALUE, got {pair!r}")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def _described(checkpoint: str) -> tuple[str, dict[str, Any]]:
    """Model and options that the ``config.json`` of a folder asks for."""
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"convert: --model must be given unless the checkpoint is a folder with config.json, got {path}"
        )
    from fssops.weights.reading import read_json_object
    from fssops.weights.transformers_layout import options_of

    return options_of(read_json_object(path))


def _write_transformers(model: nn.Module, folder: Path) -> None:
    from fssops.models.mask_classification import MaskClassificationModel
    from fssops.weights.transformers_layout import write_transformers

    if not isinstance(model, MaskClassificationModel):
        raise ValueError(f"convert: --layout transformers must be of maskformer or mask2former, got {model.name}")
    write_transformers(model, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint and return the exit code: 0 done, 2 it cannot be read, does not fit or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m fssops.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help=".pth, .pt, .pkl or .safetensors file, or a folder in transformers' layout")
    parser.add_argument(
        "output", type=Path, help="file to write, ending in .safetensors; with --layout transformers a folder"
    )
    parser.add_argument(
        "--model",
        choices=list(MODELS),
        help="system that the weights are for; by default what config.json of a folder in transformers' layout says",
    )
    parser.add_argument(
        "--layout",
        choices=("fssops", "transformers"),
        default="fssops",
        help="how to write: one file with our names, or config.json and model.safetensors that transformers loads",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the model, e.g. backbone=resnet50"
    )
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="convert what fits; the rest keeps random weights and is listed"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    options = parser.parse_args(arguments)
    try:
        folder = options.layout == "transformers"
        if (options.output.suffix == ".safetensors") == folder:
            rule = "be a folder with --layout transformers" if folder else "end in .safetensors"
            raise ValueError(f"convert: output must {rule}, got {options.output}")
        if options.output.exists() and not options.force:
            raise ValueError(f"convert: output must not exist (or give --force), got {options.output}")
        name, described = _described(options.checkpoint) if options.model is None else (options.model, {})
        model = create_model(name, **{**described, **_options(options.set)})
        report = load_weights(model, options.checkpoint, strict=not options.allow_mismatch)
        if folder:
            _write_transformers(model, options.output)
        else:
            save_weights(model, options.output)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    print(f"{'written':<11}        {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
