"""Relation networks: how alike a query and a class are is itself learned."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.conv4 import block
from fewshot.tasks import Stage, TaskKind


class RelationNet(EmbeddingBased):
    """Relation Network.

    F. Sung, Y. Yang, L. Zhang, T. Xiang, P. Torr, T. Hospedales: Learning to Compare: Relation Network for Few-Shot
    Learning. CVPR 2018. https://arxiv.org/abs/1711.06025

    The feature maps of a class's support images are added up, laid beside those of a query, and a small network
    says from both how alike they are; it is trained to say 1 for the query's own class and 0 for others.

    Differs from the authors' code in that results are inductive: theirs never leaves training mode, so that batch
    norm shows every query the others of its task (`algo.running_momentum=null` does as theirs). The network's last
    sigmoid is taken in training alone; what is reported as loss in validation is the cross-entropy of what it is
    taken of. Convolutions of the embedding are padded, so its maps are 7×7, not 5×5.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification. Its body ends in maps (C, H, W) of at least 4×4
            (`model.pooled=2`), which it tells as `map_shape`.
        hidden: units between the relation network's maps and its answer.
        norm: its normalisation, as the model's.
    """

    needs_classes = True
    even_shots = True  # maps are added up, not averaged
    probabilistic = False  # each relation is learned by itself, by squared errors

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        hidden: int,
        norm: str,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        if hidden < 1:
            raise UserError(f"algo.hidden={hidden} must be at least 1")
        shape = getattr(model, "map_shape", None)
        if shape is None:
            raise UserError("RelationNet needs a model that tells its map_shape (C, H, W), as model=conv4 does")
        channels, height, width = shape
        if min(height, width) < 4:
            raise UserError(
                f"RelationNet halves maps twice, and these are {height}×{width}: set model.pooled=2 "
                "(model=conv4_maps), or a larger data.image_size"
            )
        relation = nn.Sequential(
            block(2 * channels, channels, norm),
            block(channels, channels, norm),
            nn.Flatten(),
            nn.Linear(channels * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        super().__init__(
            model, kind, running_momentum=running_momentum, beside={"relation": relation}, task_chunk=task_chunk
        )
        self.map_shape = shape

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The sum of each class's maps: (N, D)."""
        yield self.kind.encode(support_y, stage).to(embeddings.dtype).mT @ embeddings

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """How alike every query and every class are: (M, D) -> (M, N)."""
        pairs = (len(embeddings), len(head))
        classes, queries = head[None].expand(*pairs, -1), embeddings[:, None].expand(*pairs, -1)
        both = torch.cat([part.reshape(-1, *self.map_shape) for part in (classes, queries)], dim=1)
        return self.call(params, "relation", both).view(pairs)

    def training_loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of the relations, as in the paper."""
        return F.mse_loss(answers.sigmoid(), self.kind.encode(targets, "train").to(answers.dtype))
