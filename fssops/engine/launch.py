"""Processes, devices and precision through Lightning Fabric."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn

from fssops.engine.settings import EngineSettings, SettingsError

Result = TypeVar("Result")

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
_PEER_SILENT = ("Timed out waiting", "Timed out after", "Watchdog caught collective operation timeout")


def build_fabric(settings: EngineSettings) -> Fabric:
    """Build the Fabric of a run. Under torchrun its processes are used, otherwise ``engine.devices`` are started.

    Raises:
        SettingsError: the accelerator is not there, or fp16 is asked for together with fsdp.
    """
    accelerator = settings.accelerator
    if accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise SettingsError("engine.accelerator: cuda must be available, got a torch or machine without it; use cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("engine.accelerator: mps must be available, got a torch or machine without it; use cpu")
    on_cuda = torch.cuda.is_available() and accelerator in ("auto", "cuda", "gpu")
    if settings.precision == "fp16" and settings.strategy == "fsdp":
        raise SettingsError("engine.precision: must be 32 or bf16 with strategy fsdp, got fp16")
    devices, nodes = settings.devices, settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    half_on_cpu = settings.precision == "fp16" and not on_cuda and accelerator != "mps"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(settings, devices * nodes),
            # Fabric would take bf16 instead of fp16 on a CPU, without being asked to.
            precision=None if half_on_cpu else _PRECISION[settings.precision],  # type: ignore[arg-type]
            plugins=[MixedPrecision("16-mixed", "cpu")] if half_on_cpu else None,
        )


def _strategy(settings: EngineSettings, processes: int) -> Any:
    patience = timedelta(seconds=settings.timeout)
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            shard_whole,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=patience,
        )
    if settings.strategy == "ddp" or processes > 1:
        return DDPStrategy(timeout=patience)
    return "auto"


def shard_whole(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard weights, gradients and optimiser state of a model over the processes (FSDP of PyTorch 2).

    The model is one unit: its weights are gathered for a step as a whole, because systems call other methods of their
    parts than ``forward``, which FSDP would not notice.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    fully_shard(module, mesh=mesh["data_parallel"])
    register_fsdp_forward_method(module, "losses")
    return module


def explain_lost_peer(error: BaseException) -> str | None:
    """Say what it means that communication failed: another process is gone or stuck; None for any other error."""
    text = str(error)
    if any(sign in text for sign in _PEER_GONE):
        return (
            "another process of this job has ended, so this one ends too; the reason stands in that process's own "
            "message (none there: the system has killed it, often for want of memory). Continue with --resume"
        )
    if any(sign in text for sign in _PEER_SILENT):
        return (
            "another process of this job has not answered for as long as engine.timeout allows, so this one ends; "
            "it is stuck or much slower. Continue with --resume"
        )
    return None


def leave_processes(*, finished: bool) -> None:
    """Leave the group of processes in order; a process that just exits may take the others down with it.

    Args:
        finished: wait for the others, who may still be drawing; not after an error, which they shall notice.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if finished:
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_on_first(fabric: Fabric, action: Callable[[], Result]) -> Result:
    """Run ``action()`` on the first process only and return its result on all; an error is raised on all.

    Raises:
        whatever the action raised; on the other processes a ``RuntimeError`` with its message.
    """
    result: Any = None
    error: Exception | None = None
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
    return result  # type: ignore[no-any-return]
