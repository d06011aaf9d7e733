"""How fast training goes, as metrics of the run."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from fewshot import engine
from fewshot.allocation import peak_memory_mb
from fewshot.outer import MetaLearner
from fewshot.tasks import TaskBatch


class Speed(Callback):
    """Logs tasks and floating-point operations per second of training, of all processes together, and the most memory
    that one of them held.

    At the steps where the trainer logs; time spent in validation is left out. Operations are those of convolutions and
    matrix products, counted at the first such step, and at each where an algorithm changes with the outer steps.
    """

    def __init__(self) -> None:
        self._since = (0, 0.0)  # step and time of the latest report
        self._flops = 0.0  # of a task

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._since = (trainer.global_step, time.perf_counter())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts it anew."""
        self._since = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TaskBatch, batch_idx: int
    ) -> None:
        """Reports the steps since the latest report."""
        if trainer.global_step % trainer.log_every_n_steps != 0:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, MetaLearner)
        (step, then), now, own = self._since, time.perf_counter(), len(batch.support_y)
        rate = (trainer.global_step - step) * own * trainer.world_size / (now - then)
        if pl_module.algorithm.anneals or not self._flops:
            self._flops = engine.count_flops(pl_module.algorithm, batch) / own
        report = {"train/tasks_per_second": rate, "train/gflops_per_second": rate * self._flops / 1e9}
        pl_module.log_dict(report, batch_size=own)
        memory = peak_memory_mb(pl_module.device)
        pl_module.log("train/peak_memory_mb", memory, batch_size=own, sync_dist=True, reduce_fx="max")
        self._since = (trainer.global_step, time.perf_counter())
