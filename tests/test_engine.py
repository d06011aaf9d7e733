"""Many tasks at once give what one task at a time gives."""

import os
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import one_task, random_tasks, small_maml

from fewshot import chunks, engine
from fewshot.algorithms.base import Algorithm
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.protonet import ProtoNet
from fewshot.allocation import bytes_of
from fewshot.chunks import in_chunks, refuse_bad_chunk
from fewshot.errors import UserError
from fewshot.models.conv4 import Conv4
from fewshot.tasks import Classification, TaskBatch


def gradients(algorithm: MAML, batch: TaskBatch) -> list[torch.Tensor]:
    algorithm.zero_grad()
    engine.meta_backward(algorithm, batch)
    return [p.grad.clone() for p in algorithm.parameters() if p.grad is not None]


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 100, "auto"])
def test_vectorised_and_chunked_is_one_task_at_a_time(create_graph: bool, norm: str, chunk: int | str | None) -> None:
    algorithm, batch = small_maml(steps=2, create_graph=create_graph, norm=norm), random_tasks(4)
    params = dict(algorithm.named_parameters())
    mean = sum(algorithm.meta_loss(params, one_task(batch, t))[0] for t in range(4)) / 4
    expected = torch.autograd.grad(mean, list(params.values()))
    algorithm.task_chunk = chunk
    found = gradients(algorithm, batch)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradient_is_a_mean_over_tasks() -> None:
    """The same four tasks twice weigh as four: clipping and SGD must not depend on the count."""
    algorithm, batch = small_maml(), random_tasks(4)
    doubled = TaskBatch(*(torch.cat([t, t]) for t in batch))
    for once, twice in zip(gradients(algorithm, batch), gradients(algorithm, doubled), strict=True):
        torch.testing.assert_close(once, twice, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 3, "auto"])
def test_evaluation_is_fit_then_predict(chunk: int | str | None) -> None:
    algorithm, batch = small_maml(steps=3), random_tasks(5)
    algorithm.task_chunk = chunk
    params = dict(algorithm.named_parameters())
    every = engine.evaluate(algorithm, batch, every_state=True)
    assert every.shape == (2, 5, 4)
    for t in range(5):
        task = one_task(batch, t)
        for s, state in enumerate(algorithm.fit(params, task.support_x, task.support_y)):
            predictions = algorithm.predict(state, task.query_x)
            expected = torch.stack(
                [algorithm.kind.loss(predictions, task.query_y), algorithm.kind.score(predictions, task.query_y)]
            )
            torch.testing.assert_close(every[:, t, s], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(engine.evaluate(algorithm, batch), every[..., -1:])


def test_evaluation_takes_its_own_steps_and_keeps_no_graph() -> None:
    algorithm = small_maml(steps=1)
    algorithm.test_inner_steps = 6
    judged = engine.evaluate(algorithm, random_tasks(2), every_state=True)
    assert judged.shape[-1] == 7
    assert engine.evaluate(algorithm, random_tasks(2), stage="train", every_state=True).shape[-1] == 2
    assert not judged.requires_grad
    assert all(p.grad is None for p in algorithm.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_recomputing_gives_the_same_meta_gradient(norm: str, chunk: int | None) -> None:
    algorithm, batch = small_maml(steps=5, norm=norm), random_tasks(4)
    algorithm.task_chunk = chunk
    expected = gradients(algorithm, batch)
    algorithm.recompute = True
    for found, kept in zip(gradients(algorithm, batch), expected, strict=True):
        torch.testing.assert_close(found, kept, rtol=1e-8, atol=1e-12)


def test_recomputing_ten_times_as_many_steps_takes_hardly_more_memory() -> None:
    """An option without which ten times as many steps take ten times the memory."""
    peaks = {}
    for recompute in (False, True):
        for steps in (3, 30):
            algorithm = small_maml(steps=steps)
            algorithm.recompute = recompute
            step = partial(engine.meta_backward, algorithm, random_tasks(2))
            _, peaks[recompute, steps] = bytes_of(step, torch.device("cpu"))
    assert peaks[False, 30] > 7 * peaks[False, 3]
    assert peaks[True, 30] < 1.5 * peaks[True, 3]
    assert peaks[True, 3] < peaks[False, 3]


def automatic(most: int) -> tuple[MAML, list[int], Callable[[TaskBatch], int]]:
    """A learner, and a computation that runs out of memory above so many tasks, with half a gradient added."""
    algorithm, computed = small_maml(), []
    algorithm.task_chunk = "auto"

    def compute(chunk: TaskBatch) -> int:
        tasks = len(chunk.support_y)
        for parameter in algorithm.parameters():
            parameter.grad = (0 if parameter.grad is None else parameter.grad) + torch.full_like(parameter, tasks)
            if tasks > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(tasks)
        return tasks

    return algorithm, computed, compute


def test_a_chunk_that_does_not_fit_is_halved_for_good() -> None:
    algorithm, computed, compute = automatic(most=5)
    assert sum(in_chunks(algorithm, random_tasks(20), compute)) == 20
    assert computed == [1, 4, 4, 4, 4, 3]  # one to measure; 32, 16 and 8 did not fit
    assert all((p.grad == 20).all() for p in algorithm.parameters()), "what failed left half a gradient behind"
    computed.clear()
    in_chunks(algorithm, random_tasks(8), compute)
    assert computed == [4, 4]


def test_memory_says_how_many_tasks_go_at_once(monkeypatch) -> None:
    algorithm, computed, compute = automatic(most=100)
    monkeypatch.setattr(chunks, "bytes_of", lambda compute, device: (compute(), 10))
    monkeypatch.setattr(chunks, "free_bytes", lambda device: 64)
    in_chunks(algorithm, random_tasks(8), compute)
    assert computed == [1, 3, 3, 1]  # half of what is free holds three


def test_one_task_that_does_not_fit_is_told() -> None:
    algorithm, _, compute = automatic(most=1)
    in_chunks(algorithm, random_tasks(4), compute)
    algorithm, _, compute = automatic(most=0)
    with pytest.raises(UserError, match="memory does not hold one task"):
        in_chunks(algorithm, random_tasks(4), compute)


@pytest.mark.parametrize("chunk", [0, -1, "all"])
def test_bad_chunks_are_refused(chunk: int | str) -> None:
    with pytest.raises(UserError, match=f"algo.task_chunk={chunk} must be at least 1, auto, or null"):
        refuse_bad_chunk(chunk)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler here"
)
@pytest.mark.parametrize("name", ["maml", "fomaml", "protonet"])
def test_compiled_is_eager(name: str) -> None:
    """All of a step: the loss, the scores, what was observed, and the meta-gradient."""
    torch.manual_seed(0)
    batch, model = random_tasks(4), Conv4((1, 16, 16), 3, hidden=8).double()
    if name == "protonet":
        algorithm: Algorithm = ProtoNet(model, Classification(3), running_momentum=0.1, task_chunk=2).double()
    else:
        algorithm = small_maml(create_graph=name == "maml")
    results = []
    for compiled in (None, engine.Compiled(algorithm)):
        algorithm.zero_grad()
        outcome = engine.meta_backward(algorithm, batch, compiled=compiled)
        results.append((outcome, [p.grad for p in algorithm.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
