"""MAML++: what it takes to train MAML without it falling apart."""

import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Outcome
from fewshot.algorithms.gradient_based import GradientBased, norm_parameters, of_parameters, per_parameter
from fewshot.errors import UserError
from fewshot.inner_optimizers import InnerOptimizer, Params, Rates
from fewshot.models.normalization import observed
from fewshot.models.running_statistics import RunningStatistics
from fewshot.tasks import TaskBatch, TaskKind


class MAMLPlusPlus(GradientBased):
    """MAML++.

    A. Antoniou, H. Edwards, A. Storkey: How to train your MAML. ICLR 2019. https://arxiv.org/abs/1810.09502

    MAML with a step size for every tensor and step, meta-learned; scales and shifts of the normalisation of
    its own for every step; running statistics for every step; a meta-loss that starts as the mean over the
    states after every step and ends as the last one alone; and a start in first order. (The sixth part, the
    cosine schedule of the outer step size, is `outer.schedule=cosine`.)

    Differs from the authors' code in that running statistics are used where they are kept: theirs keeps them and
    normalises by the batch. Here `running_momentum` decides: None does as theirs, and keeps none; otherwise the means
    over training normalise, in training (as constants) and evaluation alike, and results are inductive.
    Annealing goes by outer steps instead of epochs. Steps beyond those trained with take the last one's values.

    Args:
        model, kind, …: as in `GradientBased`; inner_lr is where the step sizes start. Scales and shifts do
            not adapt, as in the authors' code: each step has its own.
        multi_step_until: outer steps after which only the last state counts; 0: from the start.
        second_order_from: outer step from which on the meta-gradient passes through the inner steps.
        running_momentum: how much of the running statistics, by which batch normalisation then goes, a meta-batch
            replaces; None: it goes by the batch.
    """

    anneals = True

    def __init__(
        self,
        model: nn.Module,
        kind: TaskKind,
        *,
        inner_steps: int,
        eval_inner_steps: int,
        test_inner_steps: int | None = None,
        inner_lr: float,
        inner_optimizer: InnerOptimizer | None = None,
        create_graph: bool,
        multi_step_until: int,
        second_order_from: int,
        running_momentum: float | None = None,
        task_chunk: int | str | None = None,
    ) -> None:
        super().__init__(
            model,
            kind,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            test_inner_steps=test_inner_steps,
            inner_lr=inner_lr,
            inner_optimizer=inner_optimizer,
            create_graph=create_graph,
            adapt_norm=False,
            task_chunk=task_chunk,
        )
        if min(multi_step_until, second_order_from) < 0:
            raise UserError(
                f"algo.multi_step_until={multi_step_until} and algo.second_order_from={second_order_from} "
                "must not be negative"
            )
        self.multi_step_until = multi_step_until
        self.second_order_from = second_order_from
        named = dict(self.named_parameters())
        norms = norm_parameters(self)
        start = torch.full((inner_steps,), float(inner_lr))
        self.inner_lrs = per_parameter({name: start for name in named if self.adapts(name)})
        self.norms = per_parameter({n: named[n].expand(inner_steps + 1, -1) for n in norms})
        for name in norms:  # what stands at their places is taken from `norms`
            named[name].requires_grad_(False)
        self.statistics = RunningStatistics(self, running_momentum, rows=inner_steps + 1)

    def lr(self, params: Params, step: int) -> Rates:
        """The learned step size of every tensor at this step."""
        row = min(step, self.inner_steps - 1)
        return {name: rates[row] for name, rates in of_parameters(params, "inner_lrs").items()}

    def at_step(self, params: Params, step: int) -> Params:
        """Scales, shifts and running statistics of this step."""
        row = min(step, self.inner_steps)
        found = {name: values[row] for name, values in of_parameters(params, "norms").items()}
        return found | self.statistics.row(row)

    def second_order(self) -> bool:
        """First order at the start, if so asked."""
        return self.create_graph and self.outer_step >= self.second_order_from

    def meta_loss(self, params: Params, task: TaskBatch) -> Outcome:
        """The query losses after every step, weighted; the score after the last one."""
        states = list(self.fit(params, task.support_x, task.support_y, stage="train"))
        weights = self.step_weights()
        outcomes = [self.judge(state, task) for state, weight in zip(states[1:], weights, strict=True) if weight]
        terms = [weight * outcome.loss for weight, outcome in zip(filter(None, weights), outcomes, strict=True)]
        return Outcome(torch.stack(terms).sum(), outcomes[-1].score, self._observe(states, task.support_x))

    def step_weights(self) -> list[float]:
        """The weight of the query loss after each inner step, at this outer step.

        As in the authors' code: equal at first, from there each but the last falls linearly, down to 3 % of
        its start, and the last one takes what they lose; from `multi_step_until` on it stands alone.
        """
        steps = self.inner_steps
        if self.outer_step >= self.multi_step_until:
            return [0.0] * (steps - 1) + [1.0]
        early = max(1 - self.outer_step / self.multi_step_until, 0.03) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def absorb(self, observed: dict[str, Tensor]) -> None:
        """Moves the running statistics towards those of the meta-batch."""
        self.statistics.absorb(observed)

    @torch.no_grad()
    def _observe(self, states: list[Params], x: Tensor) -> dict[str, Tensor]:
        """The statistics of the support set in every state; nothing where none are kept."""
        if not len(self.statistics):
            return {}
        rows = []
        for state in states:
            with observed(self) as seen:
                self.predict(state, x)
            rows.append(seen)
        return self.statistics.table(rows)

    @property
    def transductive(self) -> bool:
        """Not where running statistics normalise."""
        return super().transductive and not len(self.statistics)
