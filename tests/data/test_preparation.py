"""How one image is made ready for a model: the same as in evaluation, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.layouts import open_data
from fssops.data.preparation import FewShotPreparation, UniversalPreparation
from fssops.structures import IGNORE

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.mark.parametrize("geometry", ["square", "square_by_corners", "letterbox"])
def test_an_image_is_prepared_as_queries_of_episodes_are(geometry: str) -> None:
    source = open_data("generated", truth="few-shot", size=48, images_per_class=3)
    episodes = EpisodeList.draw(source, [1, 5], episodes=3, shots=2)
    dataset, preparation = (
        EpisodeDataset(source, episodes, (41, 41), geometry=geometry),
        FewShotPreparation((41, 41), geometry),
    )
    for episode, spec in zip((dataset[i] for i in range(3)), episodes, strict=True):
        name, class_id = spec.query[0], spec.classes[0]
        scene = preparation(np.asarray(source.image(name)), {"label": source.label_map(name, [class_id])})
        assert torch.equal(preparation.tensor(scene), episode.query_images[0])
        ways = np.where(scene.maps["label"] == class_id, 1, scene.maps["label"])
        assert np.array_equal(ways, episode.query_labels[0].numpy())
        for shot, support in enumerate(spec.support[0]):
            scene = preparation(np.asarray(source.image(support)), {"label": source.label_map(support, [class_id])})
            assert torch.equal(preparation.tensor(scene), episode.support_images[0, shot])
            foreground = torch.from_numpy(scene.maps["label"] == class_id).float()
            assert torch.equal(foreground, episode.support_foreground[0, shot])


@pytest.mark.parametrize(("height", "width"), [(37, 53), (53, 37), (60, 60), (9, 60)])
def test_the_inner_size_is_what_the_picture_fills(height: int, width: int) -> None:
    label, image = np.ones((height, width), np.uint8), np.full((height, width, 3), 200, np.uint8)
    for geometry in ("square", "square_by_corners", "letterbox"):
        preparation = FewShotPreparation((65, 65), geometry)
        scene, (rows, columns) = preparation(image, {"label": label}), preparation.inner_size(height, width)
        filled = np.zeros((65, 65), dtype=bool)
        filled[:rows, :columns] = True
        assert np.array_equal(scene.maps["label"] == 1, filled)
        assert np.array_equal(scene.maps["label"] == IGNORE, ~filled)
        assert (scene.image[~filled] == 0).all()
        assert (geometry == "letterbox") or (rows, columns) == (65, 65)
    assert FewShotPreparation((40, 65)).inner_size(height, width) == (40, 65)


def test_logits_of_a_square_geometry_come_back_at_the_size_of_the_picture() -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 9, 9)).astype(np.float32))
    preparation = FewShotPreparation((9, 9))
    restored = preparation.restore(logits, (17, 12))
    assert restored.shape == (2, 17, 12)
    again = preparation.restore(torch.full((2, 9, 9), 3.0), (17, 12))
    assert torch.allclose(again, torch.full((2, 17, 12), 3.0))
    assert torch.equal(preparation.restore(restored, (17, 12)), restored), "what fits is left as it is"


@pytest.mark.parametrize("size", [(12, 20), (20, 12), (33, 71)])
def test_logits_of_a_letterbox_come_back_where_the_picture_was(size: tuple[int, int]) -> None:
    preparation = FewShotPreparation((48, 48), "letterbox")
    rows, columns = preparation.inner_size(*size)
    inside = torch.zeros(1, 48, 48)
    inside[:, : rows // 2, : columns // 2] = 1  # the upper left quarter of what the picture fills
    restored = preparation.restore(inside, size)[0] > 0.5
    height, width = size
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[: height // 2, : width // 2] = True
    assert restored.shape == size
    assert (restored != wanted).float().mean() < 0.08


def test_options_that_cannot_be_built_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="geometry must be one of square, square_by_corners, letterbox, got 'pad'"):
        FewShotPreparation((9, 9), "pad")
    with pytest.raises(ValueError, match=r"size must be square, got \(8, 9\)"):
        FewShotPreparation((8, 9), "letterbox")


def test_universal_images_keep_their_aspect_and_remember_their_size() -> None:
    item = UniversalPreparation(20, 25)(IMAGE, "a")
    assert (item.name, item.output_size, item.target) == ("a", (37, 53), None)
    expected = Image.fromarray(IMAGE).resize((25, 17), Image.Resampling.BILINEAR)
    assert np.array_equal(item.image.permute(1, 2, 0).numpy(), np.asarray(expected))
    own = UniversalPreparation()(IMAGE)
    assert np.array_equal(own.image.permute(1, 2, 0).numpy(), IMAGE)
