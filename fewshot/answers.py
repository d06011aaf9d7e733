"""Answers to tasks that were drawn beforehand: a folder of images in, a file to hand in out."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from fewshot.algorithms.base import Algorithm
from fewshot.data.task_folder import TaskFolder, read_answers, read_tasks, write_answers
from fewshot.errors import UserError
from fewshot.evaluation import circumstances, interval, summary, write_json
from fewshot.outer import MetaLearner
from fewshot.tasks import BLOCK, TaskBatch


def answer(
    cfg: DictConfig, folder: Path, trainer: Trainer, learner: MetaLearner, *, algo: str, input_shape: Sequence[int]
) -> dict[str, Any]:
    """Writes output.csv (and results.json) for the tasks of `cfg.tasks_dir`; scores them if labels are given."""
    started = time.perf_counter()
    if trainer.world_size > 1:
        raise UserError(
            f"tasks_dir={cfg.tasks_dir} is answered by one process, not {trainer.world_size}: trainer=default"
        )
    n_way = cfg.data.n_way
    if n_way < 2:
        raise UserError(f"data.n_way={n_way} must be at least 2, as many classes as each task of tasks_dir has")
    channels, image_size, _ = input_shape
    given = read_tasks(Path(str(cfg.tasks_dir)), n_way=n_way, channels=channels, image_size=image_size)
    tasks = given.tasks
    episodes, queries = tasks.query_y.shape
    labels = None if cfg.labels is None else read_answers(Path(str(cfg.labels)), episodes, queries, n_way)
    parts = trainer.predict(learner, dataloaders=DataLoader(_Blocks(tasks), batch_size=None))
    assert parts is not None
    classes = torch.cat([part.argmax(-1).cpu() for part in parts])  # type: ignore[union-attr]
    write_answers(folder / "output.csv", classes)
    found = _record(cfg, given, algo, learner.algorithm) | {"seconds": time.perf_counter() - started}
    ground = f"{given.background} background" if given.background else "colour"
    print(f"{episodes} tasks of {n_way} classes, {found['k_shot']} shot, {queries} queries each, {ground}")
    if labels is not None:
        found["mean"], found["ci95"] = interval((classes == labels).double().mean(1))
        print(summary(f"{n_way}-way {found['k_shot']}-shot", found))
    write_json(folder / "results.json", found)
    print(f"answers: {folder / 'output.csv'}", flush=True)
    return found


def _record(cfg: DictConfig, given: TaskFolder, algo: str, algorithm: Algorithm) -> dict[str, Any]:
    tasks = given.tasks
    digest = hashlib.sha256()
    for tensor in tasks:
        digest.update(tensor.numpy().tobytes())
    return circumstances(algo, algorithm, cfg.seed, cfg.ckpt_path) | {
        "data": str(cfg.tasks_dir),
        "split": None,
        "n_way": cfg.data.n_way,
        "k_shot": tasks.support_y.shape[1] // cfg.data.n_way,
        "q_query": tasks.query_y.shape[1] / cfg.data.n_way,  # nothing says that all classes have as many
        "mean": None,
        "ci95": None,
        "episodes": len(tasks.query_y),
        "episodes_sha256": digest.hexdigest(),
        "background": given.background,
    }


class _Blocks(torch.utils.data.Dataset):
    """The tasks in blocks, as an evaluation takes them."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return -(-len(self.tasks.support_y) // BLOCK)

    def __getitem__(self, block: int) -> TaskBatch:
        if block >= len(self):
            raise IndexError
        return TaskBatch(*(tensor[block * BLOCK : (block + 1) * BLOCK] for tensor in self.tasks))
