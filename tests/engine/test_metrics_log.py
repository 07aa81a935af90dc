"""The log of metrics is read back, whatever a crash left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssops.engine.metrics_log import read_metrics


@pytest.mark.parametrize("broken", [b'{"step": 3, "lo', b"\xff\xfe\x00", b"[" * 5000, b"5", b"[1]", b""])
def test_lines_that_are_no_records_are_left_out(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
