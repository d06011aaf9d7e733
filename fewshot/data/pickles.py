"""Pickles of arrays, as data sets are shared, read without running anything that they name."""

import pickle
import re
from collections import OrderedDict
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fewshot.errors import UserError

_PLAIN = re.compile(r"[biufSU]\d{1,9}")  # numbers, truth values and text of a fixed length; no objects, no fields


def read_arrays(file: IO[bytes], name: str) -> Any:
    """The dictionaries, lists, numbers, texts and arrays of a pickle of any protocol, written by Python 2 or 3.

    A pickle is a program: it names functions and has them called. Here every name stands for a class of this file
    that does no more than hold what the array is made of, and any name beyond those that arrays and plain containers
    need ends the reading.

    Args:
        file: open for reading; memory is taken for its content once, arrays are views of it.
        name: of the file, for messages.

    Returns:
        What was pickled; byte strings, which is what text is in Python 2, are text; arrays are read only.

    Raises:
        UserError: it names something else, or it is damaged.
    """
    try:
        return _plain(_Unpickler(file, encoding="bytes").load())
    except _Foreign as foreign:
        raise UserError(
            f"{name} would run {foreign}, which arrays do not need: nothing of it was run; fetch the file again from "
            "a source that you trust"
        ) from None
    except (Exception, MemoryError) as error:  # at damaged bytes a pickle raises whatever comes to it
        told = str(error) or type(error).__name__
        raise UserError(f"{name} is damaged, or no pickle of arrays ({told}): delete it and fetch it again") from error


class _Foreign(Exception):
    """Names what is not admitted."""


class _Array:
    """An array in the making: `_reconstruct` makes an empty one, its state follows."""

    array: NDArray[Any] | None = None

    def __init__(self, *_: Any) -> None:
        """What `_reconstruct` is given says nothing: a type, an empty shape and a letter."""

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, content = state
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran else "C")


class _FromBuffer(_Array):
    """The same in one go, as protocol 5 has it."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> None:
        flat = np.frombuffer(content, dtype.dtype)
        kept = order == "K"  # by numpy 2 for axes in another order
        self.array = flat.reshape(shape).transpose(axes) if kept else flat.reshape(shape, order=order)  # type: ignore[call-overload]


class _Scalar(_Array):
    """A single number of an array."""

    def __init__(self, dtype: Any, content: Any) -> None:
        self.array = np.frombuffer(content, dtype.dtype).reshape(())


class _DType:
    """The type of an array's numbers: a letter with a size, then the order of bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not _PLAIN.fullmatch(code := _text(code)):
            raise ValueError(f"an array of type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))


class _Bytes:
    """Bytes, which protocol 2 of Python 3 writes as text to be encoded."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        if encoding != "latin1":
            raise ValueError(f"bytes as {encoding}")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """None has a state; by this a file cannot give one to the class either."""


_ADMITTED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("builtins", "bytes"): _Bytes,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _Scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ADMITTED:
            raise _Foreign(f"{module}.{name}")
        return _ADMITTED[module, name]


def _plain(tree: Any) -> Any:
    match tree:
        case _Array(array=None):
            raise ValueError("an array without content")
        case _Array():
            return tree.array if tree.array.ndim else tree.array.item()  # type: ignore[union-attr]
        case dict():
            return {_plain(key): _plain(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(_plain(each) for each in tree)
        case bytes():
            return _text(tree)
        case None | bool() | int() | float() | str():
            return tree
    raise ValueError(f"a {type(tree).__name__}")


def _text(text: str | bytes) -> str:
    return text.decode("latin1") if isinstance(text, bytes) else text
