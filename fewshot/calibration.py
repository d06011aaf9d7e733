"""Whether a learner that says how sure it is may be believed: likelihood, and how often the truth lies inside."""

from typing import Any

import torch
from torch import Tensor

from fewshot import engine
from fewshot.algorithms.base import Algorithm
from fewshot.data.task_data import TaskData
from fewshot.evaluation import interval
from fewshot.tasks import Regression

LEVELS = tuple(level / 10 for level in range(1, 10))


def calibration(algorithm: Algorithm, data: TaskData) -> dict[str, Any]:
    """Over all test tasks, for the record; empty where the learner gives no standard deviations.

    Returns:
        nll, nll_ci95: mean negative log-likelihood of a query (nats) and half its 95 % interval over episodes;
        calibration: `expected`, shares of probability in the middle of a prediction, and `observed`, the shares of
        targets that lie there. A learner that is right about itself has them equal.
    """
    if not isinstance(algorithm.kind, Regression):
        return {}
    likelihoods, inside = [], []
    for block in data.blocks("test"):
        batch = data.task_batch("test", block)
        told = engine.distributions(algorithm, batch)
        if told is None:
            return {}
        likelihoods += [algorithm.kind.negative_log_likelihood(d, y) for d, y in zip(told, batch.query_y, strict=True)]
        inside.append(_inside(algorithm, told, batch.query_y))
    nll, ci95 = interval(torch.stack(likelihoods))
    observed = torch.cat(inside).mean(0).tolist()
    return {"nll": nll, "nll_ci95": ci95, "calibration": {"expected": list(LEVELS), "observed": observed}}


def _inside(algorithm: Algorithm, told: Tensor, targets: Tensor) -> Tensor:
    """For every task, the share of its targets within each level's interval: (T, levels)."""
    deviation = algorithm.kind.deviation(told)
    assert deviation is not None  # of a regression
    away = ((targets - algorithm.kind.expectation(told)) / deviation).abs()
    levels = torch.tensor(LEVELS, dtype=away.dtype)
    quantiles = torch.special.ndtri((1 + levels) / 2)  # of the standard normal distribution
    return (away.flatten(1)[..., None] <= quantiles).to(torch.float64).mean(1)
