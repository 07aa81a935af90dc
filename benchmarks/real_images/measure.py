"""What each system reaches on small packs of real images, from real ImageNet features: all folds, 1 and 5 shots.

    python benchmarks/real_images/measure.py --data ../shared/data --weights ../shared/weights --out runs/real \\
        [--only TEXT ...] [--seeds 1234 ...] [--results FOLDER]

Every row is the verbs themselves, each in a process of its own; what is finished in ``--out`` is not made again. A
training-free system is evaluated once; a trained one is trained once a fold and a seed, then evaluated on its fold's
novel classes. Writes ``real_images.json`` (every line with its episode list's hash) and the table ``real_images.md``.
The packs are far too small to compare with published results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import machine

PACKS = {
    "voc_mini": ["data.source=voc", "data.split=trainval", "eval.split=trainval", "data.folds=pascal5i"],
    "coco_mini": [
        *("data.source=coco", "data.split=train2017", "eval.split=val2017", "data.folds=coco20i"),
        "data.definition=msanet",
    ],
}
EPISODES = ["eval.protocol=fssops", "eval.runs=1", "eval.episodes=200", "eval.min_area=2048", "data.too_few=skip"]
SHOTS = (1, 5)
FOLDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Row:
    """A system with its features.

    Attributes:
        system: what the table calls it.
        features: what the table calls its backbone and weights.
        recipe: of the package; "{pack}" stands for the pack.
        sets: further settings; "{weights}" stands for the folder of weights.
        trained: whether it is trained; else it is evaluated as it starts.
    """

    system: str
    features: str
    recipe: str
    sets: tuple[str, ...] = ()
    trained: bool = False


VGG16 = ("model.backbone=vgg16", "model.weights={weights}/vgg16_imagenet.safetensors")
VIT = ("model.weights={weights}/vit_small14_real.safetensors",)
ROWS = (
    Row("PANet, untrained", "VGG-16", "panet_mini_{pack}", (*VGG16, "data.size=[417,417]")),
    Row("PANet, untrained", "EfficientNet-Lite2", "panet_mini_{pack}", ("data.size=[417,417]",)),
    Row("prototype matching", "EfficientNet-Lite2", "prototype_matching_pascal5i"),
    Row("INSID3", "ViT-S/14", "insid3_pascal5i", (*VIT, "model.backbone=dinov2_vits14", "data.size=[518,518]")),
    Row("PANet at 241 px, untrained", "EfficientNet-Lite2", "panet_mini_{pack}"),
    Row("PANet at 241 px, trained", "EfficientNet-Lite2", "panet_mini_{pack}", trained=True),
    Row("PANet at 241 px, untrained", "VGG-16", "panet_mini_{pack}", VGG16),
    Row("PANet at 241 px, trained", "VGG-16", "panet_mini_{pack}", VGG16, trained=True),
)


def run(verb: str, *arguments: str) -> None:
    """Run a verb; what it prints goes to the terminal."""
    subprocess.run([sys.executable, "-m", f"fssops.{verb}", *arguments], check=True)


def settings(row: Row, pack: str, options: Any) -> list[str]:
    """``--set`` for each setting of a row on a pack."""
    sets = [*PACKS[pack], f"data.root={options.data / pack}", *EPISODES]
    sets += [text.format(weights=options.weights) for text in row.sets]
    return [part for text in sets for part in ("--set", text)]


def measured(row: Row, pack: str, shots: int, seed: int, options: Any) -> dict[str, Any]:
    """Scores of all folds; trains first where the row is trained."""
    recipe = row.recipe.format(pack=pack.removesuffix("_mini"))
    stem = f"{row.system} {row.features}".lower().replace(",", "").replace(" ", "-").replace("/", "")
    base, sets = options.out / pack / stem, settings(row, pack, options)
    models, seconds = ["--recipe", recipe], 0.0
    if row.trained:
        runs = [base / f"seed{seed}-fold{fold}" for fold in FOLDS]
        for fold, folder in zip(FOLDS, runs, strict=True):
            if not (folder / "result.json").exists():
                further = ["--set", f"data.fold={fold}", "--set", f"engine.seed={seed}", "--set", "eval.baseline=false"]
                run("train", recipe, "--out", str(folder), *sets, *further)
        seconds = sum(json.loads((folder / "result.json").read_text())["seconds"] for folder in runs)
        models, sets = [str(folder) for folder in runs], [part for text in EPISODES for part in ("--set", text)]
    scores = base / f"scores-seed{seed}-{shots}shot"
    if not (scores / "results.json").exists():
        run("evaluate", *models, "--fold", "all", *sets, "--set", f"eval.shots={shots}", "--out", str(scores))
    folds = json.loads((scores / "results.json").read_text())["folds"]
    return {
        "system": row.system,
        "features": row.features,
        "pack": pack,
        "shots": shots,
        "seed": seed,
        "mIoU": [round(100 * fold["mean_iou"], 2) for fold in folds],
        "binary IoU": [round(100 * fold["fb_iou"], 2) for fold in folds],
        "seconds of training": round(seconds),
        "seconds of evaluation": round(sum(fold["seconds"] for fold in folds)),
        "lines": [fold["line"] for fold in folds],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: mIoU of each fold, of several seeds their mean, then the means and the spread over seeds."""
    lines = [
        "| system | features | pack | shots | fold 0 | 1 | 2 | 3 | mean mIoU | binary IoU | seeds |",
        "|" + "---|" * 11,
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["features"], row["pack"], row["shots"]), []).append(row)
    for key, seeds in groups.items():
        folds = [f"{statistics.fmean(values):.2f}" for values in zip(*(row["mIoU"] for row in seeds), strict=True)]
        means = [statistics.fmean(row["mIoU"]) for row in seeds]
        spread = f" ({min(means):.2f} to {max(means):.2f})" if len(seeds) > 1 else ""
        binary = statistics.fmean(statistics.fmean(row["binary IoU"]) for row in seeds)
        cells = [*map(str, key), *folds, f"{statistics.fmean(means):.2f}{spread}", f"{binary:.2f}", str(len(seeds))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure what is asked for, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="rows whose names hold one of these")
    parser.add_argument("--packs", nargs="+", default=list(PACKS), choices=list(PACKS))
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1234], help="of trainings")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = [row for row in ROWS if any(text in f"{row.system}, {row.features}" for text in options.only)]
    found = []
    for pack in options.packs:
        for row in rows:
            for seed in options.seeds if row.trained else options.seeds[:1]:
                found += [measured(row, pack, shots, seed, options) for shots in options.shots]
                body = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": found}
                if options.results:
                    options.results.mkdir(parents=True, exist_ok=True)
                    (options.results / "real_images.json").write_text(json.dumps(body, indent=1) + "\n")
                    (options.results / "real_images.md").write_text(table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
