"""A few-shot learner is a function from a support set to a predictor."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage, TaskBatch, TaskKind

Fitted = Any  # a tree of tensors: adapted weights, prototypes, a memory, …


class Outcome(NamedTuple):
    """What meta-training makes of one task."""

    loss: Tensor  # (); its derivative is the task's part of the meta-gradient
    score: Tensor  # ()
    observed: dict[str, Tensor] = {}  # noqa: RUF012 - what the task showed, for `absorb`; read only


class Algorithm(nn.Module, ABC):
    """Two verbs, written for ONE task as pure maths; the engine turns one task into many.

    Everything that is meta-learned is a parameter of the module, and reaches the verbs as `params`
    (name -> tensor), never through `self`: so the same code runs plainly, vectorised and differentiated.
    An algorithm knows nothing of data sets, Lightning, Hydra or devices.
    """

    kind: TaskKind
    inner_steps: int = 0  # steps that `fit` takes in meta-training; 0 where there are none
    eval_inner_steps: int = 0  # in validation
    test_inner_steps: int = 0  # in testing and in use
    task_chunk: int | str | None = None  # tasks that are computed together; None: the whole meta-batch
    fixed_labels: bool = False  # True: trains a classifier of fixed classes, with the same labels in every task
    needs_classes: bool = False  # True: for classification only
    any_way: bool = False  # True: makes each task a head of its own, for as many classes as it has
    probabilistic: bool = True  # False: its predictions rank the classes, but their softmax is no probability
    even_shots: bool = False  # True: every class needs as many support images
    ordered: bool = False  # True: reads the support set one after the other; its order matters
    recompute: bool = False  # True: what happens inside inner steps is computed again, not kept; the outer loop sets it
    ragged: bool = False  # True: how much it computes depends on what images show, so that tasks go one by one
    anneals: bool = False  # True: what it computes changes with `outer_step`
    outer_step: int = 0  # meta-updates done so far; the outer loop sets it before each

    def steps(self, stage: Stage) -> int:
        """The inner steps of a stage."""
        return {"train": self.inner_steps, "val": self.eval_inner_steps, "test": self.test_inner_steps}[stage]

    def can_answer(self, n_way: int) -> bool:
        """Whether tasks of so many classes can be: a head that is trained has its number of outputs, of which what was
        trained on fixed classes uses the first."""
        outputs = self.kind.outputs("train")
        return self.any_way or n_way == outputs or (self.fixed_labels and n_way < outputs)

    @abstractmethod
    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterable[Fitted]:
        """Learns one task: support_x (N*K, C, H, W), support_y (N*K,) -> the sequence of fitted states.

        The first state is before any learning, the last one is the result; a method that learns in one
        go yields just that. The stage "train" allows a graph.
        """

    @abstractmethod
    def predict(self, fitted: Fitted, query_x: Tensor) -> Tensor:
        """Answers one task's queries (N*Q, C, H, W) with one fitted state: logits (N*Q, N)."""

    def distribution(self, fitted: Fitted, query_x: Tensor) -> Tensor | None:
        """How likely each answer to a query is, as the task kind reads it; None: the learner says nothing of that."""
        return None

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """What meta-training lowers, for one task: its query loss after fitting."""
        fitted = last(self.fit(params, task.support_x, task.support_y, stage="train"))
        return self.judge(fitted, task)

    def judge(self, fitted: Fitted, task: TaskBatch) -> Outcome:
        """Loss and score of one fitted state on one task's queries."""
        predictions = self.predict(fitted, task.query_x)
        return Outcome(self.kind.loss(predictions, task.query_y), self.kind.score(predictions, task.query_y))

    def absorb(self, observed: dict[str, Tensor]) -> None:
        """Keeps what the tasks of a meta-batch showed on average (statistics); called after each meta-update."""

    @property
    def transductive(self) -> bool:
        """True where a prediction depends on the other queries of its task (statistics of their batch)."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.modules())


def last(states: Iterable[Fitted]) -> Fitted:
    """The last of the states, without keeping the others."""
    return deque(states, maxlen=1)[0]
