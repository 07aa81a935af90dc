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
VIT = ("model.backbone=dinov2_vits14", "model.weights={weights}/vit_small14_real.safetensors")
LITE2, VIT_NAME = "EfficientNet-Lite2", "ViT-S/14"
ROWS = (
    Row("prototype matching", LITE2, "prototype_matching_pascal5i"),
    Row("INSID3", VIT_NAME, "insid3_pascal5i", (*VIT, "data.size=[518,518]")),
    Row("PANet at 417 px, untrained", "VGG-16", "panet_mini_{pack}", (*VGG16, "data.size=[417,417]")),
    Row("PANet at 417 px, untrained", LITE2, "panet_mini_{pack}", ("data.size=[417,417]",)),
    Row("PANet at 420 px, untrained", VIT_NAME, "panet_mini_{pack}", (*VIT, "data.size=[420,420]")),
    Row("PANet", LITE2, "panet_mini_{pack}", trained=True),
    Row("PANet", "VGG-16", "panet_mini_{pack}", VGG16, trained=True),
    Row("MSANet", LITE2, "msanet_mini_{pack}", trained=True),
    Row("MM-Former", LITE2, "mm_former_mini_{pack}", trained=True),
)
UNIVERSAL = (
    ("mask2former_mini_camvid", "camvid"),
    ("maskformer_mini_camvid", "camvid"),
    ("mask2former_mini_coco", "coco_mini"),
    ("mask2former_vis_mini_davis", "davis_mini"),
)


def run(verb: str, *arguments: str) -> None:
    """Run a verb; what it prints goes to the terminal."""
    subprocess.run([sys.executable, "-m", f"fssops.{verb}", *arguments], check=True)


def settings(row: Row, pack: str, options: Any) -> list[str]:
    """``--set`` for each setting of a row on a pack."""
    sets = [*PACKS[pack], f"data.root={options.data / pack}", *EPISODES]
    sets += [text.format(weights=options.weights) for text in row.sets]
    return [part for text in sets for part in ("--set", text)]


def measured(row: Row, pack: str, seed: int, options: Any) -> list[dict[str, Any]]:
    """A line for each number of shots, and one for a trained row's untrained start; trains first if need be."""
    recipe = row.recipe.format(pack=pack.removesuffix("_mini"))
    stem = f"{row.system} {row.features}".lower().replace(",", "").replace(" ", "-").replace("/", "")
    base, sets = options.out / pack / stem, settings(row, pack, options)
    about = {"system": row.system, "features": row.features, "pack": pack, "seed": seed}

    def line(shots: int, folds: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
        scores = {
            "mIoU": [round(100 * fold["mean_iou"], 2) for fold in folds],
            "binary IoU": [round(100 * fold["fb_iou"], 2) for fold in folds],
            "lines": [fold["line"] for fold in folds],
        }
        return {**about, "shots": shots, **further, **scores}

    def evaluated(shots: int, models: list[str], sets: list[str]) -> list[dict[str, Any]]:
        scores = base / f"scores-seed{seed}-{shots}shot"
        if not (scores / "results.json").exists():
            run("evaluate", *models, "--fold", "all", *sets, "--set", f"eval.shots={shots}", "--out", str(scores))
        return json.loads((scores / "results.json").read_text())["folds"]  # type: ignore[no-any-return]

    if not row.trained:
        return [line(shots, evaluated(shots, ["--recipe", recipe], sets)) for shots in options.shots]
    runs = [base / f"seed{seed}-fold{fold}" for fold in FOLDS]
    for fold, folder in zip(FOLDS, runs, strict=True):
        if not (folder / "result.json").exists():
            goes_on = ["--resume", str(folder)] if folder.exists() else [recipe, "--out", str(folder), *sets]
            run("train", *goes_on, "--set", f"data.fold={fold}", "--set", f"engine.seed={seed}")
    results = [json.loads((folder / "result.json").read_text()) for folder in runs]
    costs = {name: [result[name] for result in results] for name in ("steps", "seconds")}
    lines = [
        line(1, [result["untrained"] for result in results], start=True),
        line(1, [result["novel"] for result in results], **costs),
    ]
    sets = [part for text in EPISODES for part in ("--set", text)]
    further = [shots for shots in options.shots if shots != 1]
    return lines + [line(shots, evaluated(shots, [str(folder) for folder in runs], sets)) for shots in further]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: mIoU of each fold, of several seeds their mean, then the means and the spread over seeds."""
    lines = [
        "| system | features | pack | shots | fold 0 | 1 | 2 | 3 | mean mIoU | binary IoU | seeds | steps | seconds |",
        "|" + "---|" * 13,
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        system = row["system"] + (", its start" if row.get("start") else "")
        groups.setdefault((system, row["features"], row["pack"], row["shots"]), []).append(row)
    for key, seeds in groups.items():
        folds = [f"{statistics.fmean(values):.2f}" for values in zip(*(row["mIoU"] for row in seeds), strict=True)]
        means = [statistics.fmean(row["mIoU"]) for row in seeds]
        spread = f" ({min(means):.2f} to {max(means):.2f})" if len(seeds) > 1 else ""
        binary = statistics.fmean(statistics.fmean(row["binary IoU"]) for row in seeds)
        steps = str(seeds[0]["steps"][0]) if "steps" in seeds[0] else ""
        seconds = f"{statistics.fmean(statistics.fmean(row['seconds']) for row in seeds):.0f}" if steps else ""
        cells = [*map(str, key), *folds, f"{statistics.fmean(means):.2f}{spread}", f"{binary:.2f}", str(len(seeds))]
        lines.append("| " + " | ".join([*cells, steps, seconds]) + " |")
    return "\n".join(lines) + "\n"


def universal(recipe: str, pack: str, options: Any) -> dict[str, Any]:
    """The result of a recipe of fixed classes, trained where it is not there yet."""
    folder = options.out / pack / recipe
    if not (folder / "result.json").exists():
        goes_on = ["--resume", str(folder)] if folder.exists() else [recipe, "--out", str(folder)]
        run("train", *goes_on, "--set", f"data.root={options.data / pack}")
    result = json.loads((folder / "result.json").read_text())
    entries = [entry for entry in result.values() if isinstance(entry, dict) and "line" in entry]
    return {
        "recipe": recipe,
        "pack": pack,
        "steps": result["steps"],
        "seconds": result["seconds"],
        "lines": [entry["line"] for entry in entries],
    }


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
    found: list[dict[str, Any]] = []
    fixed: list[dict[str, Any]] = []

    def write() -> None:
        lines = [
            f"- `{one['recipe']}`, {one['steps']} steps, {one['seconds']:.0f} s: {one['lines']}\n" for one in fixed
        ]
        text = table(found) + "\n" + "".join(lines)
        if options.results:
            body = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": found, "fixed classes": fixed}
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / "real_images.json").write_text(json.dumps(body, indent=1) + "\n")
            (options.results / "real_images.md").write_text(text)
        else:
            print(text)

    for recipe, pack in UNIVERSAL:
        if any(text in recipe for text in options.only):
            fixed.append(universal(recipe, pack, options))
    for row in rows:
        for pack in options.packs:
            for seed in options.seeds if row.trained else options.seeds[:1]:
                found += measured(row, pack, seed, options)
                write()
    write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
