"""The floor that every table should have: the label of the nearest support image, pixel by pixel."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm, Stage
from fewshot.inner_optimizers import Params
from fewshot.tasks import TaskKind


class Nearest(Algorithm):
    """Nearest neighbour by the cosine of raw pixels; nothing is trained.

    The "Pixels, cosine" row of O. Vinyals et al.: Matching Networks for One Shot Learning, NIPS 2016,
    https://arxiv.org/abs/1606.04080 (41.7 % on Omniglot 5-way 1-shot).

    Args:
        model: unused, so that the command line of every algorithm is the same.
        kind: the task kind, which gives the score.
        n_way: number of classes N of a task.
        task_chunk: tasks answered together; None: all.
    """

    needs_classes = True

    def __init__(self, model: nn.Module, kind: TaskKind, *, n_way: int, task_chunk: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.n_way = n_way
        self.task_chunk = task_chunk

    def fit(
        self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Remembers the support set: directions of its images (M, C*H*W) and its labels (M,)."""
        yield F.normalize(support_x.flatten(1), dim=-1), support_y

    def predict(self, fitted: tuple[Tensor, Tensor], query_x: Tensor) -> Tensor:
        """For every query and class, the largest cosine to a support image of that class: (M, N)."""
        directions, labels = fitted
        cosine = F.normalize(query_x.flatten(1), dim=-1) @ directions.T  # (M, N*K)
        of_class = labels == torch.arange(self.n_way, device=labels.device)[:, None]  # (N, N*K)
        return cosine[:, None, :].masked_fill(~of_class, -torch.inf).amax(-1)
