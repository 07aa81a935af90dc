"""python -m fssops.convert: any checkpoint that fssops reads, written as an fssops safetensors file.

The report says what was loaded, missing, unexpected or left out. Nothing that the checkpoint holds is executed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint and return the exit code: 0 done, 2 it cannot be read, does not fit or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m fssops.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help=".pth, .pt, .pkl or .safetensors file, or a folder in transformers' layout")
    parser.add_argument("output", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--model", required=True, choices=list(MODELS), help="system that the weights are for")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the model, e.g. backbone=resnet50"
    )
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="convert what fits; the rest keeps random weights and is listed"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    options = parser.parse_args(arguments)
    try:
        if options.output.suffix != ".safetensors":
            raise ValueError(f"convert: output must end in .safetensors, got {options.output}")
        if options.output.exists() and not options.force:
            raise ValueError(f"convert: output must not exist (or give --force), got {options.output}")
        model = create_model(options.model, **_options(options.set))
        report = load_weights(model, options.checkpoint, strict=not options.allow_mismatch)
        save_weights(model, options.output)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    print(f"{'written':<11}        {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
