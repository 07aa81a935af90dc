"""Masks as COCO's run lengths, and polygons drawn by COCO's rule; the one place that calls pycocotools' masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool mask [H, W]; ``counts`` is a str, as JSON needs it."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def compressed(counts: Sequence[int], width: int, height: int) -> str:
    """The compressed string of run lengths, column by column from a run outside on, that add up to the picture."""
    from pycocotools import mask as coco_mask

    packed = coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
    return str(packed["counts"].decode("ascii"))


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Undo :func:`encode`: bool [H, W]."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(dict(rle)), dtype=bool)


def area(rle: Mapping[str, Any]) -> int:
    """Pixels of a mask that :func:`encode` or :func:`encode_outline` made."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(dict(rle)))


def draw(outline: Any, width: int, height: int) -> np.ndarray:
    """Draw an outline that :func:`encode_outline` takes: bool [H, W], clipped to the image."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(encode_outline(outline, width, height)), dtype=bool)


def area_of_union(outlines: Sequence[Any], width: int, height: int) -> int:
    """Pixels that any of the outlines covers, counted without drawing them."""
    if all(isinstance(outline, np.ndarray) for outline in outlines):
        return int(np.logical_or.reduce(outlines).sum())
    return area(_union([encode_outline(outline, width, height) for outline in outlines]))


def encode_outline(outline: Any, width: int, height: int) -> Any:
    """Run lengths as pycocotools holds them.

    Args:
        outline: polygons ([n, 2], or x0, y0, x1, y1, ... in pixels) or run lengths that
            :func:`fssops.data.outlines.drawable` has given, or a bool mask [H, W].
        width: of the image.
        height: of the image.
    """
    from pycocotools import mask as coco_mask

    if isinstance(outline, np.ndarray):
        return coco_mask.encode(np.asfortranarray(outline, dtype=np.uint8))
    if isinstance(outline, list):
        flat = [p.reshape(-1).tolist() if isinstance(p, np.ndarray) else list(p) for p in outline]
        return _union(coco_mask.frPyObjects(flat, height, width))
    return {"size": [height, width], "counts": outline["counts"].encode()}


def _union(encoded: list[Any]) -> Any:
    from pycocotools import mask as coco_mask

    return encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded)
