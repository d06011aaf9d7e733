"""What a task is: its tensors and its kind. Imported by everyone, imports no one.

Letters used in shapes everywhere: T tasks, N ways (`n_way`), K shots (`k_shot`), Q queries per class
(`q_query`), C channels, H × W pixels.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TaskBatch(NamedTuple):
    """Tasks side by side. One task is the same tuple without the leading T (as inside `torch.vmap`)."""

    support_x: Tensor  # (T, N*K, C, H, W) float
    support_y: Tensor  # (T, N*K) int64, labels 0 … N-1
    query_x: Tensor  # (T, N*Q, C, H, W) float
    query_y: Tensor  # (T, N*Q) int64


class TaskKind(ABC):
    """What the task asks for decides loss, score and units; no algorithm needs to ask."""

    metric: str  # the word in results.json and on axes
    short: str  # the word in logged names: val/<short>
    higher_is_better: bool

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of one task, a scalar: (M, …), (M, …) -> ()."""

    @abstractmethod
    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What is reported for one task, a scalar in float32: (M, …), (M, …) -> ()."""


class Classification(TaskKind):
    """N-way classification: cross-entropy (nats) and accuracy (a fraction)."""

    metric = "accuracy"
    short = "acc"
    higher_is_better = True

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (M, N) against labels (M,)."""
        return F.cross_entropy(predictions, targets)

    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Fraction of rows of logits (M, N) whose largest entry is the label (M,)."""
        return (predictions.argmax(-1) == targets).to(torch.float32).mean()
