"""The log of metrics is read back, whatever a crash left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssops.engine.metrics_log import MetricsLog, read_metrics


@pytest.mark.parametrize("broken", [b'{"step": 3, "lo', b"\xff\xfe\x00", b"[" * 5000, b"5", b"[1]", b""])
def test_lines_that_are_no_records_are_left_out(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_the_table_says_the_same_whatever_columns_come_later_and_where_a_run_goes_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"loss": 2.0})
    log.write(2, {"val/miou": 0.5, "loss": float("nan")})
    log.write(3, {"loss": 1.0})
    log.close()
    table = tmp_path / "metrics.csv"
    assert table.read_text() == "step,loss,val/miou\n1,2.0,\n2,,0.5\n3,1.0,\n"
    log = MetricsLog(tmp_path / "metrics.jsonl", start_step=2)
    assert table.read_text() == "step,loss,val/miou\n1,2.0,\n2,,0.5\n"
    log.write(3, {"loss": 0.5})
    log.close()
    assert table.read_text().endswith("\n3,0.5,\n")
    MetricsLog(tmp_path / "metrics.jsonl").close()
    assert not table.exists()
