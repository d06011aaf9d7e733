"""Whether a learner that says how sure it is may be believed: likelihood, and how often the truth lies inside."""

from typing import Any

import torch
from torch import Tensor

from fewshot import engine
from fewshot.algorithms.base import Algorithm
from fewshot.data.task_data import TaskData
from fewshot.evaluation import Scores, interval
from fewshot.tasks import CONFIDENCE_BINS, Classification, Regression

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


def confidence_judges(algorithm: Algorithm) -> tuple[engine.Judge, ...]:
    """What counts how sure a classifier's answers are, in the same pass that scores them; none for all others."""
    kind = algorithm.kind
    return (kind.confidence_bins,) if isinstance(kind, Classification) and algorithm.probabilistic else ()


def reliability(algorithm: Algorithm, evaluated: Scores) -> dict[str, Any]:
    """Whether a classifier is right as often as it says, over all queries of all episodes, for the record.

    C. Guo, G. Pleiss, Y. Sun, K. Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    https://arxiv.org/abs/1706.04599. Bins are the paper's; torchmetrics' `MulticlassCalibrationError` has one more, for
    confidences of exactly 1.

    Returns:
        ece: expected calibration error, the mean distance of a query's bin between confidence and accuracy;
        reliability: `confidence`, `accuracy` and `count` of every bin, None where a bin is empty. Both None where
        predictions are no log-probabilities; empty for regression.
    """
    if not isinstance(algorithm.kind, Classification):
        return {}
    if not evaluated.confidence:
        return {"ece": None, "reliability": None}
    count, confidence, right = torch.stack(evaluated.confidence).sum(1).view(3, CONFIDENCE_BINS)
    ece = (confidence - right).abs().sum() / count.sum()
    means = {"confidence": confidence / count, "accuracy": right / count}
    listed = {
        key: [value if n else None for value, n in zip(values.tolist(), count.tolist(), strict=True)]
        for key, values in means.items()
    }
    return {"ece": ece.item(), "reliability": listed | {"count": count.long().tolist()}}


def _inside(algorithm: Algorithm, told: Tensor, targets: Tensor) -> Tensor:
    """For every task, the share of its targets within each level's interval: (T, levels)."""
    deviation = algorithm.kind.deviation(told)
    assert deviation is not None  # of a regression
    away = ((targets - algorithm.kind.expectation(told)) / deviation).abs()
    levels = torch.tensor(LEVELS, dtype=away.dtype)
    quantiles = torch.special.ndtri((1 + levels) / 2)  # of the standard normal distribution
    return (away.flatten(1)[..., None] <= quantiles).to(torch.float64).mean(1)
