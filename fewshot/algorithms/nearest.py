"""The floor that every table should have: the label of the nearest support image, without any training."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.parts import parts
from fewshot.tasks import Stage, TaskKind


class Nearest(Algorithm):
    """Nearest neighbour, of raw pixels or of what a random network makes of them; nothing is trained.

    By cosine the "Pixels, cosine" row of O. Vinyals et al.: Matching Networks for One Shot Learning, NIPS 2016,
    https://arxiv.org/abs/1606.04080 (41.7 % on Omniglot 5-way 1-shot). The random network says how much of a result
    is the architecture's.

    Args:
        model: its body, as it starts, is the random network; unused with pixels.
        kind: the task kind, which gives the score.
        space: "pixels" or "network".
        distance: "cosine" or "euclidean".
        task_chunk: tasks answered together; None: all; "auto": as many as memory holds.
    """

    needs_classes = True
    any_way = True
    probabilistic = False  # cosines, or distances

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        space: str = "pixels",
        distance: str = "cosine",
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__()
        if space not in ("pixels", "network"):
            raise UserError(f"algo.space={space} is not one of pixels, network")
        if distance not in ("cosine", "euclidean"):
            raise UserError(f"algo.distance={distance} is not one of cosine, euclidean")
        body = parts(model, type(self).__name__)[0] if space == "network" else nn.Identity()
        self.body = body.requires_grad_(False)
        self.distance = distance
        self.kind = kind
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """Places: (M, …) -> (M, D), of length 1 where directions are compared."""
        places = self.body(x).flatten(1)
        return F.normalize(places, dim=-1) if self.distance == "cosine" else places

    def fit(
        self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test"
    ) -> Iterator[tuple[Params, Tensor, Tensor]]:
        """Remembers the support set: places of its images (N*K, D), and whose each is (N*K, N)."""
        yield params, functional_call(self, params, (support_x,)), self.kind.encode(support_y, stage)

    def predict(self, fitted: tuple[Params, Tensor, Tensor], query_x: Tensor) -> Tensor:
        """For every query and class, the cosine, or minus the distance, to its nearest support image: (M, N)."""
        params, places, classes = fitted
        queries = functional_call(self, params, (query_x,))
        near = queries @ places.T if self.distance == "cosine" else -torch.cdist(queries, places)  # (M, N*K)
        return near[:, None, :].masked_fill(classes.mT == 0, -torch.inf).amax(-1)
