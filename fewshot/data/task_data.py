"""The LightningDataModule that every source of tasks shares: which tasks come when."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from fewshot.errors import UserError
from fewshot.tasks import BLOCK, TaskBatch, TaskKind

_LARGEST_SEED = 2**32 - 1  # of numpy's first generator, which Lightning seeds too


class TaskData(LightningDataModule, ABC):
    """Batches of tasks by (split, step) alone, whoever asks and in whatever order.

    Loaders hand over what `draw` returns; after the move to the device Lightning calls
    `on_after_batch_transfer`, where `gather` makes a `TaskBatch` of it.

    Args:
        meta_batch_size: tasks per outer step.
        steps_per_epoch: outer steps between two validations.
        val_episodes, test_episodes: fixed tasks of each evaluation.
        seed: draws splits and training tasks.
        eval_seed: draws validation and test tasks, apart from `seed` so that all runs share them.
        num_workers: processes that draw; 0 draws in the main one, which costs little.
    """

    sealed = False  # True: no test task may be drawn; so while a learner is trained and chosen
    fixed_labels = False  # True: in training a class has the same label in every task

    def __init__(
        self,
        *,
        meta_batch_size: int,
        steps_per_epoch: int,
        val_episodes: int,
        test_episodes: int,
        seed: int,
        eval_seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        counts = dict(meta_batch_size=meta_batch_size, steps_per_epoch=steps_per_epoch, val_episodes=val_episodes)
        for key, value in (counts | {"test_episodes": test_episodes}).items():
            if value < 1:
                raise UserError(f"data.{key}={value} must be at least 1")
        if min(seed, eval_seed) < 0:
            raise UserError(f"seed={seed} and data.eval_seed={eval_seed} must not be negative")
        if seed > _LARGEST_SEED:
            raise UserError(f"seed={seed} must be at most {_LARGEST_SEED}")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} must be at least 0: the main process draws then")
        self.meta_batch_size = meta_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.eval_episodes = {"val": val_episodes, "test": test_episodes}
        self.seed = seed
        self.eval_seed = eval_seed
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Loads what tasks are drawn from, once, and refuses tasks that cannot be; nothing where all is drawn."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, without batch or task: what a model sees."""

    @property
    @abstractmethod
    def kind(self) -> TaskKind:
        """What the tasks ask for, and how many outputs a model needs."""

    @property
    @abstractmethod
    def task_name(self) -> str:
        """The tasks in a few words, "5-way 1-shot"."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What results.json says of the tasks: split, n_way, k_shot, q_query, fingerprints of classes."""

    def draw(self, split: str, step: int) -> Any:
        """What is drawn for one outer step ("train"), or for one block of the fixed tasks ("val", "test").

        Raises:
            RuntimeError: of the test split, while it is sealed.
        """
        if split == "test" and self.sealed:
            raise RuntimeError("test tasks were asked for before training has ended: nothing may be chosen by them")
        return self.drawn(split, step)

    @abstractmethod
    def drawn(self, split: str, step: int) -> Any:
        """The same, for those that may draw it."""

    @abstractmethod
    def gather(self, drawn: Any) -> TaskBatch:
        """The tasks of a draw, on the device where that lies."""

    @abstractmethod
    def episodes_sha256(self, split: str) -> str:
        """The fingerprint of the fixed tasks of "val" or "test"."""

    def task_batch(self, split: str, step: int) -> TaskBatch:
        """The tasks of one outer step, or of one block of the fixed tasks."""
        return self.gather(self.draw(split, step))

    def example(self) -> TaskBatch:
        """Tasks that a picture shows."""
        return self.task_batch("test", 0)

    def blocks(self, split: str) -> range:
        """The numbers of the blocks that the fixed tasks of "val" or "test" are drawn in."""
        return range(-(-self.eval_episodes[split] // BLOCK))

    def block_size(self, split: str, block: int) -> int:
        """Tasks of a block: all are full but perhaps the last."""
        return min(BLOCK, self.eval_episodes[split] - block * BLOCK)

    def train_dataloader(self) -> DataLoader:
        """The outer steps from where training stands to the next validation, or to the last step."""
        first, last = 0, self.steps_per_epoch
        if self.trainer is not None:
            first = self.trainer.global_step
            epoch_end = (first // self.steps_per_epoch + 1) * self.steps_per_epoch  # a run may have stopped before it
            last = min(epoch_end, self.trainer.max_steps)
        rank, processes = self._place()
        share = self.meta_batch_size // processes
        return self._loader("train", range(first, last), slice(rank * share, (rank + 1) * share))

    def val_dataloader(self) -> DataLoader:
        """The fixed validation tasks; of several processes each has every so many blocks."""
        return self._dealt("val")

    def test_dataloader(self) -> DataLoader:
        """The fixed test tasks; of several processes each has every so many blocks."""
        return self._dealt("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> TaskBatch:
        """What was drawn, on the device -> tasks on the device."""
        return self.gather(batch)

    def refuse_uneven_shares(self, processes: int) -> None:
        """Every process takes the same number of a meta-batch's tasks."""
        if self.meta_batch_size % processes:
            lower = self.meta_batch_size // processes * processes
            fitting = f"{lower} or {lower + processes}" if lower else str(processes)
            raise UserError(
                f"data.meta_batch_size={self.meta_batch_size} tasks cannot be shared out evenly to {processes} "
                f"processes: {fitting} can"
            )

    def _place(self) -> tuple[int, int]:
        """Which process this is, of how many."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _dealt(self, split: str) -> DataLoader:
        rank, processes = self._place()
        blocks = self.blocks(split)
        if rank < len(blocks):
            return self._loader(split, blocks[rank::processes], slice(None))
        return self._loader(split, blocks[:1], slice(0))  # no task of it: Lightning asks every process for a batch

    def _loader(self, split: str, steps: Sequence[int], share: slice) -> DataLoader:
        dataset = _Draws(self.draw, split, steps, share)
        return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=self.num_workers)


class _Draws(Dataset):
    """Steps of a split as a map-style data set, so that workers share the steps without repeating one.

    Of the tasks of every draw a process takes its share: what a task holds does not depend on how many there are.
    """

    def __init__(self, draw: Callable[[str, int], Any], split: str, steps: Sequence[int], share: slice) -> None:
        self.draw, self.split, self.steps, self.share = draw, split, steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor[self.share], self.draw(self.split, self.steps[item]))
