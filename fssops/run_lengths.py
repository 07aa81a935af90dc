"""Masks as COCO's run lengths, and polygons drawn by COCO's rule; the one place that calls pycocotools' masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a bool mask [H, W]; ``counts`` is a str, as JSON needs it."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Undo :func:`encode`: bool [H, W]."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(dict(rle)), dtype=bool)


def draw(segmentation: Any, width: int, height: int) -> np.ndarray:
    """Draw polygons or RLE that :func:`fssops.data.coco_json.fault` has accepted: bool [H, W], clipped to the image."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(encode_outline(segmentation, width, height)), dtype=bool)


def encode_outline(segmentation: Any, width: int, height: int) -> Any:
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        polygons = [list(polygon) for polygon in segmentation]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": segmentation["counts"].encode()}
