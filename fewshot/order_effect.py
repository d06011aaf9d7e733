"""How much a learner's answers depend on the order in which it was shown the support set."""

from typing import Any

import torch

from fewshot import engine
from fewshot.algorithms.base import Algorithm
from fewshot.data.task_data import TaskData
from fewshot.tasks import Classification, TaskBatch

_BLOCKS = 4  # of the fixed test tasks, 32 each


def order_effect(algorithm: Algorithm, data: TaskData) -> dict[str, Any]:
    """Of classifiers that read the support set one after the other, for the record; empty for all others.

    Returns:
        order_effect: over `episodes`, the mean score with the support set as drawn and `reversed`, and the share of
        queries that are answered differently.
    """
    if not (algorithm.ordered and isinstance(algorithm.kind, Classification)):
        return {}
    drawn, turned, changed = [], [], []
    for block in data.blocks("test")[:_BLOCKS]:
        batch = data.task_batch("test", block)
        ways = (batch, batch._replace(support_x=batch.support_x.flip(1), support_y=batch.support_y.flip(1)))
        scores, answers = zip(*(_scored(algorithm, way) for way in ways), strict=True)
        drawn.append(scores[0])
        turned.append(scores[1])
        changed.append((answers[0] != answers[1]).float().mean(1))
    means = [torch.cat(values).double().mean().item() for values in (drawn, turned, changed)]
    episodes = sum(map(len, drawn))
    return {"order_effect": dict(zip(("as_drawn", "reversed", "changed"), means, strict=True), episodes=episodes)}


def _scored(algorithm: Algorithm, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Score of every task (T,) and class of every query (T, M)."""
    predictions = engine.predict(algorithm, batch)
    return torch.vmap(algorithm.kind.score)(predictions, batch.query_y), predictions.argmax(-1)
