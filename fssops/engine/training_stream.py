"""The loader that feeds training: endless, resumable at any step, and honest about items it cannot read."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from fssops.engine.sampling import DrawnDataset, StepSampler, UnreadableItemError, mix_seed
from fssops.engine.settings import EngineSettings


class ItemFailure:
    """Stands for a batch with an unreadable item on its way out of a loader process."""

    def __init__(self, message: str) -> None:
        self.message = message


class LoaderLostError(RuntimeError):
    """A loader process has died; the message says what to do."""

    def __init__(self, cause: BaseException) -> None:
        first = (str(cause) or type(cause).__name__).splitlines()[0]
        super().__init__(
            f"training data: loader processes must keep running, got: {first} "
            "(often out of memory: lower engine.workers); resume with --resume"
        )


@contextmanager
def lost_loaders_explained() -> Iterator[None]:
    """Turn what torch says of a dead loader process into :class:`LoaderLostError`.

    Torch raises it from a signal handler: in the middle of a step as well as where a batch is waited for.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and not isinstance(error, LoaderLostError):
            raise LoaderLostError(error) from None
        raise


class _Loading:
    """Fetch items with their places in the stream; failures travel as values, so that their message arrives whole."""

    def __init__(self, dataset: DrawnDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Any) -> Any:
        try:
            return draw.position, self.dataset[draw]
        except UnreadableItemError as error:
            return ItemFailure(str(error))


class _Collate:
    """Stack items; a batch with ``seeds`` gets one for each item that depends on the item's place alone."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def __call__(self, found: Sequence[Any]) -> Any:
        failure = next((item for item in found if isinstance(item, ItemFailure)), None)
        if failure is not None:
            return failure
        positions, items = zip(*found, strict=True)
        batch = self.collate(items)
        if hasattr(batch, "seeds"):
            batch.seeds = [mix_seed(self.seed + 2, position) for position in positions]
        return batch


class TrainingStream:
    """Iterator over micro-batches from a given step on.

    Args:
        dataset: map-style data set, see :class:`fssops.engine.sampling.DrawnDataset`.
        collate: stacks items to a batch.
        settings: batch size, workers, seed, what to do about unreadable items.
        start_step: first step.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Sequence[Any]], Any],
        settings: EngineSettings,
        *,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        sampler = StepSampler(
            len(dataset),
            settings.batch_size,
            settings.seed,
            start_step=start_step,
            rank=rank,
            world_size=world_size,
            accumulate=settings.accumulate,
        )
        drawn = DrawnDataset(
            dataset,
            settings.seed,
            skip_unreadable=settings.on_unreadable == "skip",
            report=_report_to_stderr,
        )
        self._loader: DataLoader[Any] = DataLoader(
            _Loading(drawn),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_Collate(collate, settings.seed),
            num_workers=settings.workers,
            pin_memory=pin_memory,
            worker_init_fn=_prepare_worker,
            # Own generator: the loader must not draw from the global one, whose state is part of a checkpoint.
            generator=torch.Generator().manual_seed(settings.seed),
            prefetch_factor=4 if settings.workers else None,
        )
        self._batches = iter(self._loader)

    def __iter__(self) -> TrainingStream:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except (ConnectionError, EOFError) as error:
            # A process that dies while it hands over a batch is met as a broken connection.
            raise LoaderLostError(error) from None
        if isinstance(batch, ItemFailure):
            raise UnreadableItemError(
                f"{batch.message}; mend the file, or set engine.on_unreadable=skip to go on without it"
            )
        return batch

    def close(self) -> None:
        """End the loader processes."""
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _prepare_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the trainer decides when loading ends. SIGTERM must end a loader
    # process, whatever handler the trainer had installed when it was forked.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _report_to_stderr(line: str) -> None:
    print(f"training data: {line}", file=sys.stderr, flush=True)
