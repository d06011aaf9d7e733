"""Baseline++: a classifier of all training classes by cosines; for a task, a new cosine head on its body."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm, Outcome, Stage
from fewshot.errors import UserError
from fewshot.inner_loop import gradient_descent
from fewshot.inner_optimizers import SGD, InnerOptimizer, Params
from fewshot.models.parts import parts
from fewshot.tasks import TaskBatch, TaskKind


class CosineHead(NamedTuple):
    """A fitted task."""

    params: Params
    weight: Tensor  # (N, D)


class BaselinePlusPlus(Algorithm):
    """Baseline++.

    W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. Wang, J.-B. Huang: A Closer Look at Few-shot Classification. ICLR 2019.
    https://arxiv.org/abs/1904.04232

    Training is plain classification of all training classes, with the cosine between embedding and class weight
    in place of their product. A new task keeps the body as it is and trains a new cosine head on its support set.

    Differs from the authors' code in that a task's head is trained on all of its support images in every step,
    without dampening and weight decay, where theirs takes batches of four; and starts from the same random
    directions in every task.

    Args:
        model: of two parts; its own head has an output for every training class.
        kind: the task kind: classification.
        n_way: number of classes N of a task.
        eval_inner_steps, test_inner_steps: gradient steps of a task's head, as in `GradientBased`.
        inner_lr, inner_optimizer: as in `GradientBased`.
        scale: of the cosines, as logits.
        task_chunk: tasks computed together; None: all.
    """

    fixed_labels = True
    needs_classes = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        n_way: int,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        inner_optimizer: InnerOptimizer | None = None,
        scale: float,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if min(eval_inner_steps, test_inner_steps or 0) < 0:
            raise UserError(
                f"algo.eval_inner_steps={eval_inner_steps} and algo.test_inner_steps={test_inner_steps} "
                "must be at least 0"
            )
        if not (inner_lr > 0 and scale > 0):
            raise UserError(f"algo.inner_lr={inner_lr} and algo.scale={scale} must be positive")
        self.body, head = parts(model, type(self).__name__)
        self.directions = nn.Parameter(torch.randn(head.weight.shape))
        self.register_buffer("first", torch.randn(n_way, head.in_features, generator=torch.Generator().manual_seed(0)))
        self.kind = kind
        self.eval_inner_steps = eval_inner_steps
        self.test_inner_steps = eval_inner_steps if test_inner_steps is None else test_inner_steps
        self.inner_lr = inner_lr
        self.inner_optimizer = inner_optimizer or SGD()
        self.scale = scale
        self.task_chunk = task_chunk

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings: (M, …) -> (M, D)."""
        return self.body(x)

    def fit(
        self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test"
    ) -> Iterator[CosineHead]:
        """The head after each step on the support set, which is embedded once; in training that of all classes."""
        if stage == "train":
            yield CosineHead(params, params["directions"])
            return
        with torch.no_grad():
            embeddings = functional_call(self, params, (support_x,))

        def loss(head: Params, step: int) -> Tensor:
            return self.kind.loss(self._logits(embeddings, head["weight"]), support_y)

        states = gradient_descent(
            loss,
            {"weight": self.get_buffer("first")},
            steps=self.steps(stage),
            optimizer=self.inner_optimizer,
            lr=lambda step: self.inner_lr,
            create_graph=False,
        )
        for head in states:
            yield CosineHead(params, head["weight"])

    def predict(self, fitted: CosineHead, query_x: Tensor) -> Tensor:
        """(M, …) -> (M, N)."""
        return self._logits(functional_call(self, fitted.params, (query_x,)), fitted.weight)

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The classifier's loss on all images of a batch of fixed classes, and its score."""
        return self.judge(CosineHead(params, params["directions"]), task.all_as_queries())

    def _logits(self, embeddings: Tensor, weight: Tensor) -> Tensor:
        return self.scale * F.normalize(embeddings, dim=-1) @ F.normalize(weight, dim=-1).mT
