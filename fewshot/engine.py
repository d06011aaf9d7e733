"""From one task to many: the only place where tasks are vectorised, split or looped over.

Algorithms are written for one task. Here the tasks of a meta-batch are adapted together by `torch.vmap`,
a chunk at a time: a chunk's activations fit the caches and bound the memory, and each chunk's part of the
meta-gradient is added up before the next one starts. Any split gives the same sums.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fewshot.algorithms.base import Algorithm, Fitted, Outcome, last
from fewshot.chunks import in_chunks
from fewshot.inner_loop import with_gradient
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskBatch

_IMAGES_AT_ONCE = 256  # where queries are answered one by one

Judge = Callable[[Tensor, Tensor], Tensor]  # predictions and targets of one task -> a number, or several (n,)


def meta_backward(
    algorithm: Algorithm,
    batch: TaskBatch,
    backward: Callable[[Tensor], Any] = torch.autograd.backward,
    *,
    compiled: "Compiled | None" = None,
) -> Outcome:
    """Adds the gradient of the mean meta-loss over the tasks to `.grad` of the algorithm's parameters.

    Args:
        batch: T tasks.
        backward: what differentiates a scalar (`manual_backward` under Lightning).
        compiled: computes a chunk's meta-gradient; None: eagerly.

    Returns:
        The meta-loss and the score of every task, (T,) each, and the mean over the tasks of what they showed;
        all detached.
    """
    params: Params = dict(algorithm.named_parameters())

    def of(chunk: TaskBatch) -> Outcome:
        if compiled is None:
            outcome = _outcomes(algorithm, params, chunk)
            total = outcome.loss.sum()
        else:
            gradients, outcome = compiled(params, chunk)
            total = with_gradient(outcome.loss.sum(), params, gradients)
        backward(total / len(batch.support_y))
        return tree_map(torch.Tensor.detach, outcome)

    parts = in_chunks(algorithm, batch, of)
    joined = tree_map(lambda *chunks: torch.cat(chunks), *parts)
    return joined._replace(observed={name: value.mean(0) for name, value in joined.observed.items()})


class Compiled:
    """The meta-gradient of a chunk of tasks as one function, compiled by `torch.compile`.

    The compiler sees forward, inner gradients and meta-gradient at once, and fuses what lies between convolutions;
    it cannot differentiate what it has compiled a second time, so that all of it must be inside. Values agree
    with the eager step to rounding. The first call takes about a minute, later ones of another size again.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        def total(params: Params, chunk: TaskBatch) -> tuple[Tensor, Outcome]:
            outcome = _outcomes(algorithm, params, chunk)
            return outcome.loss.sum(), outcome

        self._gradient = torch.compile(torch.func.grad(total, has_aux=True), dynamic=False, fullgraph=True)

    def __call__(self, params: Params, chunk: TaskBatch) -> tuple[Params, Outcome]:
        """The gradient of the summed meta-loss, and every task's outcome."""
        detached = {name: value.detach() for name, value in params.items()}
        return self._gradient(detached, chunk)


def count_flops(algorithm: Algorithm, batch: TaskBatch) -> float:
    """Floating-point operations of the meta-gradient of T tasks: those of convolutions and of matrix products, a
    multiplication and an addition counted as two. One task is computed, and nothing but the count is kept."""
    one = TaskBatch(*(tensor[:1] for tensor in batch))
    params = {name: value.detach() for name, value in algorithm.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        torch.func.grad(lambda params: _outcomes(algorithm, params, one).loss.sum())(params)
    return counter.get_total_flops() * len(batch.support_y)


def _outcomes(algorithm: Algorithm, params: Params, chunk: TaskBatch) -> Outcome:
    return torch.vmap(algorithm.meta_loss, in_dims=(None, 0))(params, chunk)


@torch.no_grad()
def evaluate(
    algorithm: Algorithm,
    batch: TaskBatch,
    *,
    stage: Stage = "test",
    every_state: bool | Sequence[int] = False,
    one_by_one: bool = False,
    also: Sequence[Judge] = (),
) -> Tensor:
    """The losses and scores of T tasks, in the fitted states that `fit` goes through.

    Args:
        stage: whose inner steps to take.
        every_state: judge all S states (before learning first); or the S that stand here, by the steps taken, in
            ascending order; otherwise the last one alone, S = 1.
        one_by_one: each query is answered without the others (`predict_one_by_one`).
        also: what else to find out about a task's predictions and targets, besides loss and score.

    Returns:
        (2, T, S): losses, scores; and below them what `also` found, a row for each number: (2 + n, T, S).
    """
    judges = (algorithm.kind.loss, algorithm.kind.score, *also)

    def of(chunk: TaskBatch) -> Tensor:
        kept = _fit(algorithm, chunk, stage, every_state)
        return torch.stack([_judge(algorithm, state, chunk, judges, one_by_one) for state in kept], dim=-1)

    return torch.cat(in_chunks(algorithm, batch, of), dim=1)


@torch.no_grad()
def predict(algorithm: Algorithm, batch: TaskBatch, *, every_state: bool = False) -> Tensor:
    """The predictions for the queries of T tasks, fitted as in a test; `query_y` is not read.

    Returns:
        (T, N*Q, …), of the last state; with `every_state` of all S of them, (S, T, N*Q, …).
    """

    def of(chunk: TaskBatch) -> Tensor:
        kept = _fit(algorithm, chunk, "test", every_state)
        return torch.stack([_predict(algorithm, state, chunk.query_x) for state in kept])

    joined = torch.cat(in_chunks(algorithm, batch, of), dim=1)
    return joined if every_state else joined[0]


@torch.no_grad()
def distributions(algorithm: Algorithm, batch: TaskBatch) -> Tensor | None:
    """What the learner says of its certainty, for the queries of T tasks, fitted as in a test.

    Returns:
        (T, N*Q, …), or None where it says nothing.
    """

    def of(chunk: TaskBatch) -> list[Tensor | None]:
        (fitted,) = _fit(algorithm, chunk, "test", every_state=False)
        return [algorithm.distribution(_row(fitted, task), x) for task, x in enumerate(chunk.query_x)]

    found = [each for part in in_chunks(algorithm, batch, of) for each in part]
    return None if found[0] is None else torch.stack(found)  # type: ignore[arg-type]


@torch.no_grad()
def predict_one_by_one(algorithm: Algorithm, fitted: Fitted, support_x: Tensor, query_x: Tensor) -> Tensor:
    """The predictions for one task's queries, none of which depends on the others: (M, …) -> (M, N).

    Where batch normalisation goes by the batch, each query is answered in the company of the support set alone:
    the "non-transductive" evaluation of A. Nichol, J. Achiam, J. Schulman, On First-Order Meta-Learning Algorithms,
    2018. Inductive algorithms answer as always. A part of the queries at a time, so that memory is bounded.

    Args:
        fitted: what `fit` made of the support set.
    """
    if not algorithm.transductive:
        return torch.cat([algorithm.predict(fitted, part) for part in query_x.split(_IMAGES_AT_ONCE)])

    def answer(query: Tensor) -> Tensor:
        return algorithm.predict(fitted, torch.cat([support_x, query[None]]))[-1]

    together = max(1, _IMAGES_AT_ONCE // (len(support_x) + 1))
    return torch.vmap(answer, chunk_size=together)(query_x)


def _fit(algorithm: Algorithm, batch: TaskBatch, stage: Stage, every_state: bool | Sequence[int]) -> list[Fitted]:
    """All fitted states, some of them, or the last one alone; each a tree of tensors with T in front."""
    params: Params = dict(algorithm.named_parameters())

    def fit(support_x: Tensor, support_y: Tensor) -> list[Fitted]:
        states = algorithm.fit(params, support_x, support_y, stage=stage)
        if isinstance(every_state, bool):
            return list(states) if every_state else [last(states)]
        return [state for step, state in enumerate(states) if step in every_state]

    return torch.vmap(fit)(batch.support_x, batch.support_y)


def _judge(algorithm: Algorithm, fitted: Fitted, batch: TaskBatch, judges: Sequence[Judge], one_by_one: bool) -> Tensor:
    """What is found of each task in one fitted state: (numbers, T)."""
    if one_by_one:
        rows = zip(batch.support_x, batch.query_x, strict=True)
        answers = [predict_one_by_one(algorithm, _row(fitted, task), *x) for task, x in enumerate(rows)]
        predictions = torch.stack(answers)
    else:
        predictions = _predict(algorithm, fitted, batch.query_x)
    found = [torch.vmap(judge)(predictions, batch.query_y) for judge in judges]
    return torch.cat([each.view(len(predictions), -1) for each in found], dim=1).T


def _predict(algorithm: Algorithm, fitted: Fitted, query_x: Tensor) -> Tensor:
    if query_x.is_cuda and not algorithm.ragged:
        return torch.vmap(algorithm.predict)(fitted, query_x)
    # One task's queries fill a CPU; vectorised, every task has weights of its own, and the grouped
    # convolution that results takes twice the time of the plain one.
    return torch.stack([algorithm.predict(_row(fitted, task), x) for task, x in enumerate(query_x)])


def _row(tree: Fitted, index: int) -> Fitted:
    return tree_map(lambda leaf: leaf[index], tree)
