"""What the engine, the evaluators and the predictors may rely on in a model, and nothing more."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from fssops.structures import FewShotBatch


@runtime_checkable
class Trainable(Protocol):
    """A model that computes its own training losses."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch, each a scalar; the training loss is their sum."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A model whose loss terms are means over something that differs from batch to batch: pixels, objects."""

    def loss_counts(self, batch: Any) -> dict[str, float]:
        """What the terms of a batch divide by, from its targets alone.

        Training adds the counts up over the micro-batches and processes of a step and hands the sums to ``losses`` as
        ``batch.share``; so the step's loss does not depend on how its batch was cut.
        """
        ...


@runtime_checkable
class Layered(Protocol):
    """A part of a model, its backbone, that counts its layers from the images on."""

    layers_by_depth: tuple[str, ...]
    """Its submodules by depth; empty where they are not told apart."""

    def layer_of(self, name: str) -> int:
        """Depth of a parameter by its name in this part: the place of its layer, their number for what follows all."""
        ...

    def freeze(self, layers: int | Literal["all"]) -> None:
        """Stop training of the first layers, and keep them in evaluation mode; ValueError if there are not so many."""
        ...


@runtime_checkable
class FewShotModel(Protocol):
    """A model that segments N new classes from K labelled images each; most are :class:`Trainable` too.

    ``forward(batch)`` equals ``match(summarise(encode(support), ...), query_features(encode(query)), size)``. The steps
    are public so that evaluation and :class:`fssops.FewShotPredictor` may keep what does not change: the features of an
    image over all episodes that draw it, as support and as query, and a support set over all its queries.
    """

    stride: int
    """Images must be at least this many pixels high and wide."""

    def forward(self, batch: FewShotBatch) -> Tensor:
        """Return logits [B, Q, 1 + N, H, W]; channel 0 is the background."""
        ...

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images [n, 3, H, W]: a dict of tensors with leading n that depend on each image alone."""
        ...

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of query images from those of :meth:`encode`.

        What a system computes of a query alone joins them, and what only this computation needed is left out. A system
        that computes nothing returns ``features`` itself. :meth:`match` takes both.
        """
        ...

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Any:
        """Summary of support sets.

        Args:
            features: of the support images, each [B * N * K, ...], in the order of ``reshape(B, N, K)``.
            foreground: [B, N, K, H, W] float.
            background: [B, N, K, H, W] float.
        """
        ...

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, Q, 1 + N, H, W] of query images with ``features`` [B * Q, ...] and ``size`` (H, W)."""
        ...
