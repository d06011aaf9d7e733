"""All that is compared, by name: our engine in four ways, and other libraries."""

from collections.abc import Callable

import torch
from torch import nn

from fewshot import engine
from fewshot.algorithms.maml import MAML
from fewshot.bench import peers
from fewshot.bench.case import Case, PlainNetwork
from fewshot.bench.jax_twin import jax_twin
from fewshot.models.parts import BodyAndHead
from fewshot.tasks import Classification, TaskBatch

OURS = {  # name -> compiled, bfloat16
    "ours": (False, False),
    "compiled": (True, False),
    "bf16": (False, True),
    "compiled_bf16": (True, True),
}
PEERS: dict[str, Callable[[PlainNetwork, Case], peers.Step]] = {
    "loop": peers.plain_loop,
    "higher": peers.higher,
    "torchopt": peers.torchopt,
    "learn2learn": peers.learn2learn,
    "parallel_metalearn": peers.parallel_metalearn,
    "jax": jax_twin,
}


def step_of(name: str, network: BodyAndHead, case: Case) -> peers.Step:
    """The step of this name, on the parameters of a network of ours."""
    if name in OURS:
        compiled, bf16 = OURS[name]
        return ours(case, network, compiled=compiled, bf16=bf16)
    return PEERS[name](PlainNetwork(network), case)


def ours(case: Case, network: nn.Module, *, compiled: bool = False, bf16: bool = False) -> peers.Step:
    """A step by our engine."""
    algorithm = maml(case, network)
    whole = engine.Compiled(algorithm) if compiled else None
    device = next(network.parameters()).device.type

    def step(batch: TaskBatch) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            engine.meta_backward(algorithm, batch, compiled=whole)

    return step


def maml(case: Case, network: nn.Module, *, eval_inner_steps: int | None = None) -> MAML:
    """The algorithm that a case is timed with."""
    return MAML(
        network,
        Classification(case.n_way),
        inner_steps=case.inner_steps,
        eval_inner_steps=eval_inner_steps or case.inner_steps,
        inner_lr=case.inner_lr,
        create_graph=case.create_graph,
        task_chunk=32,  # as conf/algo/maml.yaml
    )
