"""FewShotPredictor: forms of input, annotation, sizes, and errors that say what to mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fssops
from fssops.normalisation import MEAN, STD
from fssops.predictor import FewShotPredictor
from fssops.segmentations import FewShotSegmentation


class ColourModel(nn.Module):
    """A stand-in for a network: features are the image's own colours, so that results can be foreseen."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.encoded: list[torch.Size] = []

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        self.encoded.append(images.shape)
        colours = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        return {"colours": colours}

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Tensor:
        self.foreground, self.background = foreground, background
        images = features["colours"].view(*foreground.shape[:3], 3, *foreground.shape[3:])

        def mean(mask: Tensor) -> Tensor:
            weights = mask[:, :, :, None]
            return (images * weights).sum((2, 4, 5)) / weights.sum((2, 4, 5)).clamp(min=1e-6)

        return torch.cat([mean(background).mean(1, keepdim=True), mean(foreground)], dim=1)

    def match(self, support: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        distance = (features["colours"][:, None] - support[0][None, :, :, None, None]).abs().sum(2)
        logits = nn.functional.interpolate(-20 * distance, size=size, mode="nearest")
        return logits[None]

    def forward(self, batch: Any) -> Tensor:
        raise AssertionError("the predictor uses the steps")

    def losses(self, batch: Any) -> dict[str, Tensor]:
        return {}


RED, GREEN, GREY = (220, 20, 20), (20, 200, 20), (128, 128, 128)


def scene(colour: tuple[int, int, int], width: int = 40, height: int = 24, left: int = 8) -> tuple[Any, Any]:
    """A grey image with a coloured rectangle 12 x 10, and its mask."""
    image = np.full((height, width, 3), GREY, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    image[6:16, left : left + 12] = colour
    mask[6:16, left : left + 12] = 1
    return image, mask


def overlap(result: FewShotSegmentation, mask: np.ndarray, label: int = 1) -> float:
    found = result.label_map == label
    return float((found & (mask > 0)).sum() / (found | (mask > 0)).sum())


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_an_object_of_the_supports_colour_is_found_at_the_images_own_size(fit: str) -> None:
    predictor = FewShotPredictor(ColourModel(), size=48, fit=fit)  # type: ignore[arg-type]
    image, mask = scene(RED)
    predictor.set_support([image], [mask])
    query, truth = scene(RED, width=71, height=33, left=30)
    result = predictor.segment(query)
    assert result.label_map.shape == (33, 71)
    assert result.label_map.dtype == np.uint8
    assert result.probabilities.shape == (2, 33, 71)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(result.label_map, result.probabilities.argmax(0))
    assert result.classes == ("background", "object")
    assert set(result.seconds) == {"read", "encode", "match"}
    assert overlap(result, truth) > 0.8


def test_several_classes_have_labels_in_the_order_they_were_given() -> None:
    predictor = FewShotPredictor(ColourModel(), size=48)
    (red, red_mask), (green, green_mask) = scene(RED), scene(GREEN, left=20)
    predictor.set_support(
        {"tomato": [red, red], "leaf": [green, green]}, {"tomato": [red_mask] * 2, "leaf": [green_mask] * 2}
    )
    query, truth = scene(GREEN)
    query[6:16, 26:38] = RED
    result = predictor.segment(query)
    assert result.classes == ("background", "tomato", "leaf")
    assert overlap(result, truth, label=2) > 0.8
    assert (result.label_map[8:14, 28:36] == 1).all()


def test_every_form_of_image_and_mask_gives_the_same_result(tmp_path: Path) -> None:
    image, mask = scene(RED)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    forms = [
        (tmp_path / "image.png", tmp_path / "mask.png"),
        (str(tmp_path / "image.png"), Image.fromarray(mask)),
        (Image.fromarray(image), mask.astype(bool)),
        (tensor, torch.from_numpy(mask)),
        (tensor.float() / 255, torch.from_numpy(mask * 7)),
    ]
    results = []
    for picture, annotation in forms:
        predictor = FewShotPredictor(ColourModel(), size=48)
        predictor.set_support([picture], [annotation])
        results.append(predictor.segment(picture))
    for result in results[1:]:
        np.testing.assert_allclose(result.probabilities, results[0].probabilities, atol=1e-5)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_opened_photo_is_turned_upright_as_its_file_is(tmp_path: Path, orientation: int) -> None:
    image, mask = scene(RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    results = []
    for opened in (str, Image.open):
        predictor = FewShotPredictor(ColourModel(), size=48)
        predictor.set_support([opened(tmp_path / "photo.png")], [opened(tmp_path / "mask.png")])
        results.append(predictor.segment(opened(tmp_path / "photo.png")))
    assert np.array_equal(results[0].label_map, results[1].label_map)
    assert results[1].label_map.shape == (mask.shape if orientation == 3 else mask.T.shape)


def test_a_model_that_was_built_in_inference_mode_segments() -> None:
    image, mask = scene(RED)
    with torch.inference_mode():
        predictor = FewShotPredictor(ColourModel(), size=48)
    predictor.set_support([image], [mask])
    assert overlap(predictor.segment(image), mask) > 0.9


def test_a_list_of_images_gives_a_list_and_the_support_is_encoded_once() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=48)
    image, mask = scene(RED)
    predictor.set_support(image, mask)  # a single pair needs no list
    results = predictor.segment([image, image[:20], image])
    assert [r.label_map.shape for r in results] == [(24, 40), (20, 40), (24, 40)]
    assert len(model.encoded) == 3  # the support, and each different image once


def test_box_inside_is_foreground_and_outside_background() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=(24, 40))
    image, _ = scene(RED)
    predictor.set_support([image], boxes=[(8, 6, 20, 16)])
    expected = torch.zeros(24, 40)
    expected[6:16, 8:20] = 1
    assert torch.equal(model.foreground[0, 0, 0], expected)
    assert torch.equal(model.background[0, 0, 0], 1 - expected)
    predictor.set_support([image], boxes=[[(8, 6, 20, 16), (30, 2, 31, 4)]])
    assert model.foreground.sum() == 120 + 2


def test_scribbles_follow_panets_values() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=(24, 40))
    image, mask = scene(RED)
    strokes = np.full((24, 40), 255, np.uint8)
    strokes[10, 10:18] = 3
    strokes[20, 5:30] = 0
    predictor.set_support([image], scribbles=[strokes])
    assert model.foreground.sum() == 8
    assert model.background.sum() == 25
    assert overlap(predictor.segment(image), mask) > 0.8


def test_value_255_means_neither_beside_other_values_and_foreground_alone() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=(24, 40))
    image, mask = scene(RED)
    predictor.set_support([image], [mask * 255])
    assert model.foreground.sum() == 120
    edged = mask.copy()
    edged[5, :] = 255
    predictor.set_support([image], [edged])
    assert model.foreground.sum() == 120
    assert model.background.sum() == 24 * 40 - 120 - 40


def test_padding_belongs_to_neither_side() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=(40, 40), fit="pad")
    image, mask = scene(RED)
    predictor.set_support([image], [mask])
    assert model.foreground[..., 24:, :].sum() == 0
    assert model.background[..., 24:, :].sum() == 0
    assert model.background[..., :24, :].sum() == 24 * 40 - 120


def test_classes_with_different_numbers_of_images_weigh_each_image_of_a_class_the_same() -> None:
    model = ColourModel()
    predictor = FewShotPredictor(model, size=48)
    (red, mask), (green, other) = scene(RED), scene(GREEN)
    dark = (red // 2).astype(np.uint8)
    predictor.set_support({"a": [red, dark], "b": [green]}, {"a": [mask, mask], "b": [other]})
    uneven = predictor.segment(red)
    assert model.encoded[0][0] == 3  # no image is encoded twice
    assert model.foreground.shape[1:3] == (2, 2)
    predictor.set_support({"a": [red, dark], "b": [green] * 2}, {"a": [mask, mask], "b": [other] * 2})
    np.testing.assert_array_equal(uneven.probabilities, predictor.segment(red).probabilities)
    predictor.set_support({"a": [red, dark] * 3, "b": [green] * 6}, {"a": [mask] * 6, "b": [other] * 6})
    expected = predictor.segment(red).probabilities
    predictor.set_support({"a": [red, dark], "b": [green] * 3}, {"a": [mask, mask], "b": [other] * 3})
    np.testing.assert_allclose(predictor.segment(red).probabilities, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"at most 64, got \{'a': 9, 'b': 8\}; leave some out"):
        predictor.set_support({"a": [red] * 9, "b": [green] * 8}, {"a": [mask] * 9, "b": [other] * 8})


def call(name: str, **changes: Any) -> Any:
    """Support and segmentation with something wrong in it."""
    image, mask = scene(RED)
    predictor = FewShotPredictor(ColourModel(), size=48)
    support = {"images": [image], "masks": [mask]} | changes.pop("support", {})
    predictor.set_support(**support)
    return predictor.segment(changes.get("query", image))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"support": {"masks": [np.zeros((24, 40), np.uint8)]}}, ValueError, "must have foreground, got none"),
        ({"support": {"masks": [np.ones((10, 40), np.uint8)]}}, ValueError, "is 40 x 24, and its mask .* got 40 x 10"),
        ({"support": {"masks": [np.ones((24, 40, 3), np.uint8)]}}, ValueError, r"must have a mask \[H, W\]"),
        ({"support": {"masks": []}}, ValueError, "must have one of masks an image, got 0 for 1"),
        ({"support": {"images": [], "masks": []}}, ValueError, "every class must have at least 1 image"),
        ({"support": {"masks": None}}, ValueError, "exactly one of masks, boxes, scribbles, got none"),
        ({"support": {"boxes": [(0, 0, 2, 2)]}}, ValueError, r"exactly one of .* got \['masks', 'boxes'\]"),
        ({"support": {"masks": None, "boxes": [(8, 6, 50, 16)]}}, ValueError, "boxes with 0 <= x0 < x1 <= 40"),
        ({"support": {"masks": None, "boxes": [(8, 6, 8, 16)]}}, ValueError, "boxes with 0 <= x0 < x1 <= 40"),
        ({"support": {"masks": None, "boxes": [(1, 2, 3)]}}, ValueError, r"boxes \(x0, y0, x1, y1\)"),
        (
            {"support": {"masks": None, "scribbles": [np.full((24, 40), 255, np.uint8)]}},
            ValueError,
            "must have a stroke on the class, a value from 1 to 254, got only background strokes",
        ),
        ({"support": {"images": {"a": [scene(RED)[0]]}}}, ValueError, "must name the same classes"),
        ({"query": np.zeros((3, 40, 3), np.uint8)}, ValueError, "at least 4 pixels a side .* got 40 x 3"),
        ({"query": torch.randn(3, 20, 20)}, ValueError, r"floats in \[0, 1\] \(not normalised\)"),
        ({"query": torch.full((3, 20, 20), float("nan"))}, ValueError, r"floats in \[0, 1\]"),
        ({"query": torch.zeros(3, 20, 20, dtype=torch.int64)}, ValueError, "tensor of uint8 or of floats"),
        (
            {"support": {"images": {"background": [scene(RED)[0]]}, "masks": {"background": [scene(RED)[1]]}}},
            ValueError,
            "none called background",
        ),
        ({"query": torch.zeros(1, 20, 20)}, ValueError, r"tensor \[3, H, W\]"),
        ({"query": np.zeros((20, 20, 3))}, ValueError, "must be a uint8 array"),
        ({"query": 7}, TypeError, "must be a path, Pillow image, array or tensor, got int"),
        ({"query": "missing.jpg"}, FileNotFoundError, "missing.jpg"),
    ],
    ids=lambda value: None,
)
def test_wrong_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call("wrong", **changes)


def test_a_single_box_of_numpys_numbers_is_one_box() -> None:
    predictor = FewShotPredictor(ColourModel(), size=48)
    predictor.set_support(scene(RED)[0], boxes=list(np.array([8, 6, 20, 16])))
    assert predictor.classes == ("background", "object")


def test_an_object_that_vanishes_at_the_models_size_is_an_error() -> None:
    image, mask = np.zeros((480, 480, 3), np.uint8), np.zeros((480, 480), np.uint8)
    mask[3, 4] = 1
    with pytest.raises(ValueError, match="survives resizing to 48 x 48, got 1 pixels of 480 x 480"):
        FewShotPredictor(ColourModel(), size=48).set_support([image], [mask])


def test_segmenting_before_a_support_set_and_bad_options_are_errors() -> None:
    with pytest.raises(RuntimeError, match="call set_support first"):
        FewShotPredictor(ColourModel(), size=48).segment(scene(RED)[0])
    with pytest.raises(ValueError, match="size must be at least the stride 4"):
        FewShotPredictor(ColourModel(), size=3)
    with pytest.raises(ValueError, match="fit must be one of stretch, stretch_by_corners, pad"):
        FewShotPredictor(ColourModel(), fit="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be"):
        FewShotPredictor(ColourModel(), precision="int8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a few-shot model, got Linear"):
        FewShotPredictor(nn.Linear(2, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_panet_segments_with_a_weight_file(tmp_path: Path, precision: str) -> None:
    from fssops.weights import save_weights

    save_weights(fssops.create_model("panet", backbone_width=4), tmp_path / "w.safetensors")
    model = fssops.create_model("panet", backbone_width=4).train()
    fssops.load_weights(model, tmp_path / "w.safetensors")
    predictor = fssops.FewShotPredictor(model, size=65, precision=precision)  # type: ignore[arg-type]
    assert not model.training
    image, mask = scene(RED)
    predictor.set_support({"a": [image, image], "b": [image, image]}, {"a": [mask, mask], "b": [mask, 1 - mask]})
    result = predictor.segment(image)
    assert result.probabilities.dtype == np.float32
    assert result.probabilities.shape == (3, 24, 40)


def test_outputs_that_are_no_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = FewShotPredictor(ColourModel(), size=48)
    image, mask = scene(RED)
    predictor.set_support([image], [mask])
    monkeypatch.setattr(predictor.model, "match", lambda *_: torch.full((1, 1, 2, 40, 40), float("nan")))
    with pytest.raises(ValueError, match="outputs must be numbers, got NaN"):
        predictor.segment(image)
