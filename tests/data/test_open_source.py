"""What the three openers of data sets share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fssops.data.layouts import open_data


@pytest.mark.parametrize(
    ("open_source", "format"),
    [
        (open_data, "generated"),
        (open_data, "generated"),
        (open_data, "generated_videos"),
    ],
)
def test_a_folder_is_not_passed_over_where_data_are_generated(
    open_source: Callable[..., Any], format: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"root must be left out for format {format}, which has no files, got {tmp_path}"
    ):
        open_source(format, tmp_path)
