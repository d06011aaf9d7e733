"""The LightningDataModule: task batches of any source, drawn by index and gathered on the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewshot.augment import Augmentation, maps_tensor, warp
from fewshot.data.episodes import (
    BLOCK,
    TaskIndex,
    TaskShape,
    check_shape,
    draw_tasks,
    episodes_sha256,
    evaluation_block,
    generator,
)
from fewshot.data.images import ImageSet
from fewshot.data.splits import Split, class_lists, split_classes
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch


class DrawnTasks(NamedTuple):
    """What a loader hands over: which images, and how to warp them (None: not at all)."""

    tasks: TaskIndex
    maps: Tensor | None  # (T, N*(K+Q), 2, 3), support then queries


class EpisodeData(LightningDataModule):
    """Episodes of support and query images.

    Loaders yield indices; after the move to the device Lightning calls `on_after_batch_transfer`, which
    gathers the images from one uint8 tensor that lies there, scales them to [0, 1] and augments them. What
    the LightningModule receives is a `TaskBatch`.

    Args:
        source: called as source(root, image_size) -> ImageSet.
        root: where the data lies, or is downloaded to.
        image_size: H = W in pixels.
        split: name of the rule that divides the classes (`fewshot.data.splits`).
        num_classes: use only the first so many training classes; None: all.
        fixed_labels: in training a class has one label in all tasks, its place among the training classes;
            False: its place in the task. For learners that train a classifier of fixed classes.
        n_way, k_shot: classes of a task, support images of each, everywhere.
        q_query, eval_q_query: query images of each class in training, and in validation and test.
        meta_batch_size: tasks per outer step.
        steps_per_epoch: outer steps between two validations.
        val_episodes, test_episodes: fixed tasks of each evaluation.
        seed: draws splits and training tasks.
        eval_seed: draws validation and test tasks, apart from `seed` so that all runs share them.
        augmentation: applied to training tasks only.
        num_workers: processes that draw; 0 draws in the main one, which costs little.
    """

    def __init__(
        self,
        source: Callable[[str, int], ImageSet],
        root: str,
        *,
        image_size: int,
        split: str,
        num_classes: int | None,
        fixed_labels: bool = False,
        n_way: int,
        k_shot: int,
        q_query: int,
        eval_q_query: int,
        meta_batch_size: int,
        steps_per_epoch: int,
        val_episodes: int,
        test_episodes: int,
        seed: int,
        eval_seed: int,
        augmentation: Augmentation,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        counts = dict(meta_batch_size=meta_batch_size, steps_per_epoch=steps_per_epoch, val_episodes=val_episodes)
        for key, value in (counts | {"test_episodes": test_episodes}).items():
            if value < 1:
                raise UserError(f"data.{key}={value} must be at least 1")
        if min(seed, eval_seed) < 0:
            raise UserError(f"seed={seed} and data.eval_seed={eval_seed} must not be negative")
        self.source = source
        self.root = root
        self.image_size = image_size
        self.split_name = split
        self.num_classes = num_classes
        self.fixed_labels = fixed_labels
        self.train_shape = TaskShape(n_way, k_shot, q_query)
        self.eval_shape = TaskShape(n_way, k_shot, eval_q_query)
        self.meta_batch_size = meta_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.eval_episodes = {"val": val_episodes, "test": test_episodes}
        self.seed = seed
        self.eval_seed = eval_seed
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.image_set: ImageSet | None = None
        self.classes: Split = {}
        self._on_device: Tensor | None = None  # (images, C, H, W) uint8, where the last batch was

    def setup(self, stage: str | None = None) -> None:
        """Loads the images, divides the classes and refuses tasks that they cannot fill; once."""
        if self.image_set is not None:
            return
        image_set = self.source(self.root, self.image_size)
        classes = split_classes(image_set, self.split_name, self.seed)
        if self.num_classes is not None:
            available = len(classes["train"])
            if not 0 < self.num_classes <= available:
                raise UserError(
                    f"data.num_classes={self.num_classes} but split 'train' has {available} classes: "
                    f"choose 1 to {available}, or null for all"
                )
            classes["train"] = classes["train"][: self.num_classes]
        for name, listed in classes.items():
            shape = self.train_shape if name == "train" else self.eval_shape
            check_shape(shape, name, len(listed), image_set.drawings)
        self.image_set, self.classes = image_set, classes

    @property
    def channels(self) -> int:
        """C of the images."""
        return self._images().images.shape[2]

    def class_lists(self) -> dict[str, dict[str, object]]:
        """Names and sha256 of the classes of every split."""
        return class_lists(self._images(), self.classes)

    def episodes_sha256(self, split: str) -> str:
        """The fingerprint of the fixed tasks of "val" or "test"."""
        images = self._images()
        return episodes_sha256(
            images.images, images.names, [self._draw(split, block).tasks for block in self.blocks(split)]
        )

    def task_batch(self, split: str, step: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The tasks of one outer step ("train"), or of one block of the fixed tasks ("val", "test")."""
        return self._gather(self._draw(split, step), torch.device(device))

    def train_dataloader(self) -> DataLoader:
        """The outer steps from where training stands to the next validation, or to the last step."""
        first, last = 0, self.steps_per_epoch
        if self.trainer is not None:
            first = self.trainer.global_step
            last = min(first + self.steps_per_epoch, self.trainer.max_steps)
        return self._loader("train", range(first, last))

    def val_dataloader(self) -> DataLoader:
        """The fixed validation tasks."""
        return self._loader("val", self.blocks("val"))

    def test_dataloader(self) -> DataLoader:
        """The fixed test tasks."""
        return self._loader("test", self.blocks("test"))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> TaskBatch:
        """Indices on the device -> images on the device."""
        return self._gather(batch, batch.tasks.support_i.device)

    def _loader(self, split: str, steps: Sequence[int]) -> DataLoader:
        dataset = _Draws(self._draw, split, steps)
        return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=self.num_workers)

    def blocks(self, split: str) -> range:
        """The numbers of the blocks that the fixed tasks of "val" or "test" are drawn in."""
        return range(-(-self.eval_episodes[split] // BLOCK))

    def _draw(self, split: str, step: int) -> DrawnTasks:
        classes, drawings = self.classes[split], self._images().drawings
        if split != "train":
            block = evaluation_block(self.eval_seed, split, step, classes, drawings, self.eval_shape)
            wanted = self.eval_episodes[split] - step * BLOCK
            return DrawnTasks(TaskIndex(*(tensor[:wanted] for tensor in block)), None)
        rng = generator(self.seed, split, step)
        index = draw_tasks(
            rng, self.meta_batch_size, classes, drawings, self.train_shape, fixed_labels=self.fixed_labels
        )
        labels = torch.cat([index.support_y, index.query_y], dim=1).numpy()
        return DrawnTasks(index, maps_tensor(self.augmentation.draw(generator(self.seed, split, step, 1), labels)))

    def _gather(self, drawn: DrawnTasks, device: torch.device) -> TaskBatch:
        images, (index, maps) = self._images_on(device), drawn
        both = torch.cat([index.support_i, index.query_i], dim=1).to(device)
        x = images[both].to(torch.float32).div_(255)  # (T, N*(K+Q), C, H, W)
        if maps is not None:
            x = warp(x, maps.to(device))
        support_x, query_x = x.split([index.support_i.shape[1], index.query_i.shape[1]], dim=1)
        return TaskBatch(support_x, index.support_y.to(device), query_x, index.query_y.to(device))

    def _images_on(self, device: torch.device) -> Tensor:
        if self._on_device is None or self._on_device.device != device:
            self._on_device = self._images().images.flatten(end_dim=1).to(device)
        return self._on_device

    def _images(self) -> ImageSet:
        if self.image_set is None:
            self.setup()
        assert self.image_set is not None
        return self.image_set


class _Draws(Dataset):
    """Steps of a split as a map-style data set, so that workers share the steps without repeating one."""

    def __init__(self, draw: Callable[[str, int], DrawnTasks], split: str, steps: Sequence[int]) -> None:
        self.draw, self.split, self.steps = draw, split, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> DrawnTasks:
        return self.draw(self.split, self.steps[item])
