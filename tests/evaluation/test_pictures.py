"""Label PNGs, overlays and grids."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from fssops.evaluation.episode_pictures import Shown, episode_grid
from fssops.evaluation.pictures import WAY_COLOURS, Tile, grid, label_image, outline, overlay
from fssops.structures import IGNORE, Episode


def test_label_png_holds_the_labels_and_shows_colours() -> None:
    labels = np.array([[0, 1, 2], [IGNORE, 1, 0]])
    buffer = io.BytesIO()
    label_image(labels).save(buffer, "PNG")
    again = Image.open(buffer)
    assert again.mode == "P"
    assert np.array_equal(np.asarray(again), labels)
    colours = np.asarray(again.convert("RGB"))
    assert tuple(colours[0, 0]) == (0, 0, 0)
    assert tuple(colours[0, 1]) == WAY_COLOURS[0]
    assert tuple(colours[0, 2]) == WAY_COLOURS[1]


def test_overlay_outlines_a_way_in_its_colour_and_tints_its_inside() -> None:
    image = np.full((7, 7, 3), 100, dtype=np.uint8)
    labels = np.zeros((7, 7), dtype=np.int64)
    labels[1:6, 1:6] = 2
    shown = overlay(image, labels, opacity=0.5)
    assert tuple(shown[1, 1]) == WAY_COLOURS[1]
    expected = [round(50 + value / 2) for value in WAY_COLOURS[1]]
    assert np.abs(shown[3, 3].astype(int) - expected).max() <= 1
    assert shown[0, 0].min() > 100  # outside is paled


def test_outline_marks_both_sides_of_an_edge() -> None:
    labels = np.array([[0, 0, 1, 1]])
    assert outline(labels).tolist() == [[False, True, True, False]]


def test_grid_has_room_for_every_tile() -> None:
    tile = Tile(np.zeros((10, 30, 3), dtype=np.uint8), "a very long caption that cannot fit into a tile")
    picture = grid([[tile, tile], [tile, tile]], ["a", "b"], "a title " * 20, side=64)
    assert picture.width == 2 * 18 + 2 * 64 + 10
    assert picture.height > 2 * (64 + 20)


def test_episode_grid_draws_supports_truth_and_prediction() -> None:
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[:, 4:12, 4:12] = 1
    episode = Episode(
        support_images=torch.zeros(1, 3, 3, 16, 16),
        support_foreground=label.expand(3, 16, 16)[None].float(),
        support_background=1 - label.expand(3, 16, 16)[None].float(),
        query_images=torch.zeros(1, 3, 16, 16),
        query_labels=label,
        classes=torch.tensor([4]),
        query_names=["q"],
    )
    shown = Shown(episode, [label[0].numpy()])
    plain = episode_grid([shown, shown], {4: "cup"}, "t")
    with_before = episode_grid([shown, shown], {4: "cup"}, "t", before=[shown, shown])
    assert with_before.width > plain.width
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 20
