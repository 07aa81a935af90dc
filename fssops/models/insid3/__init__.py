"""INSID3, the few-shot system that needs no training; see :mod:`fssops.models.insid3.model`."""

from fssops.models.insid3.config import INSID3Config
from fssops.models.insid3.model import INSID3, INSID3Support

__all__ = ["INSID3", "INSID3Config", "INSID3Support"]
