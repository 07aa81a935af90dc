"""Finding weights by what a user calls them: a path, a name of ours, an address, or a repository of the Hub.

What exists on this machine is never fetched. The cache is that of the library that fetches: ``torch.hub``'s for
addresses, ``huggingface_hub``'s for repositories. A file takes its name there only when it is whole and checked.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import logging
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from fssops.spelling import did_you_mean
from fssops.weights.sources import SOURCES, Source

logger = logging.getLogger(__name__)

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
SUFFIXES = (*TORCH_SUFFIXES, ".pkl", ".safetensors")
"""Endings of files that hold weights."""
WHOLE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What a folder or a repository holds of weights, in transformers' layout, the first that is there."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_CONFIGS = ("config.json", "preprocessor_config.json")
_SHARD = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"
_BLOB_OF_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = 30
"""How long a server may take to answer."""


class UnavailableWeightsError(RuntimeError):
    """Weights that are known by name and cannot be had; the message is one line that says what to do."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights on this machine.

    Attributes:
        path: a file or a folder.
        called: what the user calls them.
        row: of the table of names; None where they are of none.
    """

    path: Path
    called: str
    row: Source | None = None


def find_weights(source: str | os.PathLike[str], where: str = "weights") -> FoundWeights:
    """The file or folder of weights, fetched if it is not on this machine.

    Args:
        source: an existing path, which wins over all else; a name of :data:`fssops.weights.sources.SOURCES`; an address
            ``https://...``; or ``owner/repository``, with ``@revision`` where it is not the newest. A ``Path`` is only
            ever a path.
        where: the argument, for messages.

    Raises:
        FileNotFoundError: nothing is called so; names the nearest.
        UnavailableWeightsError: it cannot be fetched: no network, offline mode, refused, damaged on the way.
    """
    text = os.fspath(source)
    if os.path.exists(text):
        if text in SOURCES:
            logger.warning("%s: %s is a path here and a name of known weights; the path is read", where, text)
        return FoundWeights(Path(text), text)
    if isinstance(source, str):
        if row := SOURCES.get(text):
            return FoundWeights(_of_row(row), text, row)
        if re.match(r"https?://", text):
            return FoundWeights(_downloaded(text), text)
        match = _HUB_ID.fullmatch(text)
        if match and Path(match[1]).suffix not in SUFFIXES and not Path(text).parent.is_dir():
            return FoundWeights(_of_hub(*match.groups()), text)
    raise FileNotFoundError(
        f"{where}: path must exist, or be a name that `python -m fssops.models --weights` lists, an address or "
        f"owner/repository, got {text}{did_you_mean(text, SOURCES)}"
    )


def _of_row(row: Source) -> Path:
    kind, _, rest = row.address.partition(":")
    if kind == "hub":
        return _of_hub(rest, None, row.to_do)
    return _of_package(row, rest) if kind == "package" else _downloaded(row.address, row.digest)


def _of_package(row: Source, inside: str) -> Path:
    """A file of an installed package, which is not imported."""
    package, _, file = inside.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / file).is_file():
            _check(Path(folder) / file, row.digest, "install the package again")
            return Path(folder) / file
    raise UnavailableWeightsError(f"weights: {row.name} lies in a package that is not installed here; {row.to_do}")


# -- addresses ----------------------------------------------------------------------------------------------------


def _downloaded(address: str, digest: str = "") -> Path:
    """The file of an address, from torch.hub's cache where it is there."""
    import torch.hub
    from huggingface_hub import constants

    name = Path(unquote(urlsplit(address).path)).name
    if Path(name).suffix not in SUFFIXES:
        raise UnavailableWeightsError(f"weights: an address must end in {', '.join(SUFFIXES)}, got {address}")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not digest:  # many files are called alike
        folder /= f"fssops-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    target = folder / name
    if target.is_file():
        _check(target, digest, "remove it to download it again")
        return target
    if constants.HF_HUB_OFFLINE:
        raise UnavailableWeightsError(
            f"weights: {address} must be downloaded, and HF_HUB_OFFLINE forbids it; give a file, or put it at {target}"
        )
    part = target.with_name(f".{name}.{os.getpid()}.part")
    try:
        size = _announced_size(address)
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s%s to %s", address, f" ({size / 1e6:.1f} MB)" if size else "", target)
        torch.hub.download_url_to_file(address, str(part), progress=sys.stderr.isatty())
        if size is not None and part.stat().st_size != size:
            # The connection's end looks like the file's to torch.hub.
            raise UnavailableWeightsError(
                f"weights: {address} must have {size} bytes, got {part.stat().st_size}; the download broke off and "
                "nothing was kept, try again"
            )
        _check(part, digest, "nothing was kept; try again, and mistrust the address where it stays so", address)
        os.replace(part, target)
    except HTTPError as error:
        raise UnavailableWeightsError(f"weights: {address} must be there, got {error.code} {error.reason}") from None
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise UnavailableWeightsError(
            f"weights: {address} must be reachable, got {getattr(error, 'reason', error)}; without a network give a "
            f"file, or put it at {target}"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _announced_size(address: str) -> int | None:
    """How many bytes a server says a file has; None where it does not say."""
    request = Request(address, headers={"User-Agent": "torch.hub"})
    with urlopen(request, timeout=_SECONDS) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise UnavailableWeightsError(f"weights: {address} must be a file of weights, got a web page")
        size = answer.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else None


def _check(path: Path, digest: str, to_do: str, called: str = "") -> None:
    """Compare a file with ``<algorithm>:<first digits>``."""
    algorithm, _, wanted = digest.partition(":")
    if not wanted:
        return
    state = path.stat()
    got = _hash_of(path, algorithm, state.st_size, state.st_mtime_ns)[: len(wanted)]
    if got != wanted:
        raise UnavailableWeightsError(
            f"weights: {called or path} must have {algorithm} {wanted}, got {got}: damaged, or another file; {to_do}"
        )


@lru_cache
def _hash_of(path: Path, algorithm: str, size: int, changed: int) -> str:
    """Digest of a file in its state of ``size`` and ``changed``: a training looks before its start and loads later."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()


# -- the Hugging Face Hub -----------------------------------------------------------------------------------------


def _of_hub(repository: str, revision: str | None, to_do: str = "") -> Path:
    """The folder of a repository with its configuration and weights; safetensors where it has them."""
    from huggingface_hub import constants, errors, snapshot_download

    called = f"{repository}@{revision}" if revision else repository
    page = f"{constants.ENDPOINT}/{repository}"
    folder = Path()
    try:
        # These patterns match no folder, so that names in a repository cannot lead out of it.
        for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
            files = [*_CONFIGS, f"{stem}{suffix}", f"{stem}{suffix}.index.json", f"{stem}{_SHARD}{suffix}"]
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files, library_name="fssops"))
            if any((folder / name).is_file() for name in WHOLE_FILES):
                break
    except errors.GatedRepoError:
        to_do = to_do or f"accept its conditions at {page} with your account, then log in here with `hf auth login`"
        raise UnavailableWeightsError(f"weights: {called} is given to those who ask for it: {to_do}") from None
    except errors.RevisionNotFoundError:
        raise UnavailableWeightsError(f"weights: {repository} must have the revision {revision}, got none") from None
    except errors.RepositoryNotFoundError:
        raise UnavailableWeightsError(
            f"weights: {called} must be a path here or a repository at {constants.ENDPOINT}, got neither (or a private "
            "one: log in with `hf auth login`)"
        ) from None
    except errors.HFValidationError as error:
        raise UnavailableWeightsError(f"weights: {called} must name a repository, got {_first_line(error)}") from None
    except (OSError, errors.EntryNotFoundError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        offline = "HF_HUB_OFFLINE forbids to fetch it" if constants.HF_HUB_OFFLINE else _first_line(error)
        raise UnavailableWeightsError(
            f"weights: {called} is no path here and not in the cache, and must be fetched from {constants.ENDPOINT}: "
            f"{offline}; without a network give a file or folder"
        ) from None
    if not any((folder / name).is_file() for name in WHOLE_FILES):
        held = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing of either"
        raise UnavailableWeightsError(
            f"weights: {called} must hold a configuration and {' or '.join(WHOLE_FILES[::2])}, whole or in shards, got "
            f"{held}"
        )
    for path in folder.iterdir():
        blob = path.resolve()
        if path.suffix in SUFFIXES and _BLOB_OF_SHA256.fullmatch(blob.name):  # the cache calls large files so
            _check(blob, f"sha256:{blob.name}", "remove it to download it again", str(path))
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
