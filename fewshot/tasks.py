"""What a task is: its tensors and its kind. Imported by everyone, imports no one.

Letters used in shapes everywhere: T tasks, N ways (`n_way`), K shots (`k_shot`), Q queries per class
(`q_query`), C channels, H × W pixels. In a regression task there is one class, so to speak: K points to
learn from, Q to predict.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Stage = Literal["train", "val", "test"]


class TaskBatch(NamedTuple):
    """Tasks side by side. One task is the same tuple without the leading T (as inside `torch.vmap`)."""

    support_x: Tensor  # (T, N*K, C, H, W) float; regression (T, K, inputs)
    support_y: Tensor  # (T, N*K) int64, labels 0 … N-1; regression (T, K, outputs) float
    query_x: Tensor  # (T, N*Q, C, H, W) float; regression (T, Q, inputs)
    query_y: Tensor  # (T, N*Q) int64; regression (T, Q, outputs) float

    def all_as_queries(self) -> "TaskBatch":
        """One task with its support set among its queries, in front: for learners that do not tell them apart."""
        every_x, every_y = torch.cat([self.support_x, self.query_x]), torch.cat([self.support_y, self.query_y])
        return TaskBatch(self.support_x, self.support_y, every_x, every_y)


class TaskKind(ABC):
    """What the task asks for decides loss, score and units; no algorithm needs to ask.

    Args:
        outputs: of a prediction: the classes N of a task, or the values of a regression.
        train_outputs: the same in training, where it differs; None: it does not.
    """

    metric: str  # the word in results.json and on axes
    short: str  # the word in logged names: val/<short>
    unit: str  # on axes: "%" for a fraction, "" for what has none
    higher_is_better: bool

    def __init__(self, outputs: int, train_outputs: int | None = None) -> None:
        self._outputs = outputs
        self._train_outputs = outputs if train_outputs is None else train_outputs

    def outputs(self, stage: Stage) -> int:
        """Of a prediction in this stage; in training those of a model's head."""
        return self._train_outputs if stage == "train" else self._outputs

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of one task, a scalar: (M, …), (M, …) -> ()."""

    @abstractmethod
    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What is reported for one task, a scalar in float32: (M, …), (M, …) -> ()."""

    @abstractmethod
    def encode(self, targets: Tensor, stage: Stage) -> Tensor:
        """The targets as numbers that a linear map can be fitted to: (M, …) -> (M, outputs)."""


class Classification(TaskKind):
    """N-way classification: cross-entropy (nats) and accuracy (a fraction)."""

    metric = "accuracy"
    short = "acc"
    unit = "%"
    higher_is_better = True

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (M, N) against labels (M,)."""
        return F.cross_entropy(predictions, targets)

    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Fraction of rows of logits (M, N) whose largest entry is the label (M,)."""
        return (predictions.argmax(-1) == targets).to(torch.float32).mean()

    def encode(self, targets: Tensor, stage: Stage) -> Tensor:
        """One-hot labels: (M,) -> (M, N)."""
        classes = torch.arange(self.outputs(stage), device=targets.device)
        return (targets[:, None] == classes).to(torch.get_default_dtype())


class Regression(TaskKind):
    """Regression: the mean squared error, in the square of the targets' unit, as loss and as score."""

    metric = "mean squared error"
    short = "mse"
    unit = ""
    higher_is_better = False

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean over points and outputs: (M, outputs) twice -> ()."""
        return F.mse_loss(predictions, targets)

    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The same, in float32."""
        return F.mse_loss(predictions.to(torch.float32), targets.to(torch.float32))

    def encode(self, targets: Tensor, stage: Stage) -> Tensor:
        """As they are: (M, outputs)."""
        return targets
