"""Reading detectron2's ``.pkl`` weight files without trusting them.

A pickle is a program. Here the only names it may use are numpy's array, dtype and scalar constructors and ordered
dictionaries, and even those are replaced by stand-ins of ours that check what they are given and build arrays of
plain numbers; any other name stops the reading before anything runs.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from typing import Any, NoReturn

import numpy as np

_PLAIN_DTYPE = re.compile(r"^[<>=|]?[biufSU?]\d*$")


class ForbiddenPickleError(pickle.UnpicklingError):
    """The pickle asks for something that is neither a container nor an array."""


class _DType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, spec: Any, *_: Any) -> None:
        text = spec.decode("ascii") if isinstance(spec, bytes) else spec
        if not isinstance(text, str) or not _PLAIN_DTYPE.match(text):
            raise ForbiddenPickleError(f"arrays must hold plain numbers, got dtype {spec!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.dtype = np.dtype(order + self.dtype.str[1:])


class _NDArray:
    """Stands for ``numpy.ndarray``, as a type that is passed around; never called."""

    def __init__(self, *_: Any) -> NoReturn:
        raise ForbiddenPickleError("numpy.ndarray must not be called directly")


class _Array:
    """Stands for an array that is being built by ``numpy.core.multiarray._reconstruct``."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if kind is not _NDArray:
            raise ForbiddenPickleError(f"only plain arrays may be built, got {kind!r}")
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, (bytes, str)):
            raise ForbiddenPickleError("arrays must hold plain numbers")
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, dtype=dtype.dtype)
        self.array = flat.reshape(tuple(int(n) for n in shape), order="F" if fortran else "C").copy()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    """Stands for ``numpy.core.numeric._frombuffer``, which pickles of protocol 5 build arrays with."""
    if not isinstance(dtype, _DType) or not isinstance(data, (bytes, bytearray, pickle.PickleBuffer)):
        raise ForbiddenPickleError("arrays must hold plain numbers")
    flat = np.frombuffer(bytes(data), dtype=dtype.dtype)
    made: np.ndarray[Any, Any] = flat.reshape(tuple(int(n) for n in shape), order="F" if order == "F" else "C").copy()
    return made


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or not isinstance(data, (bytes, str)):
        raise ForbiddenPickleError("scalars must be plain numbers")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=dtype.dtype)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ForbiddenPickleError("bytes must be written as text in latin1")
    return text.encode(encoding)


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise ForbiddenPickleError("bytes() must be called without arguments")
    return b""


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("collections", "OrderedDict"): OrderedDict,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ForbiddenPickleError(f"the file asks for {module}.{name}, which is not an array or a container")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ForbiddenPickleError("the file refers to data outside itself")


def plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The containers with every stand-in replaced by its array.

    A container that occurs in several places is turned once (``done``): fifty lists that each hold the next one twice
    would else unfold to 2^50.
    """
    if isinstance(value, _Array):
        if value.array is None:
            raise ForbiddenPickleError("an array was announced but not given")
        return value.array
    if not isinstance(value, (dict, list, tuple)):
        return value
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: plain(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(plain(item, done) for item in value)
    return done[id(value)]


def load_arrays(data: bytes) -> Any:
    """The containers, numbers, strings and numpy arrays of a pickle.

    Raises:
        ForbiddenPickleError: it asks for anything else; nothing of it was executed.
        pickle.UnpicklingError, EOFError, ValueError: the data are damaged.
    """
    return plain(_RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load())
