"""What each departure of the published MSANet code from its own intent does to a trained model.

    python benchmarks/msanet_behaviours.py RUN [--trained-as-published RUN] [--protocol msanet] [--results FILE]

Evaluates one run on its own novel classes, episodes and weights: with the sound behaviour, with each departure alone
that matters once training is over, and with all of them. ``--trained-as-published`` names a second run, of the same
recipe with ``model.behaviour=published``, for those that matter in training. "pixels that differ" counts the query
pixels whose label is not the sound one's, at the size that the protocol compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from torch import Tensor, nn

import fssops
from fssops.engine.launch import build_fabric
from fssops.evaluation.results import FewShotResult
from fssops.models.msanet import MSANet
from fssops.models.msanet.records import MSANetSupport
from fssops.tasks import task_of
from fssops.tasks.trained_models import load_trained

KEPT, WEIGHTS, RESULT = "kept positions", "shot weights", "result"
ROWS: dict[str, tuple[str, ...]] = {
    "sound": (),
    "kept positions compared with a rounded mean": (KEPT,),
    "shot weights not un-sorted": (WEIGHTS,),
    "affine numbers compared, not their log ratio": (RESULT,),
    "published, all of these": (KEPT, WEIGHTS, RESULT),
}
"""What is evaluated: the departures that are on. With VGG the third also takes stage 4 of the last shot alone."""


class Departing(nn.Module):
    """The model of a run with some of the published departures, as few-shot evaluation asks a model.

    Args:
        sound: the model.
        departures: of :data:`KEPT`, :data:`WEIGHTS`, :data:`RESULT`.
    """

    def __init__(self, sound: MSANet, departures: Sequence[str]) -> None:
        super().__init__()
        options = {**vars(sound.config), "behaviour": "published"}
        published = fssops.create_model("msanet", **options)
        published.load_state_dict(sound.state_dict())
        self.encode, self.query_features = sound.encode, sound.query_features
        self.summarising = published if KEPT in departures else sound
        self.matching: MSANet = published if RESULT in departures else sound  # type: ignore[assignment]
        self.unsort = WEIGHTS not in departures
        self.labels: list[Tensor] = []

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> MSANetSupport:
        """As MSANet's."""
        results: MSANetSupport = self.summarising.summarise(features, foreground, background)
        return results

    def match(self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """As MSANet's."""
        return self.match_parts(support, features, size)["ensemble"]

    def match_parts(
        self, support: MSANetSupport, features: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """As MSANet's; the label maps are kept."""
        if self.matching.shot_scorer is not None:
            self.matching.shot_scorer.unsort = self.unsort
        results = self.matching.match_parts(support, features, size)
        self.labels.append(results["ensemble"].argmax(2).to(torch.uint8).flatten())
        return results


def row(name: str, result: FewShotResult, labels: list[Tensor], sound: list[Tensor]) -> dict[str, Any]:
    """A line of the table."""
    differ = sum(int((a != b).sum()) for a, b in zip(labels, sound, strict=True))
    total = sum(label.numel() for label in sound)
    return {
        "behaviour": name,
        "mIoU": round(100 * result.mean_iou, 2),
        "binary IoU": round(100 * result.fb_iou, 2),
        "meta learner mIoU": round(100 * result.parts["meta mIoU"], 2),
        "foreground": round(100 * sum(int((label == 1).sum()) for label in labels) / total, 2),
        "pixels that differ": round(100 * differ / total, 3),
    }


def evaluated(run: Path, overrides: Sequence[str], rows: dict[str, tuple[str, ...]]) -> tuple[list[Any], list[Any]]:
    """Evaluate a run with each row's departures: (names, results), label maps of each."""
    trained = load_trained(run, None, [*overrides, "eval.pictures=0", "model.behaviour=sound"])
    settings, model, label = trained.task.settings, trained.model, trained.label
    if not isinstance(model, MSANet):
        raise SystemExit(f"RUN: {run} must be a run of MSANet, got {settings.model.name}")
    task, fabric = task_of(settings), build_fabric(settings.engine)
    fabric.launch()
    results, maps = [], []
    for name, departures in rows.items():
        departing = Departing(model, departures).eval()
        results.append((name, task.evaluate(departing, fabric, label, name).result))
        maps.append(departing.labels)
    return results, maps


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trained-as-published", type=Path, metavar="RUN")
    parser.add_argument("--protocol", help="default: the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    overrides = list(options.overrides)
    if options.protocol:
        overrides.append(f"eval.protocol={json.dumps(options.protocol)}")
    results, maps = evaluated(options.run, overrides, ROWS)
    rows = [row(name, result, labels, maps[0]) for (name, result), labels in zip(results, maps, strict=True)]
    setting = results[0][1].setting()
    if options.trained_as_published is not None:
        ends = {"sound": (), "published": (KEPT, WEIGHTS, RESULT)}
        results, others = evaluated(options.trained_as_published, overrides, ends)
        for (name, result), labels in zip(results, others, strict=True):
            rows.append(row(f"trained as published, evaluated as {name}", result, labels, maps[0]))
    print(setting)
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for line in rows:
        print("| " + " | ".join(str(value) for value in line.values()) + " |")
    if options.results:
        body = {"machine": machine(), "setting": setting, "rows": rows}
        options.results.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
