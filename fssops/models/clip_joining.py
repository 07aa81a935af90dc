"""One set of objects out of the clips of a long video.

A video that is cut into clips is decoded clip by clip, and in every clip the queries find their objects anew. Which
query of a clip is which object is decided by an optimal assignment between the objects so far and the queries,
after MinVIS (Huang et al., "MinVIS: A minimal video instance segmentation framework without video-based training",
NeurIPS 2022, section 3.2), where the cosine of query embeddings decides; here also the overlap of the masks on the
frames that two clips share, and how sure both sides are that there is an object at all:

    similarity[t, q] = object[t] object[q] (cosine(e_t, e_q) + overlap(t, q)) / 2 + a thousandth of the cosine

with e the mask embeddings, ``object`` the probability of not being "no object", and ``overlap`` the IoU of the soft
masks on the shared frames. Mask features of a frame do not depend on the clip it is in, so the mask of an earlier
object is its embedding times the features of the shared frames: no mask of an earlier clip is kept for this.

An object keeps the embedding of the last clip that saw it, so it is found again when it comes back. A clip sees an
object if it is at least half as sure of it as the surest clip; elsewhere the object has no mask. Its class
probabilities are the mean over the frames of the clips that see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fssops import ops
from fssops.models.universal.postprocessing import best_pairs
from fssops.structures import InstanceResult

CANDIDATES = 3
"""Masks that are kept of a clip, as a multiple of the objects that are returned in the end."""

SEEN = 0.5
"""A clip sees an object if it is at least this sure of it, relative to the surest clip."""


@dataclass
class _Clip:
    """What is remembered of a clip.

    Attributes:
        probabilities: [Q, C] of each object, "no object" left out.
        objects: [Q] probability that there is an object.
        masks: object -> one entry a new frame of the clip; objects that are no candidates are missing.
        frames: new frames.
    """

    probabilities: Tensor
    objects: Tensor
    masks: dict[int, list[Any]]
    frames: int = 0


class ClipJoiner:
    """Matches the queries of clip after clip to the objects of a video.

    Args:
        detections: objects in the result.
    """

    def __init__(self, detections: int) -> None:
        self.detections = detections
        self._clips: list[_Clip] = []
        self._embeddings = torch.empty(0)  # [Q, E] of each object, where it was seen last
        self._surest = torch.empty(0)  # [Q]
        self._query_of = torch.empty(0, dtype=torch.int64)  # [Q] of each object in the newest clip

    @property
    def clips(self) -> int:
        """Number of clips so far."""
        return len(self._clips)

    def add(self, class_logits: Tensor, embeddings: Tensor, shared: Tensor, *, only: bool) -> list[int]:
        """Take in a clip.

        Args:
            class_logits: [Q, C + 1].
            embeddings: [Q, E] mask embeddings.
            shared: [S, E, h, w] mask features of the frames that the clip before had too; S may be 0.
            only: whether this clip is the whole video.

        Returns:
            the objects whose masks are wanted, to be given to :meth:`keep_frame` frame by frame.
        """
        probabilities = class_logits.softmax(-1)
        objects = 1 - probabilities[:, -1]
        if not self._clips:
            self._query_of = torch.arange(len(objects), device=objects.device)
            self._embeddings, self._surest = embeddings, objects
        else:
            self._query_of = self._matched(objects, embeddings, shared)
        objects, probabilities = objects[self._query_of], probabilities[self._query_of, :-1]
        self._surest = torch.maximum(self._surest, objects)
        seen = objects >= SEEN * self._surest
        self._embeddings = torch.where(seen[:, None], embeddings[self._query_of], self._embeddings)
        if only:
            candidates = best_pairs(probabilities, self.detections).queries.unique()
        else:
            candidates = objects.topk(min(len(objects), CANDIDATES * self.detections)).indices
        tracks = [int(track) for track in candidates.tolist()]
        self._clips.append(_Clip(probabilities.cpu(), objects.cpu(), {track: [] for track in tracks}))
        return tracks

    def _matched(self, objects: Tensor, embeddings: Tensor, shared: Tensor) -> Tensor:
        """Query [Q] of each object."""
        cosine = F.normalize(self._embeddings, dim=1) @ F.normalize(embeddings, dim=1).T
        agreement = cosine / 2
        if len(shared):
            agreement = agreement + soft_overlap(self._embeddings, embeddings, shared) / 2
        similarity = self._surest[:, None] * objects[None] * agreement + 1e-3 * cosine
        ((tracks, queries),) = ops.assign([-similarity])
        return torch.empty_like(queries).scatter_(0, tracks, queries)

    def queries_of(self, tracks: Sequence[int]) -> Tensor:
        """Queries of objects in the newest clip."""
        return self._query_of[torch.tensor(tracks, dtype=torch.int64, device=self._query_of.device)]

    def keep_frame(self, tracks: Sequence[int], masks: Sequence[Any]) -> None:
        """Store what is kept of the masks of the next new frame, in the order of :meth:`add`'s answer."""
        clip = self._clips[-1]
        clip.frames += 1
        for track, mask in zip(tracks, masks, strict=True):
            clip.masks[track].append(mask)

    def result(self) -> InstanceResult:
        """The best pairs of object and class of the whole video."""
        objects = torch.stack([clip.objects for clip in self._clips])  # [clips, Q]
        has_masks = torch.zeros_like(objects, dtype=torch.bool)
        for number, clip in enumerate(self._clips):
            has_masks[number, list(clip.masks)] = True
        seen = has_masks & (objects >= SEEN * objects.max(0).values)
        frames = torch.tensor([clip.frames for clip in self._clips], dtype=objects.dtype)
        weights = seen * frames[:, None]
        weights = weights / weights.sum(0).clamp(min=1.0)  # an object that no clip sees scores 0
        if self.clips == 1:
            probabilities = self._clips[0].probabilities
        else:
            stacked = torch.stack([clip.probabilities for clip in self._clips])
            probabilities = (weights[..., None] * stacked).sum(0)
        tracks, scores, labels = best_pairs(probabilities, self.detections)
        masks = []
        for track in tracks.tolist():
            of_track: list[Any] = []
            for number, clip in enumerate(self._clips):
                of_track += clip.masks[track] if seen[number, track] else [None] * clip.frames
            masks.append(of_track)
        return InstanceResult(scores, labels, masks)


def soft_overlap(first: Tensor, second: Tensor, features: Tensor) -> Tensor:
    """IoU of the soft masks of two sets of embeddings over the same frames.

    Args:
        first: [N, E].
        second: [M, E].
        features: [S, E, h, w].

    Returns:
        [N, M] in [0, 1]: sum of products over sum of both minus products.
    """
    shared, sums_first, sums_second = None, None, None
    for frame in features.flatten(2):
        p, q = (first @ frame).sigmoid(), (second @ frame).sigmoid()
        product, sum_p, sum_q = p @ q.T, p.sum(1), q.sum(1)
        shared = product if shared is None else shared + product
        sums_first = sum_p if sums_first is None else sums_first + sum_p
        sums_second = sum_q if sums_second is None else sums_second + sum_q
    if shared is None or sums_first is None or sums_second is None:
        return first.new_zeros((len(first), len(second)))
    overlap: Tensor = shared / (sums_first[:, None] + sums_second[None] - shared).clamp(min=1e-6)
    return overlap
