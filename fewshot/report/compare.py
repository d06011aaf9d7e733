"""From the runs of a group to a number with two intervals, and from two groups to their difference."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.evaluation import interval, seed_interval
from fewshot.report.collect import Group


class Score(NamedTuple):
    """Of a group: the mean over its runs and their test tasks."""

    mean: float
    over_episodes: float  # half the 95 % interval about the test tasks that were drawn, for these trained models
    over_seeds: float  # half the 95 % interval about the trained models (Student); nan for one


class Difference(NamedTuple):
    """The first group's mean less the second's, over the seeds that both have."""

    mean: float
    paired: float  # half the 95 % interval: of each task's difference, since both answered the same tasks
    unpaired: float  # half of what it would be for tasks drawn apart
    over_seeds: float  # half the 95 % interval of the seeds' differences (Student); nan for one
    seeds: int

    @property
    def real(self) -> bool:
        """Whether zero lies outside the paired interval."""
        return abs(self.mean) > self.paired


def score(group: Group) -> Score:
    """The group's mean and its two intervals."""
    means = [run.record["mean"] for run in group.runs]
    mean, over_seeds = seed_interval(means)
    per_task = _per_task(group, [run.seed for run in group.runs])
    if per_task is not None:
        over_episodes = interval(per_task)[1]
    else:  # of runs that were scored on other tasks, or that kept no list: as independent samples
        over_episodes = math.sqrt(sum(run.record["ci95"] ** 2 for run in group.runs)) / len(group.runs)
    return Score(mean, over_episodes, over_seeds)


def difference(one: Group, other: Group) -> Difference | None:
    """Of two groups that answered the same test tasks with a seed in common; None where they did not."""
    seeds = sorted({run.seed for run in one.runs} & {run.seed for run in other.runs})
    if not seeds:
        return None
    first, second = (_per_task(group, seeds) for group in (one, other))
    hashes = {run.record["episodes_sha256"] for group in (one, other) for run in group.runs if run.seed in seeds}
    if first is None or second is None or len(hashes) > 1:
        return None
    mean, paired = interval(first - second)
    unpaired = math.hypot(interval(first)[1], interval(second)[1])
    means = [{run.seed: run.record["mean"] for run in group.runs} for group in (one, other)]
    over_seeds = seed_interval([means[0][seed] - means[1][seed] for seed in seeds])[1]
    return Difference(mean, paired, unpaired, over_seeds, len(seeds))


def _per_task(group: Group, seeds: list[int]) -> Tensor | None:
    """Every test task's score, mean over the runs of these seeds: (E,); None where tasks are not the same."""
    runs = [run for run in group.runs if run.seed in seeds]
    scores = [run.scores for run in runs if run.scores is not None]
    if len(scores) < len(runs) or len({run.record["episodes_sha256"] for run in runs}) > 1:
        return None
    return torch.stack(scores).mean(0)
