"""What the outer loop may be asked for: its step size schedules, and the options that exclude each other."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot.algorithms.base import Algorithm
from fewshot.chunks import refuse_bad_chunk
from fewshot.errors import UserError

SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the outer steps done -> share of the step size
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


def refuse_bad_options(
    algorithm: Algorithm,
    *,
    optimizer: Callable[[Iterable[Tensor]], Optimizer],
    schedule: str,
    grad_clip: float | None,
    compile: bool,
    recompute: bool,
    curve_episodes: int,
) -> None:
    """Refuses arguments of `MetaLearner` that are out of range, without effect, or exclude each other.

    Raises:
        UserError: with the key, its value and what to set instead.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"outer.schedule={schedule} is not one of {', '.join(SCHEDULES)}")
    if grad_clip is not None and not grad_clip > 0:
        raise UserError(f"outer.grad_clip={grad_clip} must be positive, or null for no clipping")
    if curve_episodes < 1:
        raise UserError(f"outer.curve_episodes={curve_episodes} must be at least 1")
    _refuse_bad_optimizer(optimizer)
    refuse_bad_chunk(algorithm.task_chunk)
    if compile and algorithm.anneals:
        raise UserError(
            f"outer.compile=true, but {type(algorithm).__name__} computes something else from step to step, and "
            "would be compiled as often: outer.compile=false"
        )
    if recompute and not getattr(algorithm, "create_graph", False):
        raise UserError(
            f"outer.recompute=true has no effect: {type(algorithm).__name__} keeps nothing of inner steps, or "
            "algo.create_graph=false does not; outer.recompute=false"
        )
    if compile and algorithm.task_chunk == "auto":
        raise UserError("outer.compile=true compiles for chunks of one size: set algo.task_chunk to a number or null")
    if recompute and compile:
        raise UserError("outer.recompute=true and outer.compile=true: one of them; what is compiled decides itself")


def _refuse_bad_optimizer(optimizer: Callable[[Iterable[Tensor]], Optimizer]) -> None:
    """Tried on one weight: otherwise its mistakes show when training begins."""
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"outer.optimizer: {error}") from error
