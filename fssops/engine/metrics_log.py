"""Metrics as JSON lines and as a table for spreadsheets, and in TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssops.engine.checkpoints import write_text_atomically


class MetricsLog:
    """Appends to ``metrics.jsonl``, and to ``metrics.csv`` beside it the same as a table.

    A resumed run first drops what lies beyond the step it resumes from.

    Args:
        path: the file of JSON lines.
        tensorboard: folder of TensorBoard's event files, or None.
        start_step: step that is resumed from.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, start_step: int = 0) -> None:
        self.path = path
        if path.exists():
            earlier = [record for record in read_metrics(path) if record["step"] <= start_step] if start_step else []
            write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in earlier))
        self._columns: list[str] = []
        self._write_table()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._writer: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values after ``step`` updates; NaN and infinity become null, which JSON can say."""
        record = {"step": step, **{key: _plain(value) for key, value in values.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if set(record) <= set(self._columns):
            with open(self.path.with_suffix(".csv"), "a", encoding="utf-8", newline="") as table:
                csv.DictWriter(table, self._columns, lineterminator="\n").writerow(record)
        else:
            self._write_table()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def _write_table(self) -> None:
        """Write the table anew: at the start, and when a record has a column that it lacks."""
        records = read_metrics(self.path) if self.path.exists() else []
        self._columns = list(dict.fromkeys(name for record in records for name in record))
        if not records:
            self.path.with_suffix(".csv").unlink(missing_ok=True)
            return
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, lineterminator="\n")
        table.writeheader()
        table.writerows(records)
        write_text_atomically(self.path.with_suffix(".csv"), text.getvalue())

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics file; lines that are none, as the last one after a crash, are left out."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # bytes that are no UTF-8 are a ValueError too
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
