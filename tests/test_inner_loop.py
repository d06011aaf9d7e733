"""Is the gradient what it says it is? Second order is second, first order is first, and they differ."""

from collections.abc import Callable

import pytest
import torch
from conftest import one_task, random_tasks, small_maml
from torch import Tensor

from fewshot.algorithms.maml import MAML
from fewshot.inner_loop import gradient_descent
from fewshot.inner_optimizers import SGD, Adam, InnerOptimizer, Params


def plain(lr: float) -> dict:
    """Gradient descent with one step size."""
    return {"optimizer": SGD(), "lr": lambda given, step: lr}


def meta_gradient(algorithm: MAML, task: int = 0) -> tuple[Tensor, Params]:
    """The meta-loss of one task and its gradient by name."""
    params = dict(algorithm.named_parameters())
    loss, *_ = algorithm.meta_loss(params, one_task(random_tasks(), task))
    return loss, dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_gradient_is_the_finite_difference(norm: str, steps: int) -> None:
    algorithm = small_maml(steps=steps, norm=norm)
    _, gradient = meta_gradient(algorithm)
    torch.manual_seed(1)
    direction = {name: torch.randn_like(g) for name, g in gradient.items()}
    # A step so small that no ReLU or maximum switches on the way: there the meta-loss jumps.
    task, eps, losses = one_task(random_tasks()), 1e-8, []
    for sign in (+1, -1):
        moved = {n: p.detach() + sign * eps * direction[n] for n, p in algorithm.named_parameters()}
        losses.append(algorithm.meta_loss(moved, task)[0].item())
    difference = (losses[0] - losses[1]) / (2 * eps)
    along = sum((gradient[name] * direction[name]).sum().item() for name in gradient)
    assert along == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_gradient_is_the_one_at_the_adapted_weights(steps: int) -> None:
    algorithm, task = small_maml(steps=steps, create_graph=False), one_task(random_tasks())
    _, gradient = meta_gradient(algorithm)
    adapted = {name: p.detach() for name, p in algorithm.named_parameters()}
    for _ in range(steps):  # by hand, with another tool
        leaves = {name: p.clone().requires_grad_() for name, p in adapted.items()}
        loss = algorithm.kind.loss(torch.func.functional_call(algorithm, leaves, (task.support_x,)), task.support_y)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        adapted = {name: p - 0.1 * g for (name, p), g in zip(adapted.items(), grads, strict=True)}
    leaves = {name: p.clone().requires_grad_() for name, p in adapted.items()}
    loss = algorithm.kind.loss(torch.func.functional_call(algorithm, leaves, (task.query_x,)), task.query_y)
    for name, expected in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(gradient[name], expected)


def test_the_two_orders_differ_and_share_the_loss() -> None:
    (loss2, second), (loss1, first) = (meta_gradient(small_maml(create_graph=order)) for order in (True, False))
    torch.testing.assert_close(loss1, loss2)
    gap = sum((second[n] - first[n]).norm() ** 2 for n in second) ** 0.5
    assert gap > 0.05 * sum(second[n].norm() ** 2 for n in second) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_quadratic_with_known_hessian(steps: int) -> None:
    """Support loss a/2 (w − c)², query loss (w − d)²/2: the chain factor of k steps is (1 − lr a)^k."""
    a, c, d, lr = 3.0, 1.0, -2.0, 0.1
    for create_graph in (True, False):
        w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        *_, adapted = gradient_descent(
            lambda p, _, step: a / 2 * (p["w"] - c) ** 2, {"w": w}, steps=steps, create_graph=create_graph, **plain(lr)
        )
        ((adapted["w"] - d) ** 2 / 2).backward()
        shrink = (1 - lr * a) ** steps
        outer = (c + shrink * (0.5 - c)) - d  # derivative of the query loss where the steps arrive
        assert w.grad is not None
        assert w.grad.item() == pytest.approx(outer * (shrink if create_graph else 1.0), rel=1e-12)


def recorded(loss: Tensor, name: str) -> int:
    """How many nodes called `name` the graph of `loss` holds."""
    seen, queue, count = set(), [loss.grad_fn], 0
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        count += node.name().startswith(name)
        queue += [parent for parent, _ in node.next_functions]
    return count


def test_first_order_records_nothing_of_the_inner_loop() -> None:
    convolutions = {}
    for create_graph in (True, False):
        algorithm = small_maml(steps=5, create_graph=create_graph)
        loss, *_ = algorithm.meta_loss(dict(algorithm.named_parameters()), one_task(random_tasks()))
        convolutions[create_graph] = recorded(loss, "Convolution") + recorded(loss, "Bmm")  # that of grey images
    assert convolutions[False] == 4  # the four blocks of the query pass
    assert convolutions[True] > 5 * 4


def loss_of(algorithm: MAML) -> Callable[[Params, None, int], Tensor]:
    task = one_task(random_tasks())
    return lambda p, _, step: algorithm.kind.loss(
        torch.func.functional_call(algorithm, p, (task.support_x,)), task.support_y
    )


@pytest.mark.parametrize("create_graph", [True, False])
def test_no_graph_where_the_caller_wants_none(create_graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is dropped at the end of the step: evaluation would pay for it."""
    algorithm, gradients, grad = small_maml(), [], torch.func.grad

    def watched(loss: Callable[[Params, None, int], Tensor]) -> Callable[[Params, None, int], Params]:
        return lambda params, given, step: gradients.append(grad(loss)(params, given, step)) or gradients[-1]

    monkeypatch.setattr(torch.func, "grad", watched)
    with torch.no_grad():
        *_, adapted = gradient_descent(
            loss_of(algorithm), dict(algorithm.named_parameters()), steps=2, create_graph=create_graph, **plain(0.1)
        )
    assert len(gradients) == 2
    assert not any(tensor.requires_grad for step in [*gradients, adapted] for tensor in step.values())


def test_states_are_the_start_and_one_per_step_and_the_start_is_untouched() -> None:
    algorithm = small_maml()
    params = dict(algorithm.named_parameters())
    before = {name: p.detach().clone() for name, p in params.items()}
    states = list(gradient_descent(loss_of(algorithm), params, steps=3, create_graph=False, **plain(0.1)))
    assert len(states) == 4
    assert states[0] is params
    losses = [loss_of(algorithm)(state, None, 0).item() for state in states]
    assert losses == sorted(losses, reverse=True), "the support loss falls with every step"
    for name, p in algorithm.named_parameters():
        assert torch.equal(p, before[name])
        if not name.endswith(".0.bias"):  # of a convolution: batch norm subtracts it again, its gradient is zero
            assert not torch.equal(states[-1][name], before[name]), f"{name} adapts"


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("optimizer", [SGD(), Adam()], ids=["sgd", "adam"])
def test_recomputed_steps_give_the_same_states_and_the_same_gradient(steps: int, optimizer: InnerOptimizer) -> None:
    """Of every state, by where it started, and by what else the loss depends on."""
    given = {"centre": torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True), "power": torch.tensor(4)}

    def loss(p: Params, given: Params, step: int) -> Tensor:
        return ((p["w"] - given["centre"]) ** given["power"]).sum() * (p["w"].sum() - step) ** 2

    found = []
    for recompute in (False, True):
        w = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        options = dict(steps=steps, optimizer=optimizer, lr=lambda given, step: 0.05, create_graph=True)
        states = list(gradient_descent(loss, {"w": w}, given, **options, recompute=recompute))
        value = sum((n + 1) * (state["w"] ** 3).sum() for n, state in enumerate(states))
        found.append((states, torch.autograd.grad(value, (w, given["centre"]), allow_unused=True)))
    assert len(found[1][0]) == steps + 1
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
