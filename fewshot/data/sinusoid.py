"""Few-shot regression: sine waves of random amplitude and phase, drawn and never stored."""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewshot.data.episodes import generator
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.tasks import BLOCK, Regression, TaskBatch

GRID = 200  # points of a curve in a picture


class SinusoidData(TaskData):
    """y = A sin(x − φ), with A, φ and every x uniform; without noise.

    C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning, ICML 2017, §5.1. Training, validation and test
    draw from the same distribution, each its own waves.

    Args:
        amplitude, phase, x: (low, high) of A, of φ in radians, and of the inputs.
        k_shot: points to learn from.
        q_query, eval_q_query: points to predict, in training, and in validation and test.
        meta_batch_size, steps_per_epoch, val_episodes, test_episodes, seed, eval_seed, num_workers: as in
            `TaskData`.
    """

    def __init__(
        self,
        *,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, math.pi),
        x: tuple[float, float] = (-5.0, 5.0),
        k_shot: int,
        q_query: int,
        eval_q_query: int,
        meta_batch_size: int,
        steps_per_epoch: int,
        val_episodes: int,
        test_episodes: int,
        seed: int,
        eval_seed: int,
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
        for name, (low, high) in {"amplitude": amplitude, "phase": phase, "x": x}.items():
            if not low < high:
                raise UserError(f"data.{name}=[{low},{high}] must be a low and a higher value")
        for name, value in {"k_shot": k_shot, "q_query": q_query, "eval_q_query": eval_q_query}.items():
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1")
        self.amplitude = amplitude
        self.phase = phase
        self.x = x
        self.k_shot = k_shot
        self.q_query = q_query
        self.eval_q_query = eval_q_query

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One number."""
        return (1,)

    @property
    def kind(self) -> Regression:
        """Of one number."""
        return Regression(1)

    @property
    def task_name(self) -> str:
        """ "10-point regression"."""
        return f"{self.k_shot}-point regression"

    def record(self) -> dict[str, Any]:
        """The ranges, and the points of a task; there are no classes."""
        return {
            "split": None,
            "n_way": None,
            "k_shot": self.k_shot,
            "q_query": self.eval_q_query,
            "ranges": {name: list(getattr(self, name)) for name in ("amplitude", "phase", "x")},
        }

    def drawn(self, split: str, step: int) -> TaskBatch:
        """The points of a meta-batch, or of a block of the fixed tasks."""
        rng, tasks, queries = generator(self.seed, split, step), self.meta_batch_size, self.q_query
        if split != "train":
            rng, tasks, queries = generator(self.eval_seed, split, step), BLOCK, self.eval_q_query
        waves, inputs = self._waves(rng, tasks), self._inputs(rng, tasks, self.k_shot + queries)
        batch = _batch(inputs, _sine(waves, inputs), self.k_shot)
        return batch if split == "train" else _first(batch, self.block_size(split, step))

    def gather(self, drawn: TaskBatch) -> TaskBatch:
        """They are there already."""
        return drawn

    def example(self) -> TaskBatch:
        """The first test tasks, with the whole wave to predict, from left to right."""
        rng = generator(self.eval_seed, "test", 0)
        waves, inputs = self._waves(rng, BLOCK), self._inputs(rng, BLOCK, self.k_shot + self.eval_q_query)
        grid = np.broadcast_to(np.linspace(*self.x, GRID)[:, None], (BLOCK, GRID, 1))
        inputs = np.concatenate([inputs[:, : self.k_shot], grid], axis=1)
        return _batch(inputs, _sine(waves, inputs), self.k_shot)

    def episodes_sha256(self, split: str) -> str:
        """Equal only if every point of every fixed task is."""
        digest = hashlib.sha256()
        for block in self.blocks(split):
            for tensor in self.draw(split, block):
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def _waves(self, rng: np.random.Generator, tasks: int) -> np.ndarray:
        """Amplitudes and phases: (2, T, 1, 1)."""
        return np.stack([rng.uniform(*span, (tasks, 1, 1)) for span in (self.amplitude, self.phase)])

    def _inputs(self, rng: np.random.Generator, tasks: int, points: int) -> np.ndarray:
        return rng.uniform(*self.x, (tasks, points, 1))


def _sine(waves: np.ndarray, x: np.ndarray) -> np.ndarray:
    amplitude, phase = waves
    return amplitude * np.sin(x - phase)


def _batch(x: np.ndarray, y: np.ndarray, shots: int) -> TaskBatch:
    parts: list[Tensor] = []
    for part in (slice(shots), slice(shots, None)):
        parts += [torch.from_numpy(np.ascontiguousarray(array[:, part], dtype=np.float32)) for array in (x, y)]
    return TaskBatch(*parts)


def _first(batch: TaskBatch, tasks: int) -> TaskBatch:
    return TaskBatch(*(tensor[:tasks] for tensor in batch))
