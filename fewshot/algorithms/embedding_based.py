"""What learners have in common that embed a task's images once and compute a head from the embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.algorithms.base import Algorithm, Outcome, last
from fewshot.inner_optimizers import Params
from fewshot.models.normalization import observed
from fewshot.models.parts import parts
from fewshot.models.running_statistics import RunningStatistics
from fewshot.tasks import Stage, TaskBatch, TaskKind


class Headed(NamedTuple):
    """A fitted task: what embeds, and what the task adds."""

    params: Params
    head: Any  # a tree of tensors


class EmbeddingBased(Algorithm, ABC):
    """Embeds images with the model's body, which no task changes, and fits a head to the embeddings.

    An algorithm says what a head is (`heads`) and how it answers (`answer`).

    Batch normalisation goes by the batch in training, support and query images together, and by running
    statistics in evaluation, as in ordinary training: then no answer depends on other queries. Without running
    statistics it goes by the batch in both, support and query images each by themselves.

    Args:
        model: of two parts; its own head is not used.
        kind: the task kind.
        running_momentum: how much of the running statistics a meta-batch replaces; None: there are none.
        beside: what is meta-learned beside the body and is a network too, by name.
        task_chunk: tasks computed together; None: all; "auto": as many as memory holds.
    """

    any_way = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        running_momentum: float | None = None,
        beside: Mapping[str, nn.Module] | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__()
        self.body, _ = parts(model, type(self).__name__)
        for name, module in (beside or {}).items():
            self.add_module(name, module)
        self.kind = kind
        self.task_chunk = task_chunk
        self.statistics = RunningStatistics(self, running_momentum)

    @abstractmethod
    def heads(self, params: Params, embeddings: Tensor, support_y: Tensor, stage: Stage) -> Iterable[Any]:
        """The head of a task, or the sequence of those it goes through: embeddings (N*K, D), labels (N*K,)."""

    @abstractmethod
    def answer(self, params: Params, head: Any, embeddings: Tensor) -> Tensor:
        """What a head answers: embeddings (M, D) -> (M, N)."""

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings: (M, …) -> (M, D)."""
        return self.body(x)

    def call(self, params: Params, place: str, *inputs: Any) -> Any:
        """One of the networks, with these parameters in place of its own."""
        prefix = f"{place}."
        own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        return functional_call(self.get_submodule(place), own, inputs)

    def predictions(self, answers: Tensor) -> Tensor:
        """What is predicted where this is answered: the same."""
        return answers

    def training_loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """What meta-training lowers: the task kind's loss."""
        return self.kind.loss(answers, targets)

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Headed]:
        """The head of the support set, in every state that it goes through."""
        params = params | self.statistics.row(0)
        embeddings = self.call(params, "body", support_x)
        for head in self.heads(params, embeddings, support_y, stage):
            yield Headed(params, head)

    def predict(self, fitted: Headed, query_x: Tensor) -> Tensor:
        """(M, …) -> (M, N)."""
        return self.predictions(self.answers(fitted, query_x))

    def answers(self, fitted: Headed, query_x: Tensor) -> Tensor:
        """What a fitted task answers to its queries: (M, …) -> (M, …)."""
        return self.answer(*fitted, self.call(fitted.params, "body", query_x))

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The query loss of the head; with running statistics all images are embedded as one batch."""
        images = [task.support_x, task.query_x]
        with observed(self) as seen:
            if len(self.statistics):
                both = self.call(params, "body", torch.cat(images))
                support, query = both.split([len(part) for part in images])
            else:
                support, query = (self.call(params, "body", part) for part in images)
            head = last(self.heads(params, support, task.support_y, "train"))
            answers = self.answer(params, head, query)
        loss = self.training_loss(answers, task.query_y)
        score = self.kind.score(self.predictions(answers), task.query_y)
        return Outcome(loss, score, self.statistics.table([seen]))

    def absorb(self, observed: dict[str, Tensor]) -> None:
        """Moves the running statistics towards those of the meta-batch."""
        self.statistics.absorb(observed)

    @property
    def transductive(self) -> bool:
        """Not where running statistics normalise."""
        return super().transductive and not len(self.statistics)
