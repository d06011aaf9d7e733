"""How many tasks are computed together: as many as asked for, or as memory holds."""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm
from fewshot.allocation import bytes_of, free_bytes
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch

Found = TypeVar("Found")

_MOST_ON_A_CPU = 32  # tasks; more at once are slower there: they leave the caches
_SHARE = 0.5  # of the free memory that a chunk may take: fragments and other programs take some, too

# What "auto" has found, by what was computed: with gradients or without, of tasks of this size.
_found: WeakKeyDictionary[Algorithm, dict[tuple[object, ...], int]] = WeakKeyDictionary()


def refuse_bad_chunk(task_chunk: int | str | None) -> None:
    """A number of tasks, "auto" or none."""
    whole = isinstance(task_chunk, int) and not isinstance(task_chunk, bool)
    if task_chunk not in (None, "auto") and not (whole and task_chunk >= 1):  # type: ignore[operator]
        raise UserError(f"algo.task_chunk={task_chunk} must be at least 1, auto, or null for all tasks at once")


def in_chunks(algorithm: Algorithm, batch: TaskBatch, compute: Callable[[TaskBatch], Found]) -> list[Found]:
    """What is computed of a batch, a chunk of its tasks at a time.

    With `algo.task_chunk=auto` the first task is computed alone and its memory measured, the others as many at
    once as fit what is free. On a GPU a chunk that does not fit after all is computed in halves, from then on; a CPU's
    system ends the process instead.

    Args:
        compute: of a chunk; may add to the gradients of the algorithm's parameters.
    """
    tasks = len(batch.support_y)
    if algorithm.task_chunk == "auto":
        return _as_memory_holds(algorithm, batch, compute)
    size = algorithm.task_chunk or tasks
    assert isinstance(size, int)
    return [compute(_part(batch, start, size)) for start in range(0, tasks, size)]


def _as_memory_holds(algorithm: Algorithm, batch: TaskBatch, compute: Callable[[TaskBatch], Found]) -> list[Found]:
    sizes = _found.setdefault(algorithm, {})
    key = (torch.is_grad_enabled(), *(tensor.shape[1:] for tensor in batch))
    found, start = [], 0
    if key not in sizes:
        result, sizes[key] = _measured(_part(batch, 0, 1), compute)
        found, start = [result], 1
    while start < len(batch.support_y):
        chunk = _part(batch, start, sizes[key])
        before, failed = _gradients(algorithm), ""
        try:
            found.append(compute(chunk))
        except torch.OutOfMemoryError as error:
            failed = str(error)
        if not failed:
            start += len(chunk.support_y)
            continue
        # Outside the `except`: the error held what the failed chunk had computed.
        if len(chunk.support_y) == 1:
            raise _too_little(failed)
        sizes[key] = len(chunk.support_y) // 2
        _put_back(algorithm, before)
        torch.cuda.empty_cache()
    return found


def _measured(one: TaskBatch, compute: Callable[[TaskBatch], Found]) -> tuple[Found, int]:
    """What is computed of one task, and how many such fit what is free."""
    device = one.support_x.device
    try:
        result, taken = bytes_of(lambda: compute(one), device)
    except torch.OutOfMemoryError as error:
        raise _too_little(str(error)) from error
    fitting = max(1, int(_SHARE * free_bytes(device) / max(taken, 1)))
    return result, fitting if device.type == "cuda" else min(fitting, _MOST_ON_A_CPU)


def _too_little(message: str) -> UserError:
    return UserError(f"memory does not hold one task ({message.splitlines()[0]}): fewer images, or a smaller model")


def _part(batch: TaskBatch, start: int, size: int) -> TaskBatch:
    return TaskBatch(*(tensor[start : start + size] for tensor in batch))


def _gradients(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def _put_back(module: nn.Module, gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient
