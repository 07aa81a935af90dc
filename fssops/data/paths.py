"""Names that files bring along: they may point below the folder they belong to, and nowhere else."""

from __future__ import annotations

from fssops.data.errors import AnnotationError


def check_inside(name: str, where: str) -> str:
    """Return a relative name with ``/`` between its folders, or refuse it.

    Folders may be symbolic links, as data sets are often put together from them; the name itself may not lead out.

    Args:
        name: of a file, with ``/`` or ``\\\\`` between folders, as read from JSON or a list.
        where: what errors call it.

    Raises:
        AnnotationError: it is empty, absolute, or goes up with ``..``.
    """
    parts = name.replace("\\", "/").split("/")
    drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if not name or not parts[0] or drive or ".." in parts or "\0" in name:
        raise AnnotationError(f"{where} must be a name below its folder, got {name!r:.120}")
    return "/".join(parts)
