"""What a run writes into its checkpoints beside weights: how it was configured, and how long it has trained."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from fewshot.checkpoints import RECORD

_SECONDS = "train_seconds"  # key in the checkpoint


def train_seconds(checkpoint: dict[str, Any] | None) -> float:
    """How long training took up to a checkpoint, over all starts of its run."""
    return 0.0 if checkpoint is None else checkpoint.get(_SECONDS, 0.0)


class RunRecord(Callback):
    """Writes the run's configuration into its checkpoints, and how long training took.

    Args:
        record: the configuration.
        seconds: of training before this start.
    """

    def __init__(self, record: dict[str, Any], seconds: float) -> None:
        self.record = record
        self.before, self.started = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self.before + time.perf_counter() - self.started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the seconds, so that a score can be seen against them."""
        pl_module.log("val/seconds", self.seconds, batch_size=1, sync_dist=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds both."""
        checkpoint[RECORD] = self.record
        checkpoint[_SECONDS] = self.seconds
