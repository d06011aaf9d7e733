"""The report's figures: how validation went, what inner steps bring, a map of two keys."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fewshot.evaluation import seed_interval
from fewshot.figures import Line, draw_lines
from fewshot.heat_map import Panel, draw_heat_maps
from fewshot.report.collect import Group
from fewshot.report.compare import score

_MOST_LINES = 12  # more cannot be told apart


def validation_lines(groups: Sequence[Group], short: str, x: str) -> list[Line]:
    """The validation score against a logged number, mean and interval over the seeds of each group."""
    lines = []
    for group in groups[:_MOST_LINES]:
        curves = [run.validation for run in group.runs if run.validation and x in run.validation[0]]
        shared = min(map(len, curves), default=0)
        points = [seed_interval([curve[i][f"val/{short}"] for curve in curves]) for i in range(shared)]
        if points:
            places = [float(np.mean([curve[i][x] for curve in curves])) for i in range(shared)]
            lines.append(Line(group.name, places, [mean for mean, _ in points], [ci95 for _, ci95 in points]))
    return lines


def inner_step_lines(groups: Sequence[Group]) -> list[Line]:
    """The test score after each inner step, mean over seeds, where any are taken."""
    lines = []
    for group in groups[:_MOST_LINES]:
        curves = [run.record["after_each_inner_step"]["mean"] for run in group.runs]
        states = min(map(len, curves))
        if states > 1:
            points = [seed_interval([curve[state] for curve in curves]) for state in range(states)]
            steps = [float(state) for state in range(states)]
            lines.append(Line(group.name, steps, [mean for mean, _ in points], [ci95 for _, ci95 in points]))
    return lines


def charts(groups: Sequence[Group], metric: str, short: str) -> dict[str, Figure]:
    """The figures that these groups have something to show in, by the name of their file."""
    percent = short == "acc"
    title = "mean over seeds, 95 % interval (Student) over seeds"
    if len(groups) > _MOST_LINES:
        title += f"; the first {_MOST_LINES} of {len(groups)} settings"
    found = {}
    for stem, x, label in (("steps", "step", "outer steps"), ("seconds", "val/seconds", "seconds of training")):
        if lines := validation_lines(groups, short, x):
            found[f"validation_by_{stem}"] = draw_lines(
                lines, xlabel=label, ylabel=f"validation {metric}", title=title, percent=percent
            )
    if lines := inner_step_lines(groups):
        found["inner_steps"] = draw_lines(
            lines, xlabel="inner steps", ylabel=f"test {metric}", title=title, percent=percent
        )
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    if len(keys) == 2 and len(groups) > 2:
        found["map"] = draw_map(groups, keys, f"test {metric}", percent=percent)
    return found


def draw_map(groups: Sequence[Group], keys: Sequence[str], title: str, *, percent: bool) -> Figure:
    """The mean of every pair of values of two keys, as colour and number."""
    rows, columns = (list(dict.fromkeys(group.settings.get(key, "") for group in groups)) for key in keys)
    values = np.full((len(rows), len(columns)), np.nan)
    for group in groups:
        place = rows.index(group.settings.get(keys[0], "")), columns.index(group.settings.get(keys[1], ""))
        values[place] = score(group).mean
    return draw_heat_maps(
        [Panel("", values)],
        rows,
        columns,
        xlabel=keys[1],
        ylabel=keys[0],
        title=f"{title}, mean over seeds",
        unit=title,
        percent=percent,
    )
