"""How the options of prototype matching were chosen, and what the chosen ones are worth on other classes.

    python benchmarks/prototype_matching.py choose --data ../shared/data/coco_mini [--results FILE]
    python benchmarks/prototype_matching.py other --data ../shared/data/coco_mini [--results FILE]
    python benchmarks/prototype_matching.py time [--results FILE]

1-way 1-shot episodes of COCO classes that are not among VOC's 20: "choose" draws from every second of these 60 in the
order of their ids, beginning with the first, "other" from the rest. Half of the episodes are of the training images,
half of the validation images. Scores on VOC come from ``python -m fssops.evaluate --recipe
prototype_matching_pascal5i``, which nothing here looks at. Weights: ``efficientnet_lite2-imagenet`` (extra
``fssops[pretrained]``). Outputs of the backbone are kept, so that a variant costs its matching alone. "time" is of one
picture with ``fssops.load()``, and of the process's memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from measuring import fastest, machine, peak_megabytes
from torch import Tensor, nn

from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.layouts import open_data
from fssops.data.layouts.coco import NAMES
from fssops.evaluation.episodes import labelled_episodes, segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics.few_shot import FewShotIoU
from fssops.models.backbones.build import build_backbone
from fssops.models.prototype_matching import PrototypeMatching, PrototypeMatchingConfig
from fssops.protocols import PROTOCOLS
from fssops.recipes import FEW_SHOT_DEFAULT, read_named_recipe
from fssops.weights import load_weights

VOC = (
    "airplane bicycle bird boat bottle bus car cat chair cow|dining table|dog horse motorcycle person|potted plant|"
    "sheep couch train tv"
)
VOC_CLASSES = {name for part in VOC.split("|") for name in ([part] if part in NAMES else part.split())}
WEIGHTS, SEED, LEAST_AREA = "efficientnet_lite2-imagenet", 1, 2048
TAPS = ("stage4", "stage5", "stage6", "stage7")
CHOSEN = {
    **{
        key: value
        for key, value in read_named_recipe(FEW_SHOT_DEFAULT)["model"].items()
        if key not in ("name", "weights")
    },
    "size": read_named_recipe(FEW_SHOT_DEFAULT)["data"]["size"][0],
}
PLAIN: dict[str, Any] = {"taps": ["stage6"], "self_support": 0.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain prototypes, stage 6, 417 px": {**PLAIN, "size": 417},
    "plain prototypes, stage 6": PLAIN,
    "plain prototypes, stages 5 to 7": {"self_support": 0.0},
    "chosen: stages 5 to 7, self-support": {},
    "417 px": {"size": 417},
    "stage 6 alone": {"taps": ["stage6"]},
    "stages 6 and 7": {"taps": ["stage6", "stage7"]},
    "stages 4 to 7": {"taps": ["stage4", "stage5", "stage6", "stage7"]},
    "mirror image": {"flip": True},
    "self-support share 0.3": {"self_support": 0.3},
    "self-support share 0.7": {"self_support": 0.7},
    "adaptive background as published (0.7, temperature 0.5)": {
        "adaptive_background": 0.7,
        "adaptive_temperature": 0.5,
    },
    "no adaptive background": {"adaptive_background": 0.0},
    "adaptive background 0.5": {"adaptive_background": 0.5},
    "certain from 0.8 and 0.7": {"certain_foreground": 0.8, "certain_background": 0.7},
    "certain from 0.6 and 0.5": {"certain_foreground": 0.6, "certain_background": 0.5},
    "supports' background 0.3": {"support_background": 0.3},
    "5 background clusters, 0.3": {"background_prototypes": 5, "support_background": 0.3},
    "3 foreground clusters": {"foreground_prototypes": 3},
    "dense background, 0.3": {"background_prototypes": 0, "support_background": 0.3},
    "dense matching": {"foreground_prototypes": 0, "background_prototypes": 0, "self_support": 0.0},
    "outlines by a dense CRF": {"refinement": "crf"},
}
"""What was tried: changes of the chosen setting."""


class KeptBackbone(nn.Module):
    """All maps that some variant asks for, computed once an image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone("efficientnet_lite2", taps=TAPS, stride=16, frozen=True)
        load_weights(self.backbone, WEIGHTS)
        self.kept: dict[str, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of one image by tap."""
        key = hashlib.sha256(images.contiguous().numpy()).hexdigest()
        if key not in self.kept:
            self.kept[key] = self.backbone(images)
        return self.kept[key]


def datasets(root: Path, half: int, episodes: int, size: int) -> list[EpisodeDataset]:
    """Episodes of the training and of the validation images."""
    found = []
    for split in ("train2017", "val2017"):
        source = open_data("coco", root, split=split, truth="few-shot")
        classes = [number for number, name in sorted(source.classes.items()) if name not in VOC_CLASSES][half::2]
        drawn = EpisodeList.draw(
            source, classes, episodes=episodes // 2, seed=SEED, min_area=LEAST_AREA, too_few="skip"
        )
        found.append(EpisodeDataset(source, drawn, (size, size), ignore_in_support="neither"))
    return found


@torch.inference_mode()
def score(model: PrototypeMatching, runs: list[EpisodeDataset]) -> dict[str, Any]:
    """MIoU over the classes that were drawn, and binary IoU, of all episodes together, at the size of the images."""
    protocol, episodes = PROTOCOLS["fssops"], len(runs[0])
    classes = sorted({spec.classes[0] for run in runs for spec in run.episodes})
    metric = FewShotIoU(1, len(runs) * episodes, classes, protocol)
    started = time.perf_counter()
    cache = FeatureCache(model.encode, memory=0)
    for number, run in enumerate(runs):
        for item in labelled_episodes([run], protocol, range(episodes)):
            metric.add(
                number * episodes + item.number, segment(model, cache, item.episode, item.truth.sizes), item.truth
            )
    summary = metric.scores().summary()
    return {
        **{name: round(100 * value, 2) for name, value in summary.items()},
        "classes": len(classes),
        "seconds": round(time.perf_counter() - started, 1),
    }


def time_of_one_picture() -> dict[str, float]:
    """Seconds of each step on a picture of 640 x 480 pixels, and peak resident memory."""
    import fssops

    started = time.perf_counter()
    predictor = fssops.load(device="cpu")
    assert isinstance(predictor, fssops.FewShotPredictor)
    loaded = time.perf_counter() - started
    generator = torch.Generator().manual_seed(0)
    support, query = torch.randint(0, 256, (2, 3, 480, 640), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(480, 640, dtype=torch.bool)
    mask[100:300, 200:400] = True
    supported = fastest(lambda: predictor.set_support(support, mask), 3)
    # A picture that was segmented before costs its matching alone, so each is another.
    pictures = iter([(query + shift) for shift in range(4)])
    segmented = fastest(lambda: predictor.segment(next(pictures)), 3)
    found = {"load_s": loaded, "set_support_s": supported, "segment_s": segmented, "peak_mb": peak_megabytes()}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "other", "time"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.what == "time":
        told = {"machine": machine(), **time_of_one_picture()}
        print(json.dumps(told))
        if options.results:
            options.results.write_text(json.dumps(told, indent=1) + "\n")
        return 0
    if options.data is None:
        parser.error("--data: give the folder of coco_mini")
    torch.set_num_threads(1)
    half = ("choose", "other").index(options.what)
    variants = VARIANTS if options.what == "choose" else dict(list(VARIANTS.items())[:4])
    backbone, rows, lists = KeptBackbone().eval(), [], {}
    for name, change in sorted(variants.items(), key=lambda pair: pair[1].get("size", CHOSEN["size"])):
        setting = {**CHOSEN, **change}
        size = setting.pop("size")
        if size not in lists:
            backbone.kept.clear()
            lists[size] = datasets(options.data, half, options.episodes, size)
        model = PrototypeMatching(PrototypeMatchingConfig(**setting)).eval()
        model.backbone = backbone
        rows.append({"variant": name, "size": size, "changed": change, **score(model, lists[size])})
        print(json.dumps(rows[-1]), flush=True)
        told = {
            "machine": machine(),
            "weights": WEIGHTS,
            "data": options.data.name,
            "episodes": options.episodes,
            "seed": SEED,
            "lists": [run.episodes.hash[:8] for run in next(iter(lists.values()))],
            "chosen": CHOSEN,
            "rows": rows,
        }
        if options.results:
            options.results.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
