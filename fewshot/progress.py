"""One progress bar over all outer steps: loss, validation score, tasks per second, time left."""

import sys
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fewshot.errors import UserError
from fewshot.outer import MetaLearner
from fewshot.tasks import BLOCK


class StepProgress(ProgressBar):
    """A bar in a terminal; elsewhere (a log file, a cluster) one line after each validation.

    Args:
        refresh_per_second: how often the bar is drawn.
    """

    def __init__(self, *, refresh_per_second: float = 4) -> None:
        super().__init__()
        if not refresh_per_second > 0:
            raise UserError(f"callbacks.progress.refresh_per_second={refresh_per_second} must be positive")
        self.refresh_per_second = refresh_per_second
        self._enabled = True
        self._bar: Progress | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None

    def disable(self) -> None:
        """Lightning calls this on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undoes `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over all outer steps."""
        self._training = self._open("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """One outer step further."""
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, completed=trainer.global_step, news=_news(trainer, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of one validation."""
        self._evaluating = self._open("validating", _tasks(trainer, trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """One block of tasks further."""
        self._advance(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the validation's bar, or prints the line that stands for it."""
        self._close_evaluation()
        if self._bar is None and self._enabled:
            print(f"step {trainer.global_step}/{trainer.max_steps}  {_news(trainer, pl_module)}", flush=True)
        elif self._bar is not None and self._training is not None:
            self._bar.update(self._training, news=_news(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the full bar standing."""
        self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of the test."""
        self._evaluating = self._open("testing", _tasks(trainer, trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """One block of tasks further."""
        self._advance(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the test's bar."""
        self._close_evaluation()
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the terminal back before the error is told."""
        self._stop()

    def _open(self, name: str, total: int, completed: int = 0) -> TaskID | None:
        if not (self._enabled and sys.stdout.isatty()):
            return None
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description:>10}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[news]}"),
                TimeRemainingColumn(compact=True),
                console=Console(),
                refresh_per_second=self.refresh_per_second,
                expand=True,
            )
            self._bar.start()
        return self._bar.add_task(name, total=total, completed=completed, news="")

    def _advance(self, trainer: Trainer) -> None:
        if self._bar is not None and self._evaluating is not None:
            self._bar.advance(self._evaluating, _tasks(trainer, [1]))

    def _close_evaluation(self) -> None:
        if self._bar is not None and self._evaluating is not None:
            self._bar.remove_task(self._evaluating)
        self._evaluating = None

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._training = self._evaluating = None


def _tasks(trainer: Trainer, batches: Sequence[int | float]) -> int:
    """Of so many blocks in each process."""
    return int(sum(batches)) * BLOCK * trainer.world_size


def _news(trainer: Trainer, module: LightningModule) -> str:
    """What is known by now: loss, validation score ± interval, speed."""
    assert isinstance(module, MetaLearner)
    known = trainer.callback_metrics
    short = module.algorithm.kind.short
    parts = []
    if module.latest_loss is not None:
        parts.append(f"loss {module.latest_loss:.3f}")
    if f"val/{short}" in known:
        parts.append(f"val/{short} {known[f'val/{short}']:.3f} ± {known['val/ci95']:.3f}")
    if "train/tasks_per_second" in known:
        parts.append(f"{known['train/tasks_per_second']:.0f} tasks/s")
    return "  ".join(parts)
