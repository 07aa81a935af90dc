"""Reading pictures and masks from disk: once, carefully, and with errors that name the file.

Everything that opens a picture for training or prediction goes through :func:`read_image`, every mask through
:func:`read_mask`. The format is decided by content, never by the file's name.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from fssops.data.errors import DataWarning, ImageFileError, ImageSizeError, MaskError, MaskSizeError, MaskValueError
from fssops.labels import IGNORE

MAX_PIXELS = 1 << 26
"""Pictures of more pixels than this (67 million) are refused before they are decoded: a few kilobytes of PNG can
announce gigabytes. Of WebP half as many, since its decoder takes 16 bytes a pixel."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are tried; others of Pillow's decoders (EPS, WMF, ...) start programs or are no photographs."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Which files of a folder are taken for pictures; their content still decides how they are read."""

Image.init()
_REGISTERED = [name for name in FORMATS if name in Image.OPEN]
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError),
    *(MemoryError, OverflowError),  # of lengths that a damaged header states
)
_LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "PPM")


@dataclass(frozen=True)
class EncodedPicture:
    """A picture that lies in another file.

    Attributes:
        name: what errors call it.
        content: its bytes, as a file of its own would have them.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Picture = str | os.PathLike[str] | EncodedPicture


def _file(picture: Picture) -> Path | EncodedPicture:
    return picture if isinstance(picture, EncodedPicture) else Path(picture)


def _open(path: Picture, max_pixels: int, what: str = "image") -> Image.Image:
    """Open a picture and check what its header says; nothing is decoded yet."""
    file = _file(path)
    size = len(file.content) if isinstance(file, EncodedPicture) else _size(file, what)
    if size == 0:
        raise ImageFileError(f"{file}: {what} must not be empty, got a file of 0 bytes")
    try:
        opened = io.BytesIO(file.content) if isinstance(file, EncodedPicture) else file
        image = Image.open(opened, formats=_REGISTERED)
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{file}: {what} must have at most {max_pixels} pixels, got more ({error})") from error
    except PermissionError as error:
        raise ImageFileError(f"{file}: {what} must be readable, got {error.strerror}") from error
    except _DECODE_ERRORS as error:
        raise ImageFileError(
            f"{file}: {what} must be one of {', '.join(FORMATS)}, got {size} bytes of something else ({error})"
        ) from error
    width, height = image.size
    limit = max_pixels // 2 if image.format == "WEBP" else max_pixels
    if width * height > limit:
        kind = f" as {image.format}" if limit < max_pixels else ""
        image.close()
        raise ImageFileError(f"{file}: {what} must have at most {limit} pixels{kind}, got {width} x {height}")
    return image


def _size(file: Path, what: str) -> int:
    """Bytes of a file."""
    if file.is_dir():
        raise ImageFileError(f"{file}: {what} must be a file, got a folder")
    try:
        return file.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: {what} must exist, got no such file") from None
    except OSError as error:
        raise ImageFileError(f"{file}: {what} must be readable, got {error.strerror or error}") from error


def _decode(image: Image.Image, file: Path | EncodedPicture, what: str = "image") -> Image.Image:
    """Decode fully and turn upright; a file that ends early is an error, never a half-grey picture."""
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise ImageFileError(
            f"{file}: {what} must decode completely, got a broken or truncated file ({error})"
        ) from error
    return upright(image, str(file))


def upright(image: Image.Image, name: str) -> Image.Image:
    """Turn a picture as its EXIF orientation says; one that has none, or was turned, is returned as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS as error:
        warnings.warn(f"{name}: EXIF data cannot be read ({error}); orientation taken as upright", DataWarning, 3)
        return image


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Convert a decoded picture to 8-bit RGB.

    Palettes are expanded, grey is repeated, alpha is dropped (the colours stored under transparent pixels are
    kept), CMYK is converted with Adobe's inversion handled by the decoder, 16-bit grey is scaled by 1 / 257.

    Args:
        image: a Pillow image of any mode.
        name: what errors call it.

    Raises:
        ImageFileError: floating-point pictures, or integers outside 16 bits: their range is not defined.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ImageFileError(f"{name}: image must hold integers of 8 or 16 bits, got floating-point pixels (mode F)")
    if image.mode == "I" or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageFileError(
                f"{name}: image must hold integers of 8 or 16 bits, got values {values.min()} to {values.max()}"
            )
        grey = ((values + 128) // 257).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        # Straight to RGB would be right as well, but Pillow warns about byte transparency; RGBA keeps it quiet.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def read_image(path: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as upright 8-bit RGB.

    Args:
        path: the file; its format is decided by content.
        max_pixels: larger pictures are refused.

    Returns:
        A Pillow image of mode RGB, EXIF orientation applied; of files with several frames the first.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFileError: empty, truncated, too large, of an unknown format or an undefined value range.
    """
    file = _file(path)
    with _open(file, max_pixels) as image:
        return to_rgb(_decode(image, file), str(file))


def read_sized(path: Path, size: tuple[int, int] | None) -> Image.Image:
    """Read a picture whose (width, height) annotations give; None where they do not.

    Raises:
        ImageSizeError: it has another size; says so where the annotations are of the picture before its EXIF
            orientation turns it.
    """
    picture = read_image(path)
    if size is not None and picture.size != size:
        orientation = exif_orientation(path)
        turned = f" (EXIF orientation {orientation} turns it; annotations must be of the upright picture)"
        raise ImageSizeError(
            f"{path}: image must have the size its annotations are made for, {size[0]} x {size[1]}, "
            f"got {picture.width} x {picture.height}{turned if orientation > 4 and picture.size == size[::-1] else ''}"
        )
    return picture


def exif_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of a picture, 1 (upright) to 8, from the header alone."""
    with _open(path, MAX_PIXELS) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        stated = image.getexif().get(0x0112, 1)
    except _DECODE_ERRORS:
        return 1
    return stated if stated in range(1, 9) else 1


def image_size(path: Picture) -> tuple[int, int]:
    """Width and height of a picture as :func:`read_image` would return it, from the header alone."""
    with _open(path, MAX_PIXELS) as image:
        width, height = image.size
        return (height, width) if _orientation(image) > 4 else (width, height)


def read_mask(
    path: Picture,
    *,
    size: tuple[int, int] | None = None,
    allowed: Collection[int] | None = None,
    unknown: Literal["error", "ignore"] = "error",
) -> np.ndarray:
    """Read a mask of class or instance numbers as stored: palette indices, grey values or bits.

    Args:
        path: a PNG, BMP, TIFF, GIF or PPM; formats that may be lossy are refused, since their values need not be what
            was written.
        size: (width, height) that the mask must have, usually its image's.
        allowed: the values it may hold besides 255; None allows 0..255.
        unknown: what to do with values outside ``allowed``: ``error``, or ``ignore`` to map them to 255 with a warning.

    Returns:
        uint8 [H, W].

    Raises:
        FileNotFoundError: there is no such file.
        ImageFileError: the file cannot be decoded.
        MaskError: a lossy or colour picture; its kinds :class:`MaskSizeError` (another size than asked) and
            :class:`MaskValueError` (values outside the class list).
    """
    file = _file(path)
    with _open(file, MAX_PIXELS, "mask") as image:
        _check_lossless(image, file, "mask")
        values = _mask_values(_decode(image, file, "mask"), file)
    check_size(values, size, file)
    if allowed is None:
        return values
    counts = value_counts(values)
    listed = np.zeros(256, dtype=bool)
    listed[[value for value in (*allowed, IGNORE) if 0 <= value < 256]] = True
    bad = np.flatnonzero((counts > 0) & ~listed)
    if not len(bad):
        return values
    got = ", ".join(f"{value} ({counts[value]} px)" for value in bad[:8]) + (", ..." if len(bad) > 8 else "")
    fault = f"{file}: mask must hold only class ids {_ranges(allowed)} and {IGNORE} (ignored), got {got}"
    if unknown == "error":
        raise MaskValueError(fault)
    warnings.warn(f"{fault}; mapped to {IGNORE}", DataWarning, 2)
    return np.where(listed[values], values, np.uint8(IGNORE))


def value_counts(values: np.ndarray) -> np.ndarray:
    """How often each number occurs: uint8 [H, W] -> [256]; numpy would count a copy of eight times the size."""
    return np.array(Image.fromarray(values).histogram())


def pixel_hash(picture: Image.Image) -> str:
    """A hash of a picture's size and pixels, by which copies are told whatever their files."""
    digest = hashlib.sha256(f"{picture.size}".encode())
    for top in range(0, picture.height, 256):  # the bytes of a large picture at once take another 200 MB
        digest.update(picture.crop((0, top, picture.width, min(top + 256, picture.height))).tobytes())
    return digest.hexdigest()


def palette_of(picture: str | os.PathLike[str] | Image.Image) -> np.ndarray | None:
    """The colours [n, 3] uint8 of a picture with a palette, None of any other; of a file, from the header alone."""
    if not isinstance(picture, Image.Image):
        with _open(picture, MAX_PIXELS, "mask") as opened:
            return palette_of(opened)
    if picture.mode != "P":
        return None
    return np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)


def check_size(
    values: np.ndarray, size: tuple[int, int] | None, file: Path | EncodedPicture, what: str = "mask"
) -> None:
    """Compare what was read [H, W, ...] with the (width, height) of its image, where that is given.

    Raises:
        MaskSizeError: they differ.
    """
    height, width = values.shape[:2]
    if size is not None and (width, height) != tuple(size):
        raise MaskSizeError(
            f"{file}: {what} must have the size of its image, {size[0]} x {size[1]}, got {width} x {height}"
        )


def read_grey(path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a picture as brightness, uint8 [H, W]; for masks that were stored as smoothed or coloured pictures."""
    file = Path(path)
    with _open(file, MAX_PIXELS, "mask") as image:
        decoded = _decode(image, file, "mask")
        # Bits and grey values without a detour, which would take a gigabyte for a large picture.
        grey = np.array((decoded if decoded.mode in ("1", "L") else to_rgb(decoded, str(file))).convert("L"))
    check_size(grey, size, file)
    return grey


def read_numbers(path: str | os.PathLike[str], what: str = "map") -> np.ndarray:
    """Read a picture of numbers as stored: panoptic maps (RGB) and instance maps of 16 bits.

    Args:
        path: a lossless picture.
        what: what errors call it.

    Returns:
        int32 [H, W], or uint8 [H, W, 3] of an RGB picture.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFileError: the file cannot be decoded.
        MaskError: a lossy or floating-point picture.
    """
    file = Path(path)
    with _open(file, MAX_PIXELS, what) as image:
        _check_lossless(image, file, what)
        decoded = _decode(image, file, what)
        if decoded.mode in ("RGB", "RGBA"):
            return np.array(decoded)[..., :3]
        if decoded.mode in ("P", "L", "1", "I") or decoded.mode.startswith("I;"):
            return np.array(decoded).astype(np.int32)
    raise MaskError(f"{file}: {what} must hold whole numbers or RGB, got mode {decoded.mode}")


def _check_lossless(image: Image.Image, file: Path | EncodedPicture, what: str) -> None:
    # A WebP does not say whether it is lossless, and a TIFF may hold JPEG data.
    inside = image.info.get("compression", "")
    if image.format not in _LOSSLESS or inside in ("jpeg", "tiff_jpeg", "webp"):
        got = f"{image.format} ({inside})" if inside and image.format == "TIFF" else image.format
        raise MaskError(f"{file}: {what} must be stored without loss (PNG), got {got}")


def _mask_values(image: Image.Image, file: Path | EncodedPicture) -> np.ndarray:
    if image.mode in ("P", "L", "1"):
        return np.array(image, dtype=np.uint8)
    if image.mode == "I" or image.mode.startswith("I;"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 255):
            raise MaskError(f"{file}: mask must hold values from 0 to 255, got {wide.min()} to {wide.max()}")
        return wide.astype(np.uint8)
    if image.mode == "LA":
        return np.array(image.getchannel("L"))
    if image.mode in ("RGB", "RGBA"):
        channels = np.array(image)[..., :3]
        if (channels == channels[..., :1]).all():
            return np.ascontiguousarray(channels[..., 0])
        raise MaskError(
            f"{file}: mask must hold one number a pixel (grey or palette), got colours (mode {image.mode}); "
            "colours of classes are read by the layout colour_labels"
        )
    raise MaskError(f"{file}: mask must hold one number a pixel (grey or palette), got mode {image.mode}")


def _ranges(values: Collection[int]) -> str:
    """Write numbers briefly: 0-20 or 1, 4, 9-12."""
    parts: list[list[int]] = []
    for value in sorted(set(values)):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
