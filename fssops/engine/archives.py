"""Looking at an archive before it is unpacked: a few kilobytes may announce terabytes."""

from __future__ import annotations

import zipfile
from pathlib import Path


class ArchiveBombError(ValueError):
    """An archive would unpack to more than it takes on disk, which no checkpoint of torch does."""


def check_stored(path: Path) -> None:
    """Refuse a zip archive with compressed entries; any other file passes.

    ``torch.save`` stores tensors as they are, so what is unpacked is never larger than the file.

    Raises:
        ArchiveBombError: an entry is compressed, or the entries claim more bytes than the file has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # whoever reads the file says what is wrong with it
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None or total > size:
        what = f"compressed entry {packed.filename!r}" if packed is not None else "overlapping entries"
        raise ArchiveBombError(
            f"{path} must hold its tensors uncompressed, as torch writes them, got {what} ({total} bytes in {size})"
        )
