"""The number that every label map shares; a file of its own, so that reading it brings no torch along."""

from __future__ import annotations

IGNORE = 255
"""Label of pixels that neither train nor count."""
