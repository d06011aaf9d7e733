"""The floor of regression: an answer that is always zero."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskKind


class Zero(Algorithm):
    """Predicts zeros and learns nothing: the mean squared error is that of the targets themselves.

    On the sinusoids of `MAML` E[A²]/2 = 4.2517 in expectation.

    Args:
        model: unused, so that the command line of every algorithm is the same.
        kind: the task kind, which gives the score.
        task_chunk: tasks answered together; None: all; "auto": as many as memory holds.
    """

    def __init__(self, model: nn.Module, kind: TaskKind, *, task_chunk: int | str | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.task_chunk = task_chunk

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Tensor]:
        """Nothing is learned; what is kept is a zero of the targets' shape."""
        yield torch.zeros_like(support_y[0])

    def predict(self, fitted: Tensor, query_x: Tensor) -> Tensor:
        """Zeros: (M, …) -> (M, outputs)."""
        return fitted.expand(len(query_x), -1)
