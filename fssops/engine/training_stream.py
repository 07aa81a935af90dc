"""The loader that feeds training: endless, resumable at any step, and honest about items it cannot read."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from fssops.engine.sampling import Draw, DrawnDataset, StepSampler, UnreadableItemError, mix_seed
from fssops.engine.settings import EngineSettings

logger = logging.getLogger(__name__)


class _Loaded(NamedTuple):
    """What a loader process hands over: errors and messages travel as values, so that they arrive whole."""

    batch: Any
    """An item or a batch; of one with an unreadable item, the error."""
    messages: list[str]


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
    """Fetches items with their places in the stream."""

    def __init__(self, dataset: Any, settings: EngineSettings) -> None:
        self.messages: list[str] = []
        report = self.messages.append if settings.on_unreadable == "skip" else None
        self.dataset = DrawnDataset(dataset, settings.seed, report=report)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> _Loaded:
        self.messages.clear()
        try:
            return _Loaded((draw.position, self.dataset[draw]), list(self.messages))
        except UnreadableItemError as error:
            return _Loaded(error, list(self.messages))


class _Collate:
    """Stacks items; a batch with ``seeds`` gets one for each item that depends on the item's place alone."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def __call__(self, loaded: Sequence[_Loaded]) -> _Loaded:
        messages = [message for item in loaded for message in item.messages]
        failures = [item.batch for item in loaded if isinstance(item.batch, UnreadableItemError)]
        if failures:
            return _Loaded(failures[0], messages)
        positions, items = zip(*(item.batch for item in loaded), strict=True)
        batch = self.collate(items)
        if hasattr(batch, "seeds"):
            batch.seeds = [mix_seed(self.seed + 2, position) for position in positions]
        return _Loaded(batch, messages)


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
            repeats=getattr(dataset, "repeats", None),
        )
        self._loader: DataLoader[Any] = DataLoader(
            _Loading(dataset, settings),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_Collate(collate, settings.seed),
            num_workers=settings.workers,
            pin_memory=pin_memory,
            worker_init_fn=_prepare_worker,
            # A generator of its own: the loader must not draw from the global one, whose state is part of a checkpoint.
            generator=torch.Generator().manual_seed(settings.seed),
            prefetch_factor=4 if settings.workers else None,
        )
        self._batches = iter(self._loader)

    def __iter__(self) -> TrainingStream:
        return self

    def __next__(self) -> Any:
        try:
            batch, messages = next(self._batches)
        except (ConnectionError, EOFError) as error:
            # A process that dies while it hands over a batch is met as a broken connection.
            raise LoaderLostError(error) from None
        for message in messages:
            logger.warning("training data: %s", message)
        if isinstance(batch, UnreadableItemError):
            raise UnreadableItemError(f"{batch}; mend the file, or set engine.on_unreadable=skip to go on without it")
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
