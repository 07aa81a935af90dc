"""Reading pictures and masks: what is accepted, how it is converted, and how errors read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import images
from fssops.data.errors import DataWarning, ImageFileError, MaskError, MaskSizeError, MaskValueError

PIXELS = np.random.default_rng(3).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_format_is_decided_by_content_not_by_name(tmp_path: Path) -> None:
    file = save(tmp_path / "really_a_png.jpg", PIXELS, format="PNG")
    assert (np.asarray(images.read_image(file)) == PIXELS).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    loaded = images.read_image(file)
    assert loaded.mode == "RGB"
    assert loaded.size == (12, 8)
    expected = Image.fromarray(PIXELS).convert("L").convert("RGB") if mode in ("L", "LA") else None
    if expected is not None:
        assert (np.asarray(loaded) == np.asarray(expected)).all()


def test_alpha_is_dropped_and_hidden_colours_are_kept(tmp_path: Path) -> None:
    rgba = np.dstack([PIXELS, np.zeros((8, 12), dtype=np.uint8)])
    assert (np.asarray(images.read_image(save(tmp_path / "clear.png", rgba))) == PIXELS).all()


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(images.read_image(tmp_path / "p.png")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.asarray(images.read_image(tmp_path / "ramp.png"))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_floating_point_pictures_are_refused_since_their_range_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageFileError, match=r"f\.tif: image must hold integers of 8 or 16 bits, got floating-point"):
        images.read_image(tmp_path / "f.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_size_agrees(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / "turned.png", PIXELS, exif=exif)
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    loaded = images.read_image(file)
    assert (np.asarray(loaded) == turned).all()
    assert images.image_size(file) == loaded.size


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_is_an_error_that_names_it(tmp_path: Path, kind: str, kept: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(buffer, kind)
    file = tmp_path / "cut.img"
    file.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * kept)])
    with pytest.raises(ImageFileError, match=r"cut\.img: image must decode completely"):
        images.read_image(file)


def test_empty_missing_folder_and_foreign_files_each_get_their_own_message(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageFileError, match=r"empty\.jpg: image must not be empty, got a file of 0 bytes"):
        images.read_image(tmp_path / "empty.jpg")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: image must exist"):
        images.read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageFileError, match="must be a file, got a folder"):
        images.read_image(tmp_path)
    with pytest.raises(ImageFileError, match=r"text\.jpg: image must be one of JPEG, PNG.*got 13 bytes of something"):
        images.read_image(tmp_path / "text.jpg")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on what it skips
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_bytes_give_a_picture_or_an_image_error_and_nothing_else(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    whole = buffer.getvalue()
    rng = np.random.default_rng(5)
    file = tmp_path / "damaged"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        file.write_bytes(data)
        try:
            mode = images.read_image(file).mode
        except ImageFileError as error:
            mode = None
            refused += str(file) in str(error)
        assert mode in ("RGB", None)
    assert refused > 0


def _png_that_announces(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(_png_that_announces(side, side))
    with pytest.raises(ImageFileError, match=r"bomb\.png: image must have at most \d+ pixels"):
        images.read_image(file)


@pytest.mark.parametrize(("limit", "fits"), [(2 * 96, True), (2 * 96 - 1, False)])
def test_webp_may_have_half_as_many_pixels(tmp_path: Path, limit: int, fits: bool) -> None:
    file = tmp_path / "x.webp"
    Image.fromarray(PIXELS).save(file, lossless=True)
    if fits:
        assert images.read_image(file, max_pixels=limit).size == (12, 8)
        return
    with pytest.raises(
        ImageFileError, match=rf"x\.webp: image must have at most {limit // 2} pixels as WEBP, got 12 x 8"
    ):
        images.read_image(file, max_pixels=limit)


@pytest.mark.parametrize("error", [MemoryError, OverflowError])
def test_a_decoder_that_asks_for_too_much_is_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(_: object) -> None:
        raise error("4294967295 bytes")

    file = save(tmp_path / "x.png", PIXELS)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ImageFileError, match=r"x\.png: image must decode completely, got .* \(4294967295 bytes\)"):
        images.read_image(file)


def test_values_are_counted_without_a_wide_copy() -> None:
    values = np.array([[0, 7, 7], [255, 7, 0]], dtype=np.uint8)
    counts = images.value_counts(values)
    assert {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()} == {0: 2, 7: 3, 255: 1}


def test_larger_limit_can_be_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path / "x.png", PIXELS)
    with pytest.raises(ImageFileError, match="at most 95 pixels, got 12 x 8"):
        images.read_image(file, max_pixels=95)
    assert images.read_image(file, max_pixels=96).size == (12, 8)


def test_mask_palette_indices_are_class_ids_not_colours(tmp_path: Path) -> None:
    label = np.array([[0, 5, 255], [20, 20, 0]], dtype=np.uint8)
    image = Image.fromarray(label, mode="P")
    image.putpalette([7] * 768)
    image.save(tmp_path / "m.png")
    assert (images.read_mask(tmp_path / "m.png") == label).all()


def test_mask_of_bits_and_of_sixteen_bits_keep_their_numbers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    Image.fromarray(np.array([[3, 200]], dtype=np.uint16)).save(tmp_path / "wide.png")
    assert images.read_mask(tmp_path / "bits.png").tolist() == [[1, 0]]
    assert images.read_mask(tmp_path / "wide.png").tolist() == [[3, 200]]
    Image.fromarray(np.array([[3, 300]], dtype=np.uint16)).save(tmp_path / "wider.png")
    with pytest.raises(MaskError, match="must hold values from 0 to 255, got 3 to 300"):
        images.read_mask(tmp_path / "wider.png")


def test_grey_mask_stored_as_rgb_is_read_and_colours_are_refused(tmp_path: Path) -> None:
    grey = np.repeat(np.array([[0, 9], [9, 255]], dtype=np.uint8)[..., None], 3, axis=2)
    assert images.read_mask(save(tmp_path / "grey.png", grey)).tolist() == [[0, 9], [9, 255]]
    with pytest.raises(MaskError, match=r"one number a pixel .* got colours"):
        images.read_mask(save(tmp_path / "colours.png", PIXELS))


def test_lossy_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"m\.jpg: mask must be stored without loss \(PNG\), got JPEG"):
        images.read_mask(save(tmp_path / "m.jpg", PIXELS[..., 0]))


def test_mask_in_a_format_that_may_be_lossy_is_refused(tmp_path: Path) -> None:
    label = np.zeros((64, 64), dtype=np.uint8)
    label[10:40, 10:40] = 7
    Image.fromarray(label).convert("RGB").save(tmp_path / "m.webp", quality=20)  # comes back as 0 to 7
    Image.fromarray(label).save(tmp_path / "jpeg.tif", compression="jpeg")
    Image.fromarray(label).save(tmp_path / "plain.tif", compression="tiff_lzw")
    with pytest.raises(MaskError, match=r"m\.webp: mask must be stored without loss \(PNG\), got WEBP"):
        images.read_mask(tmp_path / "m.webp")
    for read in (images.read_mask, images.read_numbers):
        with pytest.raises(MaskError, match=r"jpeg\.tif: .* must be stored without loss \(PNG\), got TIFF \(jpeg\)"):
            read(tmp_path / "jpeg.tif")
        assert (read(tmp_path / "plain.tif") == label).all()


def test_mask_of_another_size_is_an_error_with_both_sizes(tmp_path: Path) -> None:
    file = save(tmp_path / "m.png", np.zeros((6, 8), dtype=np.uint8))
    with pytest.raises(MaskSizeError, match=r"m\.png.*its image, 12 x 8, got 8 x 6"):
        images.read_mask(file, size=(12, 8))


def test_mask_id_outside_the_class_list_is_an_error_or_ignored_on_request(tmp_path: Path) -> None:
    label = np.array([[0, 3, 37, 37], [10, 255, 11, 0]], dtype=np.uint8)
    file = save(tmp_path / "m.png", label)
    with pytest.raises(MaskValueError, match=r"m\.png.*class ids 0-10 and 255 .*got 11 \(1 px\), 37 \(2 px\)"):
        images.read_mask(file, allowed=range(11))
    with pytest.warns(DataWarning, match=r"37 \(2 px\); mapped to 255"):
        mapped = images.read_mask(file, allowed=range(11), unknown="ignore")
    assert mapped.tolist() == [[0, 3, 255, 255], [10, 255, 255, 0]]


def test_missing_mask_is_called_a_mask(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: mask must exist"):
        images.read_mask(tmp_path / "gone.png")
