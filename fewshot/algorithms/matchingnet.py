"""Matching networks: a query's label is the attention-weighted mean of the support labels."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.parts import embedding_size
from fewshot.models.recurrent import LSTMCell
from fewshot.tasks import Stage, TaskKind


class Support(NamedTuple):
    """A task's support set."""

    keys: Tensor  # (N*K, D)
    classes: Tensor  # (N*K, N), one-hot


class MatchingNet(EmbeddingBased):
    """Matching Networks.

    O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra: Matching Networks for One Shot Learning.
    NIPS 2016. https://arxiv.org/abs/1606.04080

    A query attends to the support images by the softmax of its embedding's cosines to theirs, and its class
    probabilities are their labels, weighted so. With full context embeddings the support images are read one after
    the other in both directions, and a query looks `processing_steps` times at all of them (the paper's appendix A).

    Differs from the paper in that cosines are multiplied by `scale` before the softmax, learned: at the paper's 1 no
    class of five can be more probable than 0.65.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
        scale: of the cosines, at the start.
        processing_steps: looks of a query at the support set; 0: no context, images are embedded by themselves.
    """

    needs_classes = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        scale: float,
        processing_steps: int = 0,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        size = embedding_size(model, type(self).__name__)
        inputs = {"forth": size, "back": size, "look": 2 * size}  # a look takes in what the last one found
        cells = {name: LSTMCell(width, size) for name, width in inputs.items()} if processing_steps else {}
        super().__init__(model, kind, running_momentum=running_momentum, beside=cells, task_chunk=task_chunk)
        if not scale > 0:
            raise UserError(f"algo.scale={scale} must be positive")
        if processing_steps < 0:
            raise UserError(f"algo.processing_steps={processing_steps} must be at least 0")
        self.processing_steps = processing_steps
        self.ordered = processing_steps > 0
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Support]:
        """The support set, in context if so asked."""
        keys = self._read(params, embeddings) if self.processing_steps else embeddings
        yield Support(keys, self.kind.encode(support_y, stage).to(keys.dtype))

    def answer(self, params: Params, head: Support, embeddings: Tensor) -> Tensor:
        """Log-probabilities: (M, D) -> (M, N)."""
        queries = self._look(params, embeddings, head.keys) if self.processing_steps else embeddings
        cosines = F.normalize(queries, dim=-1) @ F.normalize(head.keys, dim=-1).mT
        attention = (params["scale"] * cosines).log_softmax(-1)  # (M, N*K)
        return (attention[:, :, None] + head.classes.log()).logsumexp(1)

    def _read(self, params: Params, embeddings: Tensor) -> Tensor:
        """Each support image in the light of those before and after it: (N*K, D) -> (N*K, D)."""
        forth = self._one_by_one(params, "forth", embeddings)
        back = self._one_by_one(params, "back", embeddings.flip(0)).flip(0)
        return embeddings + forth + back

    def _one_by_one(self, params: Params, name: str, sequence: Tensor) -> Tensor:
        state = (torch.zeros_like(sequence[:1]), torch.zeros_like(sequence[:1]))
        seen = []
        for element in sequence.split(1):
            state = self.call(params, name, element, state)
            seen.append(state[0])
        return torch.cat(seen)

    def _look(self, params: Params, embeddings: Tensor, keys: Tensor) -> Tensor:
        """Each query in the light of the support set, and of no other query: (M, D) -> (M, D)."""
        hidden, cell = torch.zeros_like(embeddings), torch.zeros_like(embeddings)
        for _ in range(self.processing_steps):
            read = (hidden @ keys.mT).softmax(-1) @ keys
            hidden, cell = self.call(params, "look", torch.cat([embeddings, read], dim=-1), (hidden, cell))
            hidden = hidden + embeddings
        return hidden
