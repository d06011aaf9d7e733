"""Numbers that are not finite never reach the weights, and do not stop a run by themselves."""

from functools import partial

import pytest
import torch
from conftest import random_tasks, small_maml

from fewshot import engine
from fewshot.algorithms.base import Outcome
from fewshot.algorithms.maml import MAML
from fewshot.bad_tasks import BadTasks
from fewshot.tasks import TaskBatch


def spoiled(batch: TaskBatch, *tasks: int) -> TaskBatch:
    query_x = batch.query_x.clone()
    query_x[list(tasks)] = torch.nan
    return batch._replace(query_x=query_x)


def gradients(algorithm: MAML) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in algorithm.parameters()]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("bad", [[0], [1, 3]])
def test_the_gradient_is_that_of_the_other_tasks(chunk: int | None, bad: list[int]) -> None:
    algorithm, batch, counted = small_maml(), random_tasks(4), BadTasks()
    algorithm.task_chunk = chunk
    backward = partial(engine.meta_backward, algorithm)
    step = counted.gradient(backward, algorithm.parameters(), spoiled(batch, *bad))
    found = gradients(algorithm)
    algorithm.zero_grad()
    others = [task for task in range(4) if task not in bad]
    expected = engine.meta_backward(algorithm, TaskBatch(*(tensor[others] for tensor in batch)))
    torch.testing.assert_close(found, gradients(algorithm), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(step.loss, expected.loss.mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(step.score, expected.score.mean())
    assert (step.bad, step.tasks) == (bad, 4)
    assert (counted.total, counted.in_a_row) == (len(bad), 1)
    assert torch.isfinite(step.norm)


def test_gradients_of_steps_before_do_not_count() -> None:
    algorithm, batch = small_maml(), random_tasks(4)
    backward = partial(engine.meta_backward, algorithm)
    BadTasks().gradient(backward, algorithm.parameters(), batch)
    once = gradients(algorithm)
    BadTasks().gradient(backward, algorithm.parameters(), batch)
    torch.testing.assert_close(gradients(algorithm), once, rtol=0, atol=0)


def test_where_none_is_left_there_is_no_gradient() -> None:
    algorithm, counted = small_maml(), BadTasks()
    step = counted.gradient(
        partial(engine.meta_backward, algorithm), algorithm.parameters(), spoiled(random_tasks(3), 0, 1, 2)
    )
    assert gradients(algorithm) == [None] * len(gradients(algorithm))
    assert step.bad == [0, 1, 2]
    assert all(torch.isnan(value) for value in (step.loss, step.score, step.norm))


def test_a_gradient_that_is_not_finite_is_none() -> None:
    weight, counted = torch.nn.Parameter(torch.zeros(())), BadTasks()

    def backward(batch: TaskBatch) -> Outcome:
        losses = weight.sqrt().expand(len(batch.support_y))  # finite at 0, where its slope is not
        losses.sum().backward()
        return Outcome(losses.detach(), losses.detach(), {"seen": losses.detach()})

    step = counted.gradient(backward, [weight], random_tasks(2))
    assert weight.grad is None
    assert step.observed == {}
    assert step.bad == [0, 1]


def test_where_no_loss_is_finite_a_finite_gradient_is_none_either() -> None:
    weight, counted = torch.nn.Parameter(torch.ones(())), BadTasks()

    def backward(batch: TaskBatch) -> Outcome:
        weight.grad = torch.ones(())
        return Outcome(torch.full((2,), torch.inf), torch.zeros(2), {"seen": torch.ones(2)})

    step = counted.gradient(backward, [weight], random_tasks(2))
    assert weight.grad is None
    assert step.observed == {}
    assert step.bad == [0, 1]


def test_steps_in_a_row_are_counted_anew_after_a_good_one() -> None:
    algorithm, batch, counted = small_maml(), random_tasks(2), BadTasks()
    seen = []
    for bad in ([0], [0, 1], [], [1]):
        counted.gradient(partial(engine.meta_backward, algorithm), algorithm.parameters(), spoiled(batch, *bad))
        seen.append((counted.total, counted.in_a_row))
    assert seen == [(1, 1), (3, 2), (3, 0), (4, 1)]
