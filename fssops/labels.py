"""Words and numbers that all labels share; a file of its own, so that reading it brings no torch along."""

from __future__ import annotations

IGNORE = 255
"""Label of pixels that neither train nor count."""

ANNOTATIONS = ("mask", "box", "component_boxes", "scribble")
"""What marks the support objects: dense masks; PANet's box of the largest instance; MSANet's box of every connected
component; one scribble stroke."""
