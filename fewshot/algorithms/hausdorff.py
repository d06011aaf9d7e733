"""A floor for drawings: the label of the support drawing whose ink lies closest."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskKind


class Drawings(NamedTuple):
    """What a task leaves."""

    images: Tensor  # (N*K, C, H, W)
    classes: Tensor  # (N*K, N), whose each is


class Hausdorff(Algorithm):
    """Nearest neighbour by the modified Hausdorff distance of ink; nothing is trained.

    M.-P. Dubuisson, A. Jain: A modified Hausdorff distance for object matching. ICPR 1994. The mean distance from a
    pixel of ink to the nearest one of the other drawing, the larger of both directions, with the centres of both
    drawings laid upon each other; the baseline of the official one-shot benchmark of Omniglot (Lake et al. 2015),
    38.8 % error.

    Args:
        model: unused.
        kind: the task kind, which gives the score.
        ink: pixels above it are ink.
        task_chunk: tasks remembered together; None: all; "auto": as many as memory holds.
    """

    needs_classes = True
    any_way = True
    ragged = True
    probabilistic = False  # distances

    def __init__(
        self, model: nn.Module, kind: TaskKind, *, ink: float = 0.5, task_chunk: int | str | None = None
    ) -> None:
        super().__init__()
        if not 0 <= ink < 1:
            raise UserError(f"algo.ink={ink} must be at least 0 and below 1")
        self.kind = kind
        self.ink = ink
        self.task_chunk = task_chunk

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Drawings]:
        """Remembers the support set."""
        yield Drawings(support_x, self.kind.encode(support_y, stage))

    def predict(self, fitted: Drawings, query_x: Tensor) -> Tensor:
        """For every query and class, minus the distance in pixels to that class's closest drawing: (M, N)."""
        known = [self._points(image) for image in fitted.images]
        rows = [torch.stack([_distance(self._points(image), other) for other in known]) for image in query_x]
        return -torch.stack(rows)[:, None, :].masked_fill(fitted.classes.mT == 0, torch.inf).amin(-1)

    def _points(self, image: Tensor) -> Tensor:
        """Rows and columns of the ink, about their centre: (C, H, W) -> (P, 2); of an empty sheet its middle."""
        points = (image.amax(0) > self.ink).nonzero().to(image.dtype)
        return points - points.mean(0) if len(points) else image.new_zeros((1, 2))


def _distance(one: Tensor, other: Tensor) -> Tensor:
    apart = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.maximum(apart.amin(1).mean(), apart.amin(0).mean())
