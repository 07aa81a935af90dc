"""Universal segmentation: what MaskFormer, Mask2Former and MP-Former share beside their parts.

A universal model names the class of each of its queries and gives it a mask; semantic, instance and panoptic results
are read from the same output.
"""

from fssops.models.universal.config import Task, UniversalConfig
from fssops.models.universal.model import UniversalModel

__all__ = ["Task", "UniversalConfig", "UniversalModel"]
