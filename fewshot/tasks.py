"""What a task is: its tensors and its kind. Imported by everyone, imports no one.

Letters used in shapes everywhere: T tasks, N ways (`n_way`), K shots (`k_shot`), Q queries per class
(`q_query`), C channels, H × W pixels. In a regression task there is one class, so to speak: K points to
learn from, Q to predict.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Stage = Literal["train", "val", "test"]

CONFIDENCE_BINS = 15  # C. Guo, G. Pleiss, Y. Sun, K. Weinberger: On Calibration of Modern Neural Networks, ICML 2017
BLOCK = 32  # evaluation tasks of one draw: the first 64 of 600 and of 1000 episodes are the same


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

    @abstractmethod
    def groups(self, targets: Tensor, stage: Stage) -> Tensor:
        """Which points of a support set are summed up together: (M, …) -> one-hot (M, groups)."""

    @abstractmethod
    def group_count(self, stage: Stage) -> int:
        """How many such groups there are."""

    @abstractmethod
    def distribution_size(self, stage: Stage) -> int:
        """Numbers that say how likely every answer to a query is."""

    @abstractmethod
    def negative_log_likelihood(self, distribution: Tensor, targets: Tensor) -> Tensor:
        """Mean over queries (nats), a scalar: (M, distribution_size), (M, …) -> ()."""

    @abstractmethod
    def expectation(self, distribution: Tensor) -> Tensor:
        """The predictions that go with it, as `loss` and `score` take them."""

    @abstractmethod
    def deviation(self, distribution: Tensor) -> Tensor | None:
        """The standard deviations of the predictions (M, outputs); None where there are classes."""


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

    def groups(self, targets: Tensor, stage: Stage) -> Tensor:
        """The classes."""
        return self.encode(targets, stage)

    def group_count(self, stage: Stage) -> int:
        """N."""
        return self.outputs(stage)

    def distribution_size(self, stage: Stage) -> int:
        """A logit for every class."""
        return self.outputs(stage)

    def negative_log_likelihood(self, distribution: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy."""
        return self.loss(distribution, targets)

    def expectation(self, distribution: Tensor) -> Tensor:
        """The logits."""
        return distribution

    def confidence_bins(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """How sure the answers to one task's queries are, and how often right: (M, N), (M,) -> float32 (3 * 15,).

        A query's confidence is its largest probability, the softmax of its logits, and bin m has those above
        (m − 1)/15 and up to m/15. Flattened from (3, 15): for every bin the number of queries, the sum of their
        confidences, and how many of them are right, so that sums over tasks are those of all their queries.
        """
        confidence, chosen = predictions.to(torch.float32).softmax(-1).max(-1)
        bins = torch.arange(CONFIDENCE_BINS, device=confidence.device)
        inside = ((confidence * CONFIDENCE_BINS).ceil()[:, None] == bins + 1).to(torch.float32)  # (M, bins)
        right = (chosen == targets).to(torch.float32)
        counted = torch.stack([torch.ones_like(confidence), confidence, right])
        return (counted[:, :, None] * inside).sum(1).flatten()

    def deviation(self, distribution: Tensor) -> None:
        """None."""
        return None


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

    def groups(self, targets: Tensor, stage: Stage) -> Tensor:
        """All points are one group."""
        return torch.ones_like(targets[:, :1])

    def group_count(self, stage: Stage) -> int:
        """One."""
        return 1

    def distribution_size(self, stage: Stage) -> int:
        """Mean and spread of a normal distribution for every output."""
        return 2 * self.outputs(stage)

    def negative_log_likelihood(self, distribution: Tensor, targets: Tensor) -> Tensor:
        """Of normal distributions; of several outputs the sum."""
        deviation = self.deviation(distribution)
        away = (targets - self.expectation(distribution)) / deviation
        return (0.5 * away.square() + deviation.log() + 0.5 * math.log(2 * math.pi)).sum(-1).mean()

    def expectation(self, distribution: Tensor) -> Tensor:
        """The means."""
        return distribution.chunk(2, dim=-1)[0]

    def deviation(self, distribution: Tensor) -> Tensor:
        """At least 0.1, so that no point can be certain (Garnelo et al. 2018, authors' code)."""
        return 0.1 + 0.9 * F.softplus(distribution.chunk(2, dim=-1)[1])
