"""Mask-piloted training (MP-Former): queries that are told an object's class and mask, noised, and must give it back.

Source: Zhang et al., "MP-Former: Mask-piloted transformer for image segmentation", CVPR 2023, and github
IDEA-Research/MP-Former at a71f504.
"""

from fssops.models.mask_piloting.noise_sources import NoiseSource, RandomNoise
from fssops.models.mask_piloting.pilots import PilotOptions, Pilots, build_pilots
from fssops.models.mask_piloting.query_layout import QueryLayout

__all__ = [
    "NoiseSource",
    "PilotOptions",
    "Pilots",
    "QueryLayout",
    "RandomNoise",
    "build_pilots",
]
