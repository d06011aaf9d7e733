"""A cluster takes its machine back: SIGTERM, some seconds of grace, and later the same command again."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

EXIT_CODE = 128 + signal.SIGTERM  # 143: ended by this signal, as a shell, a container or a scheduler reports it


class Preemption(Callback):
    """On SIGTERM finishes the outer step, writes `last.ckpt` there and ends the process with code 143.

    A signal during the last step of an epoch or its validation waits for both: the checkpoint that is written after
    them is the one to go on from.

    Args:
        dirpath: folder of the checkpoints.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signal over from Lightning, which would end the run without a checkpoint and with code 0.

        After training Lightning gives it back to whom it had it from.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends where an epoch has just been written, or nothing has begun."""
        if self._agreed(trainer):
            if not trainer.strategy.reduce_boolean_decision(self.path.exists(), all=False):
                trainer.save_checkpoint(self.path)
            self._end(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes and ends, within an epoch; here, and not after the step before, since that is logged by now."""
        if self._agreed(trainer):
            trainer.save_checkpoint(self.path)
            self._end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over and written: ends before the test, which the next start makes up for."""
        if self._agreed(trainer):
            self._end(trainer)

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was asked: a checkpoint takes all of them, at the same step."""
        return trainer.strategy.reduce_boolean_decision(self._asked, all=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _end(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(
                f"\nSIGTERM at outer step {trainer.global_step}: python train.py ckpt_path={self.path} goes on",
                flush=True,
            )
        raise SystemExit(EXIT_CODE)
