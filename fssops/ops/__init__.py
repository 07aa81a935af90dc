"""The operators (being landed one by one; see each module)."""

from fssops.reference import masked_average_pooling

__all__ = ["masked_average_pooling"]
