"""Episodes of images: tasks of any image source, drawn by index and gathered on the device."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot.augment import Augmentation, maps_tensor, warp
from fewshot.data.episodes import (
    TaskIndex,
    TaskShape,
    check_groups,
    check_shape,
    draw_tasks,
    episodes_sha256,
    evaluation_block,
    generator,
)
from fewshot.data.images import ImageSet, grouped, quarter_turned
from fewshot.data.splits import Split, class_lists, split_classes
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.tasks import Classification, TaskBatch


class DrawnTasks(NamedTuple):
    """What a loader hands over: which images, and how to warp them (None: not at all)."""

    tasks: TaskIndex
    maps: Tensor | None  # (T, N*(K+Q), 2, 3), support then queries


class EpisodeData(TaskData):
    """Episodes of support and query images.

    Loaders yield indices; on the device the images are gathered from one uint8 tensor that lies there, scaled to
    [0, 1] and augmented.

    Args:
        source: called as source(root, image_size) -> ImageSet.
        root: where the data lies, or is downloaded to.
        image_size: H = W in pixels.
        split: name of the rule that divides the classes (`fewshot.data.splits`).
        quarter_turns: every class turned by 90°, 180° and 270° is three more classes, in all splits; those of one class
            are in the same split, and may be in the same task (Snell et al. 2017).
        within_alphabet: the classes of a task are of one alphabet (the group of their names), and every alphabet that
            has enough is as likely as any other (Lake et al. 2015); in training and in evaluation. Quarter-turned
            alphabets are alphabets of their own.
        num_classes: use only the first so many training classes (before they are turned); None: all.
        fixed_labels: in training a class has one label in all tasks, its place among the training classes;
            False: its place in the task. For learners that train a classifier of fixed classes.
        n_way, k_shot: classes of a task, support images of each, in validation and test.
        train_n_way, train_k_shot: the same in training.
        q_query, eval_q_query: query images of each class in training, and in validation and test.
        augmentation: applied to training tasks only.
        meta_batch_size, steps_per_epoch, val_episodes, test_episodes, seed, eval_seed, num_workers: as in
            `TaskData`.
    """

    def __init__(
        self,
        source: Callable[[str, int], ImageSet],
        root: str,
        *,
        image_size: int,
        split: str,
        quarter_turns: bool = False,
        within_alphabet: bool = False,
        num_classes: int | None,
        fixed_labels: bool = False,
        n_way: int,
        k_shot: int,
        train_n_way: int,
        train_k_shot: int,
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
        super().__init__(
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            seed=seed,
            eval_seed=eval_seed,
            num_workers=num_workers,
        )
        self.source = source
        self.root = root
        self.image_size = image_size
        self.split_name = split
        self.quarter_turns = quarter_turns
        self.within_alphabet = within_alphabet
        self.num_classes = num_classes
        self.fixed_labels = fixed_labels
        self.train_shape = TaskShape(train_n_way, train_k_shot, q_query)
        self.eval_shape = TaskShape(n_way, k_shot, eval_q_query)
        self.augmentation = augmentation
        self.image_set: ImageSet | None = None
        self.classes: Split = {}
        self._groups: dict[str, list[Sequence[int]]] = {}  # places in `classes` of those that share a task
        self._on_device: Tensor | None = None  # (images, C, H, W) uint8, where the last batch was

    def setup(self, stage: str | None = None) -> None:
        """Loads the images, divides the classes and refuses tasks that they cannot fill; once.

        Args:
            stage: "test": the tasks of the other splits need not be possible.
        """
        if self.image_set is not None:
            return
        if stage != "test" and self.quarter_turns and self.augmentation.turns_classes:
            raise UserError(
                "data.quarter_turns=true has turned classes already, and aug turns them again, by which two of a task "
                "may become one: choose aug=none, or aug=affine"
            )
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
        if self.quarter_turns:
            image_set = quarter_turned(image_set)
            classes = {part: [4 * i + turn for i in listed for turn in range(4)] for part, listed in classes.items()}
        for name, listed in classes.items():
            if stage == "test" and name != "test":
                continue
            shape = self.train_shape if name == "train" else self.eval_shape
            check_shape(shape, name, {image_set.names[i]: image_set.counts[i] for i in listed})
            if self.within_alphabet:
                self._groups[name] = check_groups(shape, name, grouped([image_set.names[i] for i in listed]))
        self.image_set, self.classes = image_set, classes

    def reshaped(self, shape: TaskShape, test_episodes: int, keys: Sequence[str]) -> "EpisodeData":
        """The same images and classes, in test tasks of another shape.

        Args:
            keys: the three of the configuration that say the shape, for the refusal.

        Raises:
            UserError: the test classes cannot fill such tasks.
        """
        images = self._images()
        check_shape(shape, "test", {images.names[i]: images.counts[i] for i in self.classes["test"]}, keys)
        other = copy.copy(self)
        if self.within_alphabet:
            names = [images.names[i] for i in self.classes["test"]]
            other._groups = {"test": check_groups(shape, "test", grouped(names))}
        other.eval_shape = shape
        other.eval_episodes = self.eval_episodes | {"test": test_episodes}
        return other

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return tuple(self._images().images.shape[1:])

    @property
    def kind(self) -> Classification:
        """Of N classes; with fixed labels, in training of as many as there are training classes."""
        self._images()
        trained = len(self.classes["train"]) if self.fixed_labels else self.train_shape.n_way
        return Classification(self.eval_shape.n_way, trained)

    @property
    def task_name(self) -> str:
        """ "5-way 1-shot", "20-way 1-shot within alphabets"."""
        shape = f"{self.eval_shape.n_way}-way {self.eval_shape.k_shot}-shot"
        return f"{shape} within alphabets" if self.within_alphabet else shape

    def record(self) -> dict[str, Any]:
        """Split, shape, and the sha256 of every split's list of classes (turned ones have names of their own)."""
        rules = {"split": self.split_name, "quarter_turns": self.quarter_turns, "within_alphabet": self.within_alphabet}
        known = rules | self.eval_shape._asdict()
        return known | {"classes_sha256": {split: listed["sha256"] for split, listed in self.class_lists().items()}}

    def class_lists(self) -> dict[str, dict[str, object]]:
        """Names and sha256 of the classes of every split."""
        return class_lists(self._images(), self.classes)

    def episodes_sha256(self, split: str) -> str:
        """The fingerprint of the fixed tasks of "val" or "test"."""
        images = self._images()
        return episodes_sha256(
            images.images, images.names, [self.draw(split, block).tasks for block in self.blocks(split)]
        )

    def drawn(self, split: str, step: int) -> DrawnTasks:
        """Which images, and how they are warped."""
        counts, classes = self._images().counts, self.classes[split]
        groups = self._groups.get(split)
        if split != "train":
            block = evaluation_block(self.eval_seed, split, step, classes, counts, self.eval_shape, groups)
            return DrawnTasks(TaskIndex(*(tensor[: self.block_size(split, step)] for tensor in block)), None)
        rng = generator(self.seed, split, step)
        index = draw_tasks(
            rng,
            self.meta_batch_size,
            classes,
            counts,
            self.train_shape,
            groups=groups,
            fixed_labels=self.fixed_labels,
        )
        labels = torch.cat([index.support_y, index.query_y], dim=1).numpy()
        return DrawnTasks(index, maps_tensor(self.augmentation.draw(generator(self.seed, split, step, 1), labels)))

    def gather(self, drawn: DrawnTasks) -> TaskBatch:
        """The images, where the indices lie."""
        index, maps = drawn
        both = torch.cat([index.support_i, index.query_i], dim=1)
        x = self._images_on(both.device)[both].to(torch.float32).div_(255)  # (T, N*(K+Q), C, H, W)
        if maps is not None:
            x = warp(x, maps)
        support_x, query_x = x.split([index.support_i.shape[1], index.query_i.shape[1]], dim=1)
        return TaskBatch(support_x, index.support_y, query_x, index.query_y)

    def class_of(self, images: Tensor) -> Tensor:
        """The numbers of the classes that images belong to, both as in the data set; of any shape."""
        ends = torch.cumsum(torch.tensor(self._images().counts), 0)
        return torch.searchsorted(ends, images.cpu(), right=True)

    def _images_on(self, device: torch.device) -> Tensor:
        if self._on_device is None or self._on_device.device != device:
            self._on_device = self._images().images.to(device)
        return self._on_device

    def _images(self) -> ImageSet:
        if self.image_set is None:
            self.setup()
        assert self.image_set is not None
        return self.image_set
