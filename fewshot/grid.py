"""One checkpoint, tasks of many shapes: the score against ways, shots and inner steps."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from fewshot.algorithms.base import Algorithm
from fewshot.build import learner_for
from fewshot.data.datamodule import EpisodeData
from fewshot.data.episodes import TaskShape
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.evaluation import circumstances, interval
from fewshot.grid_record import Cell, table, write_grid
from fewshot.outer import MetaLearner
from fewshot.tasks import BLOCK
from fewshot.testing import Tested
from fewshot.wandb_record import log_grid

_KEYS = ("grid.ways", "grid.shots", "grid.q_query")


class Plan(NamedTuple):
    """The cells of a grid that one learner can fill."""

    tasks: list[EpisodeData]  # of every pair of way and shot, in the order of the table
    steps: list[int]  # after which each is judged
    empty: str | None  # why there are no tasks of other ways


class Grid:
    """Every pair of ways and shots, judged after every number of inner steps.

    Args:
        ways, shots: classes of a task, support images of each.
        steps: inner steps after which a task is judged; a learner that takes none is judged once.
        episodes: test tasks of each pair of way and shot.
        q_query: query images of each class.
    """

    def __init__(
        self, *, ways: Sequence[int], shots: Sequence[int], steps: Sequence[int], episodes: int, q_query: int
    ) -> None:
        for key, values, least in (("ways", ways, 2), ("shots", shots, 1), ("steps", steps, 0)):
            if not len(values) or min(values) < least:
                raise UserError(f"grid.{key}={list(values)} must be one or more numbers of at least {least}")
        if episodes < 2:
            raise UserError(f"grid.episodes={episodes} must be at least 2: one task has no interval")
        if q_query < 1:
            raise UserError(f"grid.q_query={q_query} must be at least 1")
        self.ways, self.shots, self.steps = (sorted({int(n) for n in values}) for values in (ways, shots, steps))
        self.episodes = episodes
        self.q_query = q_query

    def plan(self, data: TaskData, algorithm: Algorithm) -> Plan:
        """What is to be computed.

        Raises:
            UserError: the tasks have no ways, the learner can answer none of them, or the test classes cannot fill one.
        """
        name = type(algorithm).__name__
        if not isinstance(data, EpisodeData):
            raise UserError(
                f"grid= is of ways and shots, and the tasks of {type(data).__name__} have no ways: score it as "
                "python evaluate.py ckpt_path=… data.k_shot=K algo.eval_inner_steps=S"
            )
        ways = [n_way for n_way in self.ways if algorithm.can_answer(n_way)]
        others = [n_way for n_way in self.ways if n_way not in ways]
        head = f"{name} was trained at {algorithm.kind.outputs('train')} ways and has one head for all tasks"
        if not ways:
            raise UserError(f"grid.ways={self.ways}: {head}; add {algorithm.kind.outputs('train')} to grid.ways")
        shapes = [TaskShape(n_way, k_shot, self.q_query) for n_way in ways for k_shot in self.shots]
        return Plan(
            [data.reshaped(shape, self.episodes, _KEYS) for shape in shapes],
            self.steps if _takes_steps(algorithm) else [0],
            f"{', '.join(map(str, others))} ways are left empty: {head}" if others else None,
        )


def score_grid(
    cfg: DictConfig,
    folder: Path,
    trainer: Trainer,
    learner: MetaLearner,
    *,
    grid: Grid,
    plan: Plan,
    data: EpisodeData,
    origin: Tested,
) -> dict[str, Any]:
    """Scores the learner in every cell; the first process writes the files of `write_grid` and prints the table.

    One pass through the largest number of inner steps judges all of them: after k steps of it a learner stands where
    k steps alone take it, as in `after_each_inner_step` of a test. Several processes share the tasks of a cell as
    those of a test.

    Args:
        data: of the run's own tasks.

    Returns:
        The record; in all but the first of several processes an empty one.
    """
    started = time.perf_counter()
    loggers, trainer.loggers = trainer.loggers, []  # the scores of one cell would stand there as those of the test
    cells: list[Cell] = []
    for number, tasks in enumerate(plan.tasks, start=1):
        if trainer.is_global_zero:
            print(f"{number} of {len(plan.tasks)}: {tasks.task_name}", flush=True)
        cells += _score(cfg, trainer, learner, tasks, plan.steps, chunk_of(learner.algorithm, data, tasks.eval_shape))
    if not trainer.is_global_zero:
        return {}
    known = data.record()
    record = (
        circumstances(origin.algo, learner.algorithm, cfg.seed, origin.checkpoint)
        | {
            "data": origin.data,
            "trained_on": origin.trained_on,
            "split": known["split"],
            "quarter_turns": known["quarter_turns"],
        }
        | {"within_alphabet": known["within_alphabet"]}
        | {"classes_sha256": known["classes_sha256"], "q_query": grid.q_query, "episodes": grid.episodes}
        | {"ways": grid.ways, "shots": grid.shots, "inner_steps": plan.steps, "empty": plan.empty}
        | {"train_n_way": data.train_shape.n_way, "train_k_shot": data.train_shape.k_shot}
        | {"cells": [cell._asdict() for cell in cells], "seconds": time.perf_counter() - started}
    )
    write_grid(folder, record, cells)
    log_grid(loggers, cells, folder / "plots" / "grid.png")
    print(f"{table(record, cells)}\nrun: {folder}", flush=True)
    return record


def _score(
    cfg: DictConfig,
    trainer: Trainer,
    trained: MetaLearner,
    tasks: EpisodeData,
    steps: Sequence[int],
    task_chunk: int | str,
) -> list[Cell]:
    """The cells of one way and shot; a learner for so many ways gets the trained one's weights."""
    learner = learner_for(cfg, tasks.input_shape, tasks.kind)
    learner.load_state_dict(trained.state_dict())
    learner.algorithm.test_inner_steps = max(steps)
    learner.algorithm.task_chunk = task_chunk
    learner.curve_episodes, learner.curve_steps = tasks.eval_episodes["test"], steps
    trainer.test(learner, datamodule=tasks, verbose=False)
    if trainer.received_sigterm:  # during a cell's last tasks, after which Lightning does not look
        raise SIGTERMException
    assert learner.evaluated is not None
    scores = learner.evaluated.curve[1]  # (E, S)
    digest = tasks.episodes_sha256("test")
    n_way, k_shot, _ = tasks.eval_shape
    return [
        Cell(n_way, k_shot, step, *interval(column), len(scores), digest)
        for step, column in zip(steps, scores.T, strict=True)
    ]


def _takes_steps(algorithm: Algorithm) -> bool:
    return max(algorithm.inner_steps, algorithm.eval_inner_steps, algorithm.test_inner_steps) > 0


def chunk_of(algorithm: Algorithm, data: EpisodeData, shape: TaskShape) -> int | str:
    """Tasks of a cell that are computed together: no more images at once than in training."""
    if algorithm.task_chunk == "auto":
        return "auto"
    trained = min(int(algorithm.task_chunk or data.meta_batch_size), data.meta_batch_size)
    own, theirs = (n_way * (k_shot + q_query) for n_way, k_shot, q_query in (data.train_shape, shape))
    return max(1, min(BLOCK, trained * own // theirs))
