"""Listing files of a folder: in natural order, hidden ones skipped, linked folders followed, the rest told.

Everything that looks for files in a folder does it here, so that a data set means the same files wherever it is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fssops.data.images import SUFFIXES


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        folder: which.
        files: in natural order, those of sub-folders where these sort.
        left_out: what is there but not among ``files``, with the reason.
    """

    folder: Path
    files: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]

    def by_stem(self) -> dict[str, list[Path]]:
        """Files by their path below the folder without suffix, ``/`` between folders."""
        grouped: dict[str, list[Path]] = {}
        for path in self.files:
            grouped.setdefault(path.relative_to(self.folder).with_suffix("").as_posix(), []).append(path)
        return grouped

    def notes(self) -> Iterator[str]:
        """What was left out, one line for each reason."""
        reasons: dict[str, list[Path]] = {}
        for path, reason in self.left_out:
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            yield f"{self.folder}: {len(paths)} left out ({reason}), e.g. {paths[0].relative_to(self.folder)}"


def natural(name: str) -> tuple[list[str | int], str]:
    """Key that sorts names by their numbers: ``2.png`` before ``10.png``."""
    parts: list[str | int] = list(re.split(r"([0-9]+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def pictures_in(folder: Path, *, below: bool = True, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The picture files of a folder.

    Args:
        folder: a folder.
        below: also those of its sub-folders; else these are left out.
        suffixes: in lower case, by which files are taken.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: folder must exist, got no such folder")
    files: list[Path] = []
    left_out: list[tuple[Path, str]] = []

    def visit(place: Path, above: tuple[tuple[int, int], ...]) -> None:
        for entry in sorted(os.scandir(place), key=lambda entry: natural(entry.name)):
            path = place / entry.name
            if entry.name.startswith("."):
                left_out.append((path, "hidden"))
            elif entry.is_dir():
                # Of the folder itself, not of the link to it: scandir's own stat has no inode on every system.
                status = os.stat(path)
                place_below = (status.st_dev, status.st_ino)
                if not below:
                    left_out.append((path, "sub-folder"))
                elif place_below in above:
                    left_out.append((path, "link to a folder that it lies in"))
                else:
                    visit(path, (*above, place_below))
            elif path.suffix.lower() not in suffixes:
                left_out.append((path, "other suffix"))
            elif not entry.is_file():
                left_out.append((path, "link to nothing"))
            else:
                files.append(path)

    status = os.stat(folder)
    visit(folder, ((status.st_dev, status.st_ino),))
    return Listing(folder, tuple(files), tuple(left_out))


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies in a folder itself; False of what is no folder."""
    return folder.is_dir() and any(Path(entry.name).suffix.lower() in SUFFIXES for entry in os.scandir(folder))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder in natural order, hidden ones left out; none in what is no folder."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)
