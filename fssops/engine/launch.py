"""Processes, devices and precision through Lightning Fabric."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from lightning.fabric import Fabric

from fssops.engine.settings import EngineSettings, SettingsError

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def build_fabric(settings: EngineSettings) -> Fabric:
    """Build the Fabric of a run. Under torchrun its processes are used, otherwise ``engine.devices`` are started.

    Raises:
        SettingsError: the accelerator is not there, or fp16 is asked for where it cannot be trained.
    """
    accelerator = settings.accelerator
    if accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise SettingsError("engine.accelerator: cuda must be available, got a torch or machine without it; use cpu")
    on_cuda = torch.cuda.is_available() and accelerator in ("auto", "cuda", "gpu")
    if settings.precision == "fp16" and not on_cuda:
        raise SettingsError("engine.precision: fp16 must run on a GPU, got the CPU; use bf16 or 32")
    devices, nodes = settings.devices, settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices, nodes = (
            int(os.environ["LOCAL_WORLD_SIZE"]),
            int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    strategy: Any = settings.strategy
    if strategy == "fsdp":
        from lightning.fabric.strategies.fsdp import FSDPStrategy

        strategy = FSDPStrategy(state_dict_type="full", use_orig_params=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=_PRECISION[settings.precision],  # type: ignore[arg-type]
        )


def run_on_first(fabric: Fabric, action: Any) -> Any:
    """Run ``action()`` on the first process only and return its result on all; an error is raised on all.

    Raises:
        whatever the action raised; on the other processes a ``RuntimeError`` with its message.
    """
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = action()
        except Exception as caught:
            error = caught
    if fabric.world_size > 1:
        result, message = fabric.broadcast((result, None if error is None else str(error)))
        if error is None and message is not None:
            raise RuntimeError(message)
    if error is not None:
        raise error
    return result
