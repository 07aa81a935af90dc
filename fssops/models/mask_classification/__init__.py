"""Mask classification: what MaskFormer and Mask2Former share beside their parts.

A model of this kind names the class of each of its queries and gives it a mask; semantic, instance and panoptic results
are read from the same output.
"""

from fssops.models.mask_classification.config import MaskClassificationConfig, Task
from fssops.models.mask_classification.model import MaskClassificationModel

__all__ = ["MaskClassificationConfig", "MaskClassificationModel", "Task"]
