"""Whether a side computes the meta-gradient at all, which is compared in 64 bits, and how far rounding takes it.

In fewer bits, where a ReLU or a maximum switches by rounding, a few inner steps make another gradient of it: with a
step size of 0.4 two ways to add up the same numbers part by 10 % of the norm.
"""

import copy
import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot.bench.case import Case, PlainNetwork
from fewshot.bench.measure import synchronise
from fewshot.bench.peers import Step, plain_loop
from fewshot.bench.sides import step_of
from fewshot.models.parts import BodyAndHead
from fewshot.tasks import TaskBatch

ALLOWED = 0.05  # of the norm: a library whose derivative is a little off does the same work, and is timed
_TASKS = 2  # are compared in 64 bits


class Agreement(NamedTuple):
    """How far a meta-gradient is from the plain loop's, in shares of its norm."""

    difference: float  # computed in 64 bits
    rounding: float  # in the side's own precision, from the plain loop's in 32 bits


class Reference:
    """The plain loop's meta-gradients of a case, in 64 and in 32 bits.

    Args:
        network: of 32 bits; it is left as it was.
        batch: T tasks, of which two are compared in 64 bits.
    """

    def __init__(self, case: Case, network: BodyAndHead, batch: TaskBatch) -> None:
        self._network = copy.deepcopy(network).double()
        few = TaskBatch(*(tensor[:_TASKS] for tensor in batch))
        self._batch = few._replace(support_x=few.support_x.double(), query_x=few.query_x.double())
        self._case = dataclasses.replace(case, tasks=len(few.support_y))
        loops = plain_loop(PlainNetwork(self._network), self._case), plain_loop(PlainNetwork(network), case)
        self._exact = meta_gradient(loops[0], self._network, self._batch)
        self._rounded = meta_gradient(loops[1], network, batch)

    def agreement(self, name: str, found: Tensor) -> Agreement:
        """Of the side of this name, which found this on all tasks in its own precision."""
        exact = meta_gradient(step_of(name, self._network, self._case), self._network, self._batch)
        return Agreement(_distance(exact, self._exact), _distance(found, self._rounded))


def meta_gradient(step: Step, network: nn.Module, batch: TaskBatch) -> Tensor:
    """What a step adds to no gradient: (parameters,)."""
    network.zero_grad()
    step(batch)
    synchronise()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
