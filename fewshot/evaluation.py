"""From the scores of episodes to a number with an interval, and its record, results.json."""

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

from fewshot.algorithms.base import Algorithm


class Scores(NamedTuple):
    """One evaluation, float64."""

    scores: Tensor  # (E,) of every episode, after the last inner step
    losses: Tensor  # (E,)
    curve: Tensor  # (2, E', S): losses and scores of the first E' episodes, before and after each step
    confidence: list[Tensor]  # 45 of (E,): `Classification.confidence_bins`; none: of a learner that tells none


def interval(scores: Tensor) -> tuple[float, float]:
    """Mean of independent episodes and half its 95 % interval, 1.96 s/√E (s with E − 1; nan for E = 1).

    Episodes are the sample, not queries: the queries of a task share its support set and are not
    independent. The interval is about the episodes drawn, for one trained model; it does not contain
    the spread over seeds.
    """
    mean = scores.double().mean().item()
    if len(scores) < 2:
        return mean, math.nan
    return mean, 1.96 * scores.double().std().item() / math.sqrt(len(scores))


def seed_interval(means: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half its 95 % interval by Student's t: t(0.975, n − 1) · s/√n; nan for one seed.

    The sample are the trained models: the interval contains the spread over seeds, and with three of them
    is 2.2 times as wide as 1.96 s/√n.
    """
    values = torch.tensor(means, dtype=torch.float64)
    if len(values) < 2:
        return values.mean().item(), math.nan
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return values.mean().item(), quantile * values.std().item() / math.sqrt(len(values))


def summary(task_name: str, record: dict[str, Any]) -> str:
    """The one line that is printed: the tasks, mean ± interval, episodes, normalisation."""
    return (
        f"{task_name} {record['metric']} "
        f"{record['mean']:.3f} ± {record['ci95']:.3f} ({record['episodes']} episodes, {record['normalization']})"
    )


def circumstances(algo: str, algorithm: Algorithm, seed: int, checkpoint: str | None) -> dict[str, Any]:
    """What every record says of the learner that was scored, and of the code that scored it."""
    return {
        "algo": algo,
        "metric": algorithm.kind.metric,
        "inner_steps": algorithm.test_inner_steps,
        "normalization": "transductive" if algorithm.transductive else "inductive",
        "seed": seed,
        "checkpoint": checkpoint,
        "git_commit": git_commit(),
        "versions": versions(),
    }


def state_curve(evaluated: Scores) -> dict[str, Any]:
    """Mean score and interval in every fitted state, for the record."""
    points = [interval(column) for column in evaluated.curve[1].T]
    return {
        "episodes": evaluated.curve.shape[1],
        "mean": [mean for mean, _ in points],
        "ci95": [ci95 for _, ci95 in points],
    }


def write_episodes(path: Path, evaluated: Scores) -> None:
    """Writes every test task's score and loss, in the order of the tasks; whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    rows = zip(evaluated.scores.tolist(), evaluated.losses.tolist(), strict=True)
    lines = [f"{number},{score!r},{loss!r}" for number, (score, loss) in enumerate(rows)]
    temporary.write_text("\n".join(["episode,score,loss", *lines]) + "\n")
    temporary.replace(path)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes under a temporary name and renames: under `path` stands the whole record or none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python and of what decides numbers."""
    found = {"python": platform.python_version()}
    for package in ("fewshot", "torch", "torchvision", "lightning", "hydra-core", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was never installed
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, with "-dirty" if it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
