"""A memory-augmented network: it reads the support set, one labelled image after the other, and remembers."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.memory.network import MEMORIES, MemoryNetwork, NetworkState
from fewshot.models.parts import embedding_size
from fewshot.tasks import Stage, TaskKind


class Remembered(NamedTuple):
    """What a task leaves."""

    mean: Tensor  # (D,), of the support set's embeddings
    state: NetworkState  # after the last of them


class MANN(EmbeddingBased):
    """Memory-Augmented Neural Network.

    A. Santoro, S. Bartunov, M. Botvinick, D. Wierstra, T. Lillicrap: Meta-Learning with Memory-Augmented Neural
    Networks. ICML 2016. https://proceedings.mlr.press/v48/santoro16.html

    A recurrent controller takes in the support images with their labels and writes to an external memory; then each
    query comes without a label, and the answer is read from there. Every task starts with a blank memory.

    Differs from the paper in that images are embedded by the model's body, not seen as pixels, and that of each
    embedding the mean of the support set's is taken off, and the rest brought to variance 1: what all have in common
    hides from an untrained controller by what they differ;
    a label comes with its image, not one step after; what is learned from are the queries alone (after K shots: the
    K + 1-th presentation), each of which finds the memory as the support set left it; and other memories can take the
    place of the paper's.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
        memory: "lrua", the paper's; "ntm", the Neural Turing Machine's; "dnc", the Differentiable Neural Computer's.
        slots, width, read_heads: of the memory.
        hidden: units of the controller.
    """

    needs_classes = True
    any_way = False
    ordered = True
    network: MemoryNetwork

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        memory: str,
        slots: int,
        width: int,
        read_heads: int,
        hidden: int,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        if memory not in MEMORIES:
            raise UserError(f"algo.memory={memory} is not one of {', '.join(MEMORIES)}")
        if hidden < 1:
            raise UserError(f"algo.hidden={hidden} must be at least 1")
        size, n_way = embedding_size(model, type(self).__name__), kind.outputs("train")
        network = MemoryNetwork(size + n_way, n_way, memory=MEMORIES[memory](slots, width, read_heads), hidden=hidden)
        super().__init__(
            model, kind, running_momentum=running_momentum, beside={"network": network}, task_chunk=task_chunk
        )

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Remembered]:
        """What is remembered of the support set."""
        mean = embeddings.mean(0)
        embeddings = _standard(embeddings - mean)
        labels = self.kind.encode(support_y, stage).to(embeddings.dtype)
        state = self.network.blank(embeddings[:1])
        for shown in torch.cat([embeddings, labels], dim=1).split(1):
            _, state = self.call(params, "network", shown, state)
        yield Remembered(mean, state)

    def answer(self, params: Params, head: Remembered, embeddings: Tensor) -> Tensor:
        """Each query by itself, from the same memory: (M, D) -> (M, N)."""
        embeddings = _standard(embeddings - head.mean)
        unlabelled = embeddings.new_zeros((len(embeddings), self.kind.outputs("train")))
        state = tree_map(lambda value: value.expand(len(embeddings), *value.shape[1:]), head.state)
        logits, _ = self.call(params, "network", torch.cat([embeddings, unlabelled], dim=1), state)
        return logits


def _standard(embeddings: Tensor) -> Tensor:
    """Each (D,) to mean 0 and variance 1."""
    return F.layer_norm(embeddings, embeddings.shape[-1:])
