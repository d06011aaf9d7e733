"""Reads run folders, and finds what differs between them."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fewshot.checkpoints import SECTIONS, leaves
from fewshot.errors import UserError

_COMES_WITH = {"outer": "algo"}  # an algorithm may bring an optimiser of its own
_CHOICES = ("algo", "aug", "data", "model")  # groups whose choice says more than the keys that come with it


class Run(NamedTuple):
    """One run that was scored on test tasks."""

    folder: Path
    settings: dict[str, str]  # every key of its configuration that makes the learner, and the choice of every group
    record: dict[str, Any]  # results.json
    log: list[dict[str, float]]  # the rows of metrics.csv, each without its empty cells
    scores: Tensor | None  # (E,) float64, of every test task in its order
    written: float  # when, in seconds

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.record["seed"])

    @property
    def validation(self) -> list[dict[str, float]]:
        """What was logged at each validation, in order."""
        return [row for row in self.log if "val/loss" in row]

    @property
    def tasks_per_second(self) -> float:
        """Of training, the median of what was logged; nan where nothing was."""
        found = [row["train/tasks_per_second"] for row in self.log if "train/tasks_per_second" in row]
        return statistics.median(found) if found else math.nan


class Group(NamedTuple):
    """Runs that differ by nothing but their seed, in the order of their seeds."""

    settings: dict[str, str]  # by which this group differs from the others
    runs: list[Run]

    @property
    def name(self) -> str:
        """In a few words."""
        if len(self.settings) == 1 and self.settings.keys() <= set(_CHOICES):
            return next(iter(self.settings.values()))
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "all runs"


def find_runs(places: Sequence[Path]) -> list[Run]:
    """All scored runs in these folders and below, each once, in the order of their folders' names.

    Raises:
        UserError: a folder does not exist, or there is no run.
    """
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: there is no such folder")
    found = {path.parent.resolve() for place in places for path in place.rglob("results.json")}
    folders = sorted((path for path in found if (path / ".hydra" / "config.yaml").exists()), key=_by_number)
    runs = [run for folder in folders if (run := _read(folder)) is not None]
    if not runs:
        raise UserError(f"{', '.join(map(str, places))}: no run in it has been scored (no results.json with a mean)")
    metrics = sorted({run.record["metric"] for run in runs})
    if len(metrics) > 1:
        raise UserError(f"the runs were scored by {' and by '.join(metrics)}: report on them apart")
    return runs


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same settings together, whatever their seed, in the order in which they come.

    Of several runs of one seed the newest counts: the others say nothing that it does not.
    """
    keys = differing([run.settings for run in runs])
    groups: dict[tuple[str | None, ...], Group] = {}
    for run in runs:
        named = {key: run.settings[key] for key in keys if key in run.settings}
        groups.setdefault(tuple(map(named.get, keys)), Group(named, [])).runs.append(run)
    for group in groups.values():
        newest = {run.seed: run for run in sorted(group.runs, key=lambda run: run.written)}
        group.runs[:] = [newest[seed] for seed in sorted(newest)]
    return list(groups.values())


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """The keys by which settings differ: a group's choice, and those of its keys that differ under one choice."""
    keys = list(dict.fromkeys(key for each in settings for key in each if key != "seed"))
    found = []
    for key in keys:
        group = _COMES_WITH.get(section := key.split(".")[0], section)
        if group in _CHOICES and key != group:
            by_choice: dict[str | None, set[str | None]] = {}
            for each in settings:
                by_choice.setdefault(each.get(group), set()).add(each.get(key))
            differs = any(len(values) > 1 for values in by_choice.values())
        else:
            differs = len({each.get(key) for each in settings}) > 1
        if differs:
            found.append(key)
    return found


def _read(folder: Path) -> Run | None:
    record = json.loads((folder / "results.json").read_text())
    if not isinstance(record.get("mean"), float) or "after_each_inner_step" not in record:
        # Tasks drawn beforehand, or a study of several runs.
        return None
    config, hydra = (OmegaConf.load(folder / ".hydra" / name) for name in ("config.yaml", "hydra.yaml"))
    choices = hydra.hydra.runtime.choices
    settings = {group: str(choices[group]) for group in _CHOICES if choices.get(group)}
    tree: Any = OmegaConf.to_container(config, resolve=False)
    for section in (*SECTIONS, "trainer"):
        values = dict(leaves(tree.get(section), section))
        settings |= {key: str(value) for key, value in values.items()}
    for key in ("protocol", "normalization", "ensemble"):
        if tree.get(key) not in (None, "trained", []):  # as after training, where there are no such keys
            settings[f"test.{key}"] = str(tree[key])
    if tree.get("views"):
        settings["test.views"] = str(tree["views"]["count"])
    written = (folder / "results.json").stat().st_mtime
    return Run(folder, settings, record, _log(folder / "metrics.csv"), _scores(folder / "episodes.csv"), written)


def _log(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _scores(path: Path) -> Tensor | None:
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return torch.tensor([float(row["score"]) for row in csv.DictReader(file)], dtype=torch.float64)


def _by_number(folder: Path) -> tuple[str, int, str]:
    """Jobs of a sweep by their numbers."""
    return (str(folder.parent), int(folder.name) if folder.name.isdigit() else -1, folder.name)
