"""Episodes as pictures: supports, query, truth and prediction side by side, or proposals and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fssops.evaluation.pixel_counts import count_foreground, iou
from fssops.normalisation import denormalise
from fssops.pictures import Tile, grid, overlay_ways, tinted, way_colour
from fssops.structures import Episode


@dataclass(frozen=True)
class Shown:
    """An episode and the label map predicted for each of its queries, at the size of its images."""

    episode: Episode
    predictions: list[np.ndarray]


def episode_grid(
    shown: Sequence[Shown], classes: Mapping[int, str], title: str, before: Sequence[Shown] | None = None
) -> Image.Image:
    """Draw one row an episode.

    Args:
        shown: the episodes; of each the first query is drawn, and at most two supports.
        classes: class id -> name.
        title: above the grid.
        before: the same episodes as segmented by another model (the untrained one), or None.
    """
    ways, shots = shown[0].episode.support_images.shape[:2]
    slots = [(way, 0) for way in range(min(ways, 3))] if ways > 1 else [(0, shot) for shot in range(min(shots, 2))]
    headings = [f"support {number + 1}" if len(slots) > 1 else "support" for number in range(len(slots))]
    headings += ["query", "truth", "prediction"] + (["before training"] if before is not None else [])
    rows = []
    for number, entry in enumerate(shown):
        episode = entry.episode
        rows.append([_support(episode, way, shot, classes) for way, shot in slots])
        query = denormalise(episode.query_images[0])
        truth = episode.query_labels[0].numpy()
        rows[-1] += [Tile(query, episode.query_names[0]), Tile(overlay_ways(query, truth))]
        rows[-1].append(_prediction(query, entry.predictions[0], episode))
        if before is not None:
            rows[-1].append(_prediction(query, before[number].predictions[0], episode))
    return grid(rows, headings, title)


def _support(episode: Episode, way: int, shot: int, classes: Mapping[int, str]) -> Tile:
    image = denormalise(episode.support_images[way, shot])
    labels = (episode.support_foreground[way, shot].numpy() > 0.5).astype(np.int64) * (way + 1)
    class_id = int(episode.classes[way])
    return Tile(overlay_ways(image, labels), classes.get(class_id, f"class {class_id}"))


def _prediction(query: np.ndarray, prediction: np.ndarray, episode: Episode) -> Tile:
    counts = count_foreground(torch.from_numpy(prediction), episode.query_labels[0])
    return Tile(overlay_ways(query, prediction), f"IoU {100 * float(iou(counts)[1]):.0f} %")


@dataclass(frozen=True)
class ShownProposals:
    """A 1-way episode and what was found for its first query.

    Attributes:
        episode: on the CPU.
        masks: [k, H, W] probabilities of the proposals to show.
        captions: one each.
        merge: [H, W], near [0, 1]: the merge of all proposals.
        merge_caption: below it.
    """

    episode: Episode
    masks: np.ndarray
    captions: Sequence[str]
    merge: np.ndarray
    merge_caption: str


def proposal_grid(
    shown: Sequence[ShownProposals], classes: Mapping[int, str], title: str, *, support: bool, order: str
) -> Image.Image:
    """Draw one row an episode.

    Args:
        shown: the episodes.
        classes: class id -> name.
        title: above the grid.
        support: whether to show the first support as well.
        order: what the proposals are ordered by, for the headings.
    """
    count = len(shown[0].captions)
    headings = ["support"] * support + ["query, truth"] + [f"{order} {n + 1}" for n in range(count)] + ["merge"]
    rows = []
    for entry in shown:
        episode = entry.episode
        name = classes.get(int(episode.classes[0]), f"class {int(episode.classes[0])}")
        query, row = denormalise(episode.query_images[0]), []
        if support:
            row.append(_support(episode, 0, 0, classes))
        row.append(Tile(overlay_ways(query, episode.query_labels[0].numpy()), name if not support else ""))
        row += [
            Tile(tinted(query, mask, way_colour(1)), caption)
            for mask, caption in zip(entry.masks, entry.captions, strict=True)
        ]
        row.append(Tile(tinted(query, entry.merge, way_colour(0)), entry.merge_caption))
        rows.append(row)
    return grid(rows, headings, title)
