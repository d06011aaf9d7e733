"""Prototypical networks: the class whose mean embedding is nearest."""

from collections.abc import Iterator

from torch import Tensor

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.algorithms.prototypes import prototypes
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage


class ProtoNet(EmbeddingBased):
    """Prototypical Networks.

    J. Snell, K. Swersky, R. Zemel: Prototypical Networks for Few-shot Learning. NIPS 2017.
    https://arxiv.org/abs/1703.05175

    A class is the mean of its support embeddings, and a query's logits are its negative squared distances to them.
    Training tasks have more ways than those of testing (`data.train_n_way`).

    Differs from the authors' code in nothing but what `EmbeddingBased` says of running statistics; their protocol is
    `data.quarter_turns=true data.train_n_way=60 data.q_query=5 data.meta_batch_size=1`.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
    """

    needs_classes = True

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The prototypes (N, D)."""
        yield prototypes(embeddings, self.kind.encode(support_y, stage))

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """Negative squared distances (M, N), each row up to the same constant: (M, D) -> (M, N)."""
        return 2 * embeddings @ head.mT - head.square().sum(1)
