"""What can be wrong with data, as exceptions whose message names the file, the rule and the value."""

from __future__ import annotations


class DataError(ValueError):
    """Data on disk, or a request about it, breaks a rule: ``<file>: <what> must <rule>, got <value>``."""


class ImageFileError(DataError):
    """A file that should hold a picture cannot be used as one."""


class ImageSizeError(ImageFileError):
    """An image has another size than its annotations are made for."""


class MaskError(DataError):
    """A mask does not fit its image or its class list."""


class MaskSizeError(MaskError):
    """A mask has another size than its image."""


class MaskValueError(MaskError):
    """A mask holds values outside the class list."""


class PanopticMismatchError(MaskError):
    """The PNG and the JSON of a panoptic data set disagree."""


class AnnotationError(DataError):
    """An annotation file (COCO JSON, list file, episode list) breaks its own format."""


class DuplicateError(AnnotationError):
    """An id or a name that should be unique occurs twice."""


class TooFewImagesError(DataError):
    """A class has fewer images than an episode needs."""


class DataWarning(UserWarning):
    """Something was left out or repaired; the message says what and why."""
