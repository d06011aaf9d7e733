"""The outer loop: the one LightningModule, which meta-trains any algorithm under manual optimisation."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.aggregation import CatMetric

from fewshot import engine, ranks
from fewshot.algorithms.base import Algorithm
from fewshot.bad_tasks import BadTasks
from fewshot.calibration import confidence_judges
from fewshot.errors import UserError
from fewshot.evaluation import Scores, interval
from fewshot.outer_options import SCHEDULES, refuse_bad_options
from fewshot.tasks import BLOCK, CONFIDENCE_BINS, Stage, TaskBatch


class MetaLearner(LightningModule):
    """Meta-trains an algorithm: one batch of tasks, one meta-gradient, one step of one optimiser.

    `trainer.max_steps` therefore counts meta-updates. Works in `trainer.fit`, `validate` and `test`, also
    where Lightning has switched inference mode on.

    Args:
        algorithm: what is meta-trained.
        optimizer: called as optimizer(parameters) -> Optimizer.
        schedule: "constant", or over `trainer.max_steps` the step size falls to zero: "linear", "cosine".
        grad_clip: largest norm of the meta-gradient, longer ones are scaled down; None: never.
        compile: whether the meta-gradient is compiled by `torch.compile`, on a GPU: one function in place of thousands
            of calls, the same numbers up to rounding, after a minute of waiting. Evaluation never is.
        recompute: second order without keeping what happens inside the inner steps, which is computed again for the
            meta-gradient: memory hardly grows with their number, the same numbers for about twice the time.
        curve_episodes: number of tasks, of every evaluation, that are judged before adaptation and after
            each inner step as well; every such judgement costs as much as the one at the end.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: str = "constant",
        grad_clip: float | None = None,
        compile: bool = False,
        recompute: bool = False,
        curve_episodes: int = 100,
    ) -> None:
        super().__init__()
        refuse_bad_options(
            algorithm,
            optimizer=optimizer,
            schedule=schedule,
            grad_clip=grad_clip,
            compile=compile,
            recompute=recompute,
            curve_episodes=curve_episodes,
        )
        self.automatic_optimization = False
        self.algorithm = algorithm
        self.optimizer = optimizer
        self.schedule = schedule
        self.grad_clip = grad_clip
        algorithm.recompute = recompute
        self.compiled = engine.Compiled(algorithm) if compile else None
        self.curve_episodes = curve_episodes
        self.curve_steps: Sequence[int] | None = None  # inner steps after which they are scored; None: each
        self.judged = CatMetric(nan_strategy="disable")  # (episodes, 3 + n): number, loss, score, confidence; flattened
        self.curve = CatMetric(nan_strategy="disable")  # (curve_episodes, 1 + 2 S), flattened: number, losses, scores
        self.evaluated: Scores | None = None  # of the latest validation or test
        self.latest_loss: Tensor | None = None  # of the latest outer step, ()
        self.one_by_one = False  # True: in testing each query is answered without the others
        self.bad_tasks = BadTasks()

    def on_fit_start(self) -> None:
        """Refuses what training would need and evaluation does not."""
        if self.compiled is not None and self.device.type == "cpu":
            raise UserError(
                "outer.compile=true is for a GPU: on a CPU the compiled step is hardly faster than the plain one, "
                "whose derivatives are written by hand; outer.compile=false"
            )

    def training_step(self, batch: TaskBatch, batch_idx: int) -> None:
        """One meta-update from T tasks."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        assert isinstance(scheduler, LambdaLR)
        step = self.global_step
        reporting = (step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if reporting:
            self._log_curve(batch)
        self.algorithm.outer_step = step
        eager = partial(engine.meta_backward, self.algorithm, backward=self.manual_backward)
        found = self.bad_tasks.gradient(
            partial(eager, compiled=self.compiled), self.parameters(), batch, of_fewer=eager
        )
        self.bad_tasks.refuse_too_many(found, step, self._latest_checkpoint)
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), self.grad_clip, found.norm)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        self.algorithm.absorb(found.observed)
        self.latest_loss = found.loss
        if reporting:  # Lightning writes at these steps alone, and takes as long for a log as a small step does
            report = {"loss": found.loss, self.algorithm.kind.short: found.score, "grad_norm": found.norm, "lr": lr}
            report["left_out"] = float(self.bad_tasks.total)
            self._log_all("train", report, found.tasks)

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> None:
        """Scores some of the fixed validation tasks."""
        self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: TaskBatch, batch_idx: int) -> None:
        """Scores some of the fixed test tasks."""
        self._evaluate(batch, "test", batch_idx)

    @torch.inference_mode(False)
    def predict_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """The predictions for the queries of T tasks: (T, M, N); the labels of the queries are not read."""
        return engine.predict(self.algorithm, _differentiable(batch))

    def on_validation_epoch_end(self) -> None:
        """Reports all of them."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Reports all of them."""
        self._report("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over everything meta-learned, and the schedule of its step size."""
        optimizer = self.optimizer(self.parameters())
        total = max(1, self.trainer.max_steps)
        scheduler = LambdaLR(optimizer, lambda step: SCHEDULES[self.schedule](step / total))
        return [optimizer], [scheduler]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how many tasks were left out."""
        checkpoint["bad_tasks"] = [self.bad_tasks.total, self.bad_tasks.in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets Lightning's loops begin a new epoch where the checkpoint stands.

        Our loaders start at `global_step`, so there is no half epoch to go back into; left alone, the loops
        would end the finished epoch a second time and count one step too many.
        """
        self.bad_tasks.total, self.bad_tasks.in_a_row = checkpoint.get("bad_tasks", (0, 0))
        fit = checkpoint["loops"]["fit_loop"]
        fit["epoch_loop.batch_progress"]["is_last_batch"] = False
        fit["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - 1  # Lightning adds one
        batches, epochs = fit["epoch_loop.batch_progress"], fit["epoch_progress"]
        batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
        batches["current"] = dict.fromkeys(batches["current"], 0)
        epochs["current"] = epochs["total"] = dict.fromkeys(epochs["total"], epochs["total"]["processed"])

    def _latest_checkpoint(self) -> str:
        callbacks = [each for each in self.trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        paths = [Path(each.best_model_path) for each in callbacks if each.best_model_path]
        paths += [Path(each.dirpath) / "last.ckpt" for each in callbacks if each.dirpath]
        written = [path for path in paths if path.is_file()]
        return str(max(written, key=lambda path: path.stat().st_mtime_ns)) if written else "none yet"

    def _log_curve(self, batch: TaskBatch) -> None:
        """Logs loss and score of the training tasks before adaptation and after each inner step."""
        judged = engine.evaluate(self.algorithm, batch, stage="train", every_state=True).mean(1)  # (2, S)
        self._log_states("train", judged, range(judged.shape[1]), len(batch.support_y))

    def _log_all(self, stage: str, report: dict[str, Any], tasks: int) -> None:
        named = {f"{stage}/{name}": value for name, value in report.items()}
        # A logged "step" is the x-axis of every logger: meta-updates done, whatever Lightning has counted.
        self.log_dict(named | {"step": float(self.global_step)}, batch_size=tasks, sync_dist=True)

    def _log_states(self, stage: str, judged: Tensor, steps: Sequence[int], tasks: int) -> None:
        names = ("loss", self.algorithm.kind.short)
        report = {
            f"{name}_step_{state}": value
            for name, values in zip(names, judged, strict=True)
            for state, value in zip(steps, values, strict=True)
        }
        self._log_all(stage, report, tasks)

    @torch.inference_mode(False)
    def _evaluate(self, batch: TaskBatch, stage: Stage, batch_idx: int) -> None:
        """Judges a block of the fixed tasks; this process has every so many of them."""
        batch = _differentiable(batch)
        first = BLOCK * (self.trainer.global_rank + batch_idx * self.trainer.world_size)
        number = first + torch.arange(len(batch.support_y), device=batch.support_y.device, dtype=torch.float32)
        wanted = max(0, self.curve_episodes - first)
        for part, every_state in ((slice(wanted), self.curve_steps or True), (slice(wanted, None), False)):
            tasks = TaskBatch(*(tensor[part] for tensor in batch))
            if len(tasks.support_y):
                found = engine.evaluate(  # (2 and what is counted, T, S)
                    self.algorithm,
                    tasks,
                    stage=stage,
                    every_state=every_state,
                    one_by_one=self.one_by_one,
                    also=confidence_judges(self.algorithm),
                )
                self.judged.update(torch.cat([number[part, None], found[..., -1].T], 1).flatten())
                if every_state:
                    self.curve.update(torch.cat([number[part, None], *found[:2]], 1).flatten())

    def _report(self, stage: Stage) -> None:
        """Gathers the evaluation's tasks in their order, logs them and keeps them in `evaluated`."""
        width = 3 + 3 * CONFIDENCE_BINS * len(confidence_judges(self.algorithm))
        _, losses, scores, *confidence = ranks.in_order(self.judged, width).T
        steps = self.curve_steps or range(self.algorithm.steps(stage) + 1)
        curve = ranks.in_order(self.curve, 1 + 2 * len(steps))[:, 1:]
        curve = curve.unflatten(1, (2, -1)).transpose(0, 1)  # (2, E, S)
        self.evaluated = Scores(scores, losses, curve, confidence)
        mean, ci95 = interval(scores)
        report = {"loss": losses.mean(), self.algorithm.kind.short: mean, "ci95": ci95}
        self._log_all(stage, report, len(scores))
        self._log_states(stage, curve.mean(1).float(), steps, curve.shape[1])


def _differentiable(batch: TaskBatch) -> TaskBatch:
    """Tensors made in inference mode can never be differentiated; adaptation needs to: copies them."""
    return TaskBatch(*(tensor.clone() if tensor.is_inference() else tensor for tensor in batch))
