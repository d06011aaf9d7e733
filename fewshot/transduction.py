"""What batch normalisation goes by when a learner is tested, and so whether its answers know of each other."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fewshot.algorithms.base import Algorithm
from fewshot.errors import UserError
from fewshot.models.running_statistics import RunningStatistics
from fewshot.outer import MetaLearner

_BOTH = ("transductive", "inductive")


def ways_to_test(algorithm: Algorithm, wanted: str) -> list[str]:
    """In which ways a learner is tested, the one that the result's mean is of last.

    Args:
        wanted: "trained": as the learner is; "transductive": by the batch of the queries; "inductive": each query
            without the others; "both". A learner without batch normalisation is inductive in any case.

    Raises:
        UserError: it cannot be transductive.
    """
    own = way_of(algorithm)
    by_batch = any(isinstance(module, nn.BatchNorm2d) for module in algorithm.modules())
    if wanted == "transductive" and not by_batch:
        raise UserError(
            f"normalization=transductive, but this {type(algorithm).__name__} has no batch normalisation, by which "
            "answers would know of each other: leave it out"
        )
    if wanted == "both" and by_batch:
        return sorted(_BOTH, key=own.__eq__)
    return [wanted if wanted in _BOTH else own]


def way_of(algorithm: Algorithm) -> str:
    """Of a learner as it is."""
    return "transductive" if algorithm.transductive else "inductive"


@contextmanager
def normalized(learner: MetaLearner, way: str) -> Iterator[None]:
    """The learner, tested in this way: without the running statistics that it keeps, or query by query."""
    own = way_of(learner.algorithm)
    kept = [module for module in learner.modules() if isinstance(module, RunningStatistics)]
    learner.one_by_one = own == "transductive" and way == "inductive"
    for statistics in kept:
        statistics.muted = own == "inductive" and way == "transductive"
    try:
        yield
    finally:
        learner.one_by_one = False
        for statistics in kept:
            statistics.muted = False
