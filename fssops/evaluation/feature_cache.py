"""Features of images kept over episodes and runs, within bounds of memory and disk."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Features = dict[str, Tensor]
Encode = Callable[[Tensor], Features]
Complete = Callable[[Features], Features]


class FeatureCache:
    """Encodes each image once, one image a pass, and keeps the features; the least recently used go first.

    The key is a digest of the image's pixels, so equal inputs share features and no name can mislead. An image is
    always encoded alone: a batch of another size may choose another algorithm and other last bits, and with it the
    result would depend on what the cache held.

    Args:
        encode: ``model.encode``; called with [1, 3, H, W].
        memory: bytes kept in memory; 0 keeps nothing.
        disk: bytes kept in a temporary folder beyond that; 0 uses no disk.
        folder: where the temporary folder is made; None is the system's place.
    """

    def __init__(self, encode: Encode, *, memory: int, disk: int = 0, folder: Path | None = None) -> None:
        self._encode, self._memory, self._disk = encode, memory, disk
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._stored: dict[str, tuple[Path, int]] = {}
        self._folder: Path | None = None
        self._parent = folder
        self._kept_bytes = self._stored_bytes = 0
        self._further: frozenset[str] = frozenset()
        self.requests = 0
        """Images asked for: passes through the backbone without a cache."""
        self.passes = 0
        """Passes through the backbone."""
        self.query_requests = 0
        """Images asked for with what is computed of a query alone, and..."""
        self.query_passes = 0
        """...how often that was computed."""

    def features(self, images: Tensor, complete: Complete | None = None) -> Features:
        """Return features [n, ...] of images [n, 3, H, W].

        Args:
            images: normalised.
            complete: ``model.query_features``; what it makes of the features of a query image is kept in their place.
        """
        parts = [self._one(image, complete) for image in images]
        if len(parts) == 1:
            return parts[0]
        # An image that was a query before holds more.
        names = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def work(self) -> Tensor:
        """[4] int64: images asked for and passes; queries asked for and passes."""
        return torch.tensor([self.requests, self.passes, self.query_requests, self.query_passes])

    def close(self) -> None:
        """Forget everything and remove what lies on disk."""
        self._kept.clear()
        self._stored.clear()
        self._kept_bytes = self._stored_bytes = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, image: Tensor, complete: Complete | None) -> Features:
        self.requests += 1
        if not self._memory and not self._disk:
            self.passes += 1
            return self._completed(self._encode(image[None]), complete)
        key = digest(image)
        if key in self._kept:
            self._kept.move_to_end(key)
            found = self._kept[key]
        elif key in self._stored:
            found = torch.load(self._stored[key][0], map_location=image.device, weights_only=True)
            self._keep(key, found)
        else:
            self.passes += 1
            found = {name: _dense(value) for name, value in self._encode(image[None]).items()}
            self._keep(key, found)
        completed = self._completed(found, complete)
        if completed is not found:
            found = {name: _dense(value) for name, value in completed.items()}
            if key in self._stored:
                # What lies on disk is no longer all there is to keep.
                path, size = self._stored.pop(key)
                path.unlink(missing_ok=True)
                self._stored_bytes -= size
            self._keep(key, found)
        return found

    def _completed(self, features: Features, complete: Complete | None) -> Features:
        """The features of a query; those given where they are complete, or the system computes nothing of a query."""
        if complete is None:
            return features
        if self._further and self._further <= features.keys():
            self.query_requests += 1
            return features
        completed = complete(features)
        if completed is not features:
            self._further = frozenset(completed.keys() - features.keys())
            self.query_requests += 1
            self.query_passes += 1
        return completed

    def _keep(self, key: str, features: Features) -> None:
        size = _bytes(features)
        if key in self._kept:
            self._kept_bytes -= _bytes(self._kept.pop(key))
        if size > self._memory:
            self._store(key, features)
            return
        self._kept[key] = features
        self._kept_bytes += size
        while self._kept_bytes > self._memory:
            oldest, evicted = self._kept.popitem(last=False)
            self._kept_bytes -= _bytes(evicted)
            self._store(oldest, evicted)

    def _store(self, key: str, features: Features) -> None:
        size = _bytes(features)
        if key in self._stored or self._stored_bytes + size > self._disk:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fssops-features-", dir=self._parent))
        path = self._folder / f"{key}.pt"
        torch.save({name: value.cpu() for name, value in features.items()}, path)
        self._stored[key] = (path, size)
        self._stored_bytes += size


def digest(image: Tensor) -> str:
    """Digest of an image's pixels and shape; the same on every device."""
    plain = image.detach().cpu().contiguous()
    value = hashlib.blake2b(repr((tuple(plain.shape), str(plain.dtype))).encode(), digest_size=20)
    value.update(plain.view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def _dense(value: Tensor) -> Tensor:
    """The tensor without gaps, in the order of its memory: channels-last stays so."""
    if value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)):
        return value
    return value.contiguous()


def _bytes(features: Features) -> int:
    return sum(value.numel() * value.element_size() for value in features.values())
