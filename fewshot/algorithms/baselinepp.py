"""Baseline++: a classifier of all training classes by cosines; for a task, a new cosine head on its body."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.algorithms.base import Outcome
from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.errors import UserError
from fewshot.inner_loop import gradient_descent
from fewshot.inner_optimizers import SGD, InnerOptimizer, Params
from fewshot.models.normalization import observed
from fewshot.models.parts import parts
from fewshot.tasks import Stage, TaskBatch, TaskKind


class BaselinePlusPlus(EmbeddingBased):
    """Baseline++.

    W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. Wang, J.-B. Huang: A Closer Look at Few-shot Classification. ICLR 2019.
    https://arxiv.org/abs/1904.04232

    Training is plain classification of all training classes, with the cosine between embedding and class weight
    in place of their product. A new task keeps the body as it is and trains a new cosine head on its support set.

    Differs from the authors' code in that a task's head is trained on all of its support images in every step,
    without dampening and weight decay, where theirs takes batches of four; starts from the same random
    directions in every task; has the scale of training, where theirs has 2 for few classes; and class weights without
    a length of their own.

    Args:
        model, kind, …: as in `EmbeddingBased`; for classification.
        eval_inner_steps, test_inner_steps: gradient steps of a task's head, as in `GradientBased`.
        inner_lr, inner_optimizer: as in `GradientBased`.
        scale: of the cosines, as logits.
    """

    fixed_labels = True
    needs_classes = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        inner_optimizer: InnerOptimizer | None = None,
        scale: float,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(model, kind, running_momentum=running_momentum, task_chunk=task_chunk)
        if min(eval_inner_steps, test_inner_steps or 0) < 0:
            raise UserError(
                f"algo.eval_inner_steps={eval_inner_steps} and algo.test_inner_steps={test_inner_steps} "
                "must be at least 0"
            )
        if not (inner_lr > 0 and scale > 0):
            raise UserError(f"algo.inner_lr={inner_lr} and algo.scale={scale} must be positive")
        head = parts(model, type(self).__name__)[1]
        self.directions = nn.Parameter(torch.randn(head.weight.shape))
        draw = torch.Generator().manual_seed(0)
        first = torch.randn(kind.outputs("test"), head.in_features, generator=draw)
        self.register_buffer("first", first, persistent=False)  # of as many classes as tasks have now
        self.eval_inner_steps = eval_inner_steps
        self.test_inner_steps = eval_inner_steps if test_inner_steps is None else test_inner_steps
        self.inner_lr = inner_lr
        self.inner_optimizer = inner_optimizer or SGD()
        self.scale = scale

    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterator[Tensor]:
        """The head (N, D) after each step on the support set; in training that of all classes."""
        if stage == "train":
            yield params["directions"]
            return

        def loss(head: Params, given: None, step: int) -> Tensor:
            return self.kind.loss(self.answer(params, head["weight"], embeddings.detach()), support_y)

        states = gradient_descent(
            loss,
            {"weight": self.get_buffer("first")},
            steps=self.steps(stage),
            optimizer=self.inner_optimizer,
            lr=lambda given, step: self.inner_lr,
            create_graph=False,
        )
        for head in states:
            yield head["weight"]

    def answer(self, params: Params, head: Tensor, embeddings: Tensor) -> Tensor:
        """Scaled cosines: (M, D) -> (M, N)."""
        return self.scale * F.normalize(embeddings, dim=-1) @ F.normalize(head, dim=-1).mT

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The classifier's loss on all images of a batch of fixed classes, and its score."""
        every = task.all_as_queries()
        with observed(self) as seen:
            logits = self.answer(params, params["directions"], self.call(params, "body", every.query_x))
        loss, score = self.kind.loss(logits, every.query_y), self.kind.score(logits, every.query_y)
        return Outcome(loss, score, self.statistics.table([seen]))
