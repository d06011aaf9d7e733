"""SNAIL: the support set and a query are one sequence, read by causal convolutions and attention."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.parts import embedding_size
from fewshot.models.temporal import CausalAttention, TemporalConvolution
from fewshot.tasks import Stage, TaskKind


class SNAIL(EmbeddingBased):
    """Simple Neural Attentive Meta-Learner.

    N. Mishra, M. Rohaninejad, X. Chen, P. Abbeel: A Simple Neural Attentive Meta-Learner. ICLR 2018.
    https://arxiv.org/abs/1707.03141

    The support images with their labels, then one query without, are a sequence; convolutions gather what came before,
    attention picks from it, and the answer is read off at the last place. Every query is a sequence of its own.

    Differs from the paper in that the embedding is the body's, without the layer of 64 units that follows it there;
    and in what `TemporalConvolution` says of dilations.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
        k_shot: support images of a class, over all of which the convolutions reach.
        filters: that each convolution adds.
        keys, values: sizes of the three attention blocks.
    """

    needs_classes = True
    any_way = False
    ordered = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        k_shot: int,
        filters: int,
        keys: Sequence[int],
        values: Sequence[int],
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        if min(k_shot, filters, *keys, *values) < 1 or not len(keys) == len(values) == 3:
            raise UserError(
                f"algo.k_shot={k_shot}, algo.filters={filters}, algo.keys={list(keys)} and algo.values={list(values)} "
                "must be at least 1, keys and values three each"
            )
        n_way = kind.outputs("train")
        layers: list[nn.Module] = []
        size = embedding_size(model, type(self).__name__) + n_way
        for block in range(3):
            attention = CausalAttention(size, keys[block], values[block])
            layers.append(attention)
            size = attention.outputs
            if block < 2:
                convolution = TemporalConvolution(size, filters, n_way * k_shot + 1)
                layers.append(convolution)
                size = convolution.outputs
        network = nn.Sequential(*layers, nn.Linear(size, n_way))
        super().__init__(
            model, kind, running_momentum=running_momentum, beside={"network": network}, task_chunk=task_chunk
        )

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The support images with their labels: (N*K, D + N)."""
        yield torch.cat([embeddings, self.kind.encode(support_y, stage).to(embeddings.dtype)], dim=1)

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """What stands at the end of each query's sequence: (M, D) -> (M, N)."""
        queries = F.pad(embeddings, (0, head.shape[1] - embeddings.shape[1]))[:, None]  # no label: zeros
        sequences = torch.cat([head.expand(len(queries), *head.shape), queries], dim=1)
        return self.call(params, "network", sequences)[:, -1]
