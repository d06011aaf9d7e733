"""Labels of any type as the numbers 0, 1, … of a task, and back."""

import contextlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import UserError


def encode(labels: Any) -> tuple[NDArray[Any], Tensor]:
    """The classes (N,), sorted, and the place of every label among them (M,) int64.

    Args:
        labels: a list, an array or a tensor of strings, numbers or anything that can be a key of a dictionary; of those
            that cannot be compared, the classes stand in the order in which they first appear.

    Raises:
        UserError: labels that are no such list.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    array = np.asarray(array) if hasattr(array, "__array__") else _as_array(array)
    if array.ndim != 1:
        raise UserError(f"labels have shape {array.shape}: every image needs one label, (M,)")
    if array.dtype != object:
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise UserError(f"{int(np.isnan(array).sum())} of {len(array)} labels are nan")
        classes, codes = np.unique(array, return_inverse=True)
        return classes, torch.from_numpy(codes.astype(np.int64))
    return _of_objects(array)


def _as_array(labels: Any) -> NDArray[Any]:
    """Of one type that arrays have, or of objects: NumPy would make text of a number beside text."""
    try:
        listed = [label.item() if isinstance(label, Tensor) and not label.dim() else label for label in labels]
    except TypeError as error:
        raise UserError(f"labels must be a list or an array, not {type(labels).__name__}") from error
    kinds = {type(label) for label in listed}
    if len(kinds) == 1 and issubclass(next(iter(kinds)), str | bool | int | float | np.generic):
        return np.asarray(listed)
    return np.fromiter(listed, dtype=object, count=len(listed))


def _of_objects(array: NDArray[Any]) -> tuple[NDArray[Any], Tensor]:
    try:
        distinct = list(dict.fromkeys(array))
    except TypeError as error:
        raise UserError(f"labels must be strings, numbers or others that can be keys ({error})") from error
    with contextlib.suppress(TypeError):  # of several types
        distinct = sorted(distinct)
    classes = np.fromiter(distinct, dtype=object, count=len(distinct))
    places = {label: place for place, label in enumerate(distinct)}
    return classes, torch.tensor([places[label] for label in array], dtype=torch.int64)
