"""The floor that every table should have: the label of the nearest support image, pixel by pixel."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskKind


class Nearest(Algorithm):
    """Nearest neighbour by the cosine of raw pixels; nothing is trained.

    The "Pixels, cosine" row of O. Vinyals et al.: Matching Networks for One Shot Learning, NIPS 2016,
    https://arxiv.org/abs/1606.04080 (41.7 % on Omniglot 5-way 1-shot).

    Args:
        model: unused, so that the command line of every algorithm is the same.
        kind: the task kind, which gives the score.
        task_chunk: tasks answered together; None: all.
    """

    needs_classes = True
    any_way = True

    def __init__(self, model: nn.Module, kind: TaskKind, *, task_chunk: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.task_chunk = task_chunk

    def fit(
        self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Remembers the support set: directions of its images (N*K, C*H*W), and whose each is (N*K, N)."""
        yield F.normalize(support_x.flatten(1), dim=-1), self.kind.encode(support_y, stage)

    def predict(self, fitted: tuple[Tensor, Tensor], query_x: Tensor) -> Tensor:
        """For every query and class, the largest cosine to a support image of that class: (M, N)."""
        directions, classes = fitted
        cosine = F.normalize(query_x.flatten(1), dim=-1) @ directions.T  # (M, N*K)
        return cosine[:, None, :].masked_fill(classes.mT == 0, -torch.inf).amax(-1)
