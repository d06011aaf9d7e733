"""Conditional neural process: the support set becomes a vector, and a network answers queries in its light."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased, Headed
from fewshot.algorithms.prototypes import prototypes
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.mlp import MLP
from fewshot.models.parts import embedding_size
from fewshot.tasks import Stage, TaskKind


class CNP(EmbeddingBased):
    """Conditional Neural Process.

    M. Garnelo et al.: Conditional Neural Processes. ICML 2018. https://arxiv.org/abs/1807.01613

    A network encodes every support point with its label; the codes are averaged, in classification those of each
    class by themselves, and another network tells from that and a query how likely every answer is. There is no inner
    loop and no comparison: inference is amortised.

    Differs from the paper in that inputs go through the model's body first, images and numbers alike; in that the
    number of support points is that of the tasks, where the paper varies it in training; and in that the queries alone
    are learned from, where the paper scores the support points as well.

    Args:
        model, kind, …: as in `EmbeddingBased`.
        code: size of a code.
        encoder, decoder: units of the hidden layers of the two networks.
    """

    any_way = False

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        code: int,
        encoder: Sequence[int],
        decoder: Sequence[int],
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        size, outputs = embedding_size(model, type(self).__name__), kind.outputs("train")
        if min(code, *encoder, *decoder, len(encoder), len(decoder)) < 1:
            raise UserError(
                f"algo.code={code}, algo.encoder={list(encoder)} and algo.decoder={list(decoder)} must be one or more "
                "numbers of at least 1"
            )
        networks = {
            "encoder": MLP((size + outputs,), code, hidden=encoder),
            "decoder": MLP((size + kind.group_count("train") * code,), kind.distribution_size("train"), hidden=decoder),
        }
        super().__init__(model, kind, running_momentum=running_momentum, beside=networks, task_chunk=task_chunk)

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The mean codes, of all groups in a row: (groups * code,)."""
        labels = self.kind.encode(support_y, stage).to(embeddings.dtype)
        codes = self.call(params, "encoder", torch.cat([embeddings, labels], dim=1))
        yield prototypes(codes, self.kind.groups(support_y, stage)).flatten()

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """How likely every answer is: (M, D) -> (M, distribution_size)."""
        return self.call(params, "decoder", torch.cat([embeddings, head.expand(len(embeddings), -1)], dim=1))

    def predictions(self, answers: Tensor) -> Tensor:
        """Their expectation."""
        return self.kind.expectation(answers)

    def training_loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The negative log-likelihood."""
        return self.kind.negative_log_likelihood(answers, targets)

    def distribution(self, fitted: Headed, query_x: Tensor) -> Tensor:
        """(M, …) -> (M, distribution_size)."""
        return self.answers(fitted, query_x)
