"""Trains tiny recipes within the processes that torchrun has started; the first process writes every loss as JSON.

FOLDER JOB [JOB ...], a job being ``system`` or ``system,table.key=value,...``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_systems import losses_of


def main() -> None:
    folder, jobs = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    for number, job in enumerate(jobs):
        system, *overrides = job.split(",")
        found[job] = losses_of(system, folder / str(number), overrides)
    if torch.distributed.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
