"""The inner optimisers take the steps of torch.optim, and a gradient passes through them."""

import pytest
import torch
from torch import Tensor

from fewshot.errors import UserError
from fewshot.inner_loop import gradient_descent, with_gradient
from fewshot.inner_optimizers import SGD, Adam, InnerOptimizer, Params

PAIRS = {
    "sgd": (SGD(), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (SGD(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam of reptile": (Adam(beta1=0.0), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999))),
}


def start() -> Params:
    return {"a": torch.tensor([1.0, -2.0], dtype=torch.float64), "b": torch.tensor([[0.5]], dtype=torch.float64)}


def loss(params: Params, given: None = None, step: int = 0) -> Tensor:
    """Not the same for all weights, so that no two gradients are alike."""
    return (params["a"] ** 4).sum() + (params["b"] * params["a"].sum() - 1).square().sum()


def descend(optimizer: InnerOptimizer, params: Params, steps: int = 5, *, create_graph: bool = False) -> list[Params]:
    return list(
        gradient_descent(
            loss, params, steps=steps, optimizer=optimizer, lr=lambda given, step: 0.1, create_graph=create_graph
        )
    )


@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_those_of_torch(name: str) -> None:
    ours, theirs = PAIRS[name]
    states = descend(ours, start())
    params = {key: value.clone().requires_grad_() for key, value in start().items()}
    optimizer = theirs(list(params.values()))
    for state in states[1:]:
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
        for key, value in params.items():
            # Adam's ε stands in another place, which shows where a gradient is small.
            torch.testing.assert_close(state[key], value.detach(), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam(), SGD(clip=0.5)], ids=["momentum", "adam", "clip"])
def test_a_gradient_passes_through_the_steps(optimizer: InnerOptimizer) -> None:
    """Finite differences of the loss after three steps, by where they started."""

    def after(a: Tensor) -> Tensor:
        return loss(descend(optimizer, start() | {"a": a}, 3, create_graph=True)[-1])

    assert torch.autograd.gradcheck(after, start()["a"].requires_grad_())


@pytest.mark.parametrize("optimizer", [SGD(clip=1.0), Adam(), SGD(momentum=0.5)], ids=["clip", "adam", "momentum"])
def test_a_gradient_of_zero_gives_no_nan(optimizer: InnerOptimizer) -> None:
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    *_, last = gradient_descent(
        lambda p, given, step: (p["w"] ** 3).sum(),
        {"w": w},
        steps=2,
        optimizer=optimizer,
        lr=lambda given, step: 0.1,
        create_graph=True,
    )
    (last["w"] + 1).sum().backward()
    assert torch.isfinite(w.grad).all()


def test_clipping_bounds_the_step_over_all_tensors() -> None:
    before, after = descend(SGD(clip=0.5), start(), 1)
    moved = torch.cat([(after[key] - before[key]).flatten() for key in before])
    assert moved.norm().item() == pytest.approx(0.1 * 0.5)
    free, loose = descend(SGD(), start(), 1)[1], descend(SGD(clip=1e9), start(), 1)[1]
    torch.testing.assert_close(free, loose)


def test_a_step_size_of_its_own_for_every_weight() -> None:
    rates = {"a": torch.tensor([0.0, 0.1], dtype=torch.float64), "b": torch.tensor(0.0, dtype=torch.float64)}
    before, after = gradient_descent(
        loss, start(), steps=1, optimizer=SGD(), lr=lambda given, step: rates, create_graph=False
    )
    assert torch.equal(before["b"], after["b"])
    assert (before["a"] == after["a"]).tolist() == [True, False]


def test_a_gradient_may_be_said() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    value = with_gradient((w**2).sum(), {"w": w}, {"w": torch.tensor([7.0, -1.0])})
    assert value.item() == 5.0
    value.backward()
    assert w.grad.tolist() == [7.0, -1.0]


def test_refusals() -> None:
    for make, message in (
        (lambda: SGD(momentum=1.0), "momentum=1.0 must be at least 0 and below 1"),
        (lambda: SGD(clip=0.0), "clip=0.0 must be positive"),
        (lambda: Adam(beta2=1.0), "beta2=1.0 must be at least 0 and below 1"),
    ):
        with pytest.raises(UserError, match=message):
            make()
