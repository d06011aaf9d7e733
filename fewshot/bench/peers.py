"""The same outer step by other libraries, each used as its documentation says.

A peer is a function of (network, case) that returns a step: a function of a batch which adds the meta-gradient to
`.grad` of the network's parameters. Importing a peer is part of it, so that one which is missing can be named and
left out.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fewshot.bench.case import Case, PlainNetwork
from fewshot.inner_optimizers import Params
from fewshot.tasks import TaskBatch

Step = Callable[[TaskBatch], None]


class NotOffered(Exception):
    """What a peer cannot do."""


def plain_loop(network: PlainNetwork, case: Case) -> Step:
    """One task after another, by `torch.autograd.grad`."""
    params: Params = dict(network.named_parameters())

    def step(batch: TaskBatch) -> None:
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            fast = params
            for _ in range(case.inner_steps):
                loss = F.cross_entropy(functional_call(network, fast, (support_x,)), support_y)
                gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=case.create_graph)
                fast = {name: v - case.inner_lr * g for (name, v), g in zip(fast.items(), gradients, strict=True)}
            loss = F.cross_entropy(functional_call(network, fast, (query_x,)), query_y)
            (loss / len(batch.support_y)).backward()

    return step


def higher(network: PlainNetwork, case: Case) -> Step:
    """E. Grefenstette et al.: Generalized Inner Loop Meta-Learning, 2019. Package `higher`.

    First order, its fast weights are cut off from the start; their gradient is put there by hand.
    """
    from higher import innerloop_ctx

    optimizer, params = torch.optim.SGD(network.parameters(), lr=case.inner_lr), list(network.parameters())

    def step(batch: TaskBatch) -> None:
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            options = dict(copy_initial_weights=False, track_higher_grads=case.create_graph)
            with innerloop_ctx(network, optimizer, **options) as (fast, inner):
                for _ in range(case.inner_steps):
                    inner.step(F.cross_entropy(fast(support_x), support_y))
                loss = F.cross_entropy(fast(query_x), query_y) / len(batch.support_y)
                if case.create_graph:
                    loss.backward()
                else:
                    _add(params, torch.autograd.grad(loss, list(fast.parameters())))

    return step


def torchopt(network: PlainNetwork, case: Case) -> Step:
    """J. Ren et al.: TorchOpt: An Efficient Library for Differentiable Optimization, JMLR 2023. Package `torchopt`."""
    import torchopt as library

    if not case.create_graph:
        raise NotOffered("no first order")
    inner = library.MetaSGD(network, lr=case.inner_lr)

    def step(batch: TaskBatch) -> None:
        start, blank = (library.extract_state_dict(part, by="reference") for part in (network, inner))
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            try:  # or the network, which all sides share, would keep adapted weights
                for _ in range(case.inner_steps):
                    inner.step(F.cross_entropy(network(support_x), support_y))
                (F.cross_entropy(network(query_x), query_y) / len(batch.support_y)).backward()
            finally:
                library.recover_state_dict(network, start)
                library.recover_state_dict(inner, blank)

    return step


def learn2learn(network: PlainNetwork, case: Case) -> Step:
    """S. Arnold et al.: learn2learn: A Library for Meta-Learning Research, 2020. Package `learn2learn`."""
    from learn2learn.algorithms import MAML

    maml = MAML(network, lr=case.inner_lr, first_order=not case.create_graph)

    def step(batch: TaskBatch) -> None:
        for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
            learner = maml.clone()
            for _ in range(case.inner_steps):
                learner.adapt(F.cross_entropy(learner(support_x), support_y))
            (F.cross_entropy(learner(query_x), query_y) / len(batch.support_y)).backward()

    return step


def parallel_metalearn(network: PlainNetwork, case: Case) -> Step:
    """A. Razani: Parallel-MetaLearn, 2026. Package `parallel-metalearn`: all tasks at once, as here."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy
    from metalearn.model_wrappers import MAML_Model

    model = MAML_Model(backbone=_Unaware(network.body), head=_Unaware(network.head))
    maml = MAML(
        model=model,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),  # it steps by itself: by nothing
        inner_optimizer=InnerSGD(
            model.get_fast_weights(), first_order=not case.create_graph, inner_lr=case.inner_lr, learn_lr=False
        ),
        support_loss_fn=CrossEntropy(metric_fn=CategoricalAccuracy()),
        inner_steps=case.inner_steps,
        chunk_size=case.tasks,
        device=next(network.parameters()).device,
    )

    def step(batch: TaskBatch) -> None:
        labels = [{"labels": y} for y in (batch.support_y, batch.query_y)]
        maml.step(iter([(batch.support_x, labels[0], batch.query_x, labels[1])]), training=True)

    return step


class _Unaware(nn.Module):
    """A module that is told more than it wants to know."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, **told: object) -> torch.Tensor:
        return self.module(x)


def _add(params: list[nn.Parameter], gradients: tuple[torch.Tensor, ...]) -> None:
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
