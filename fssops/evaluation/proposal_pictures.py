"""Proposals as pictures: the query, its truth, some proposals with their scores, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fssops.evaluation.pictures import WAY_COLOURS, Tile, grid, overlay
from fssops.normalisation import denormalise
from fssops.structures import Episode


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


def tinted(image: np.ndarray, values: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """An image [H, W, 3] paled, and coloured by values [H, W]; values beyond 0 and 1 count as these."""
    share = 0.8 * values.clip(0.0, 1.0)[..., None]
    pale = 0.45 * image.astype(np.float32) + 0.55 * 255.0
    mixed: np.ndarray = ((1 - share) * pale + share * np.array(colour, dtype=np.float32)).round().astype(np.uint8)
    return mixed


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
            image = denormalise(episode.support_images[0, 0])
            row.append(Tile(overlay(image, (episode.support_foreground[0, 0].numpy() > 0.5).astype(np.int64)), name))
        row.append(Tile(overlay(query, episode.query_labels[0].numpy()), name if not support else ""))
        row += [
            Tile(tinted(query, mask, WAY_COLOURS[1]), caption)
            for mask, caption in zip(entry.masks, entry.captions, strict=True)
        ]
        row.append(Tile(tinted(query, entry.merge, WAY_COLOURS[0]), entry.merge_caption))
        rows.append(row)
    return grid(rows, headings, title)
