"""Pictures of a run: what a task looks like, and what each inner step brings."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, PercentFormatter, StrMethodFormatter
from torch import Tensor

from fewshot import engine
from fewshot.algorithms.base import Algorithm
from fewshot.calibration_figures import BLUE, draw_calibration, draw_reliability
from fewshot.data.task_data import TaskData
from fewshot.tasks import Regression, TaskBatch

# Told apart in grey and by colour-blind eyes; of more than seven lines by their markers, too.
COLORS = (BLUE, "#d98c21", "#a0344a", "#3f8f5f", "#777777", "#6fb2dd", "#5b3a86")
_MARKERS = "osD^vPX*"


def write_plots(folder: Path, record: dict[str, Any], data: TaskData, algorithm: Algorithm) -> None:
    """Writes a picture of a task, `episode.png` or `fit.png`, and, where inner steps are taken, `inner_steps.png`."""
    folder.mkdir(exist_ok=True)
    batch = data.example()
    if isinstance(data.kind, Regression):
        one = TaskBatch(*(tensor[:1] for tensor in batch))
        curves = [states[0] for states in engine.predict(algorithm, one, every_state=True)]
        told = engine.distributions(algorithm, one)
        deviation = None if told is None else data.kind.deviation(told[0])
        save(draw_fit(one, curves, deviation), folder / "fit.png")
    else:
        save(draw_episode(batch), folder / "episode.png")
    if "calibration" in record:
        save(draw_calibration(**record["calibration"]), folder / "calibration.png")
    if record.get("ece") is not None:
        name = f"{record['algo']}, {record['data']} {data.task_name}"
        save(draw_reliability(record["ece"], name, **record["reliability"]), folder / "reliability.png")
    if record["inner_steps"] > 0:
        save(draw_inner_steps(record, data), folder / "inner_steps.png")


def draw_fit(batch: TaskBatch, curves: Sequence[Tensor], deviation: Tensor | None = None) -> Figure:
    """The first task's wave, its support points, and what is predicted before and after each gradient step.

    Args:
        deviation: standard deviations of the last prediction, drawn as a band of two to either side.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    x = batch.query_x[0, :, 0]
    axis.plot(x, batch.query_y[0, :, 0], color="#222222", linewidth=1.2, label="the task")
    shown = [step for step in (0, 1, 2, 3, 5, 10, len(curves) - 1) if step < len(curves)]
    for step in sorted(set(shown)):
        axis.plot(x, curves[step][:, 0], **_state_style(step, len(curves)))
    if deviation is not None:
        middle, width = curves[-1][:, 0], 2 * deviation[:, 0]
        axis.fill_between(
            x, middle - width, middle + width, color=BLUE, alpha=0.18, linewidth=0, label="± 2 deviations"
        )
    axis.plot(
        batch.support_x[0, :, 0], batch.support_y[0, :, 0], "^", color=COLORS[2], label="support points", zorder=5
    )
    axis.set(xlabel="x", ylabel="y")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _state_style(step: int, states: int) -> dict[str, Any]:
    """Darker from step to step; what was before the first, dotted; the only state of a learner without steps, blue."""
    if states == 1:
        return dict(label="prediction", color=BLUE)
    if step == 0:
        return dict(label="before adaptation", color="#999999", linestyle=":")
    color = colormaps["Blues"](0.35 + 0.6 * step / (states - 1))
    return dict(label=f"after {step} step{'s' if step > 1 else ''}", color=color)


def draw_episode(batch: TaskBatch, task: int = 0, queries: int = 5) -> Figure:
    """One task: a row per class, its support images left, some of its queries right."""
    ways = int(batch.support_y[task].max()) + 1
    rows = [
        (batch.support_x[task][batch.support_y[task] == way], batch.query_x[task][batch.query_y[task] == way][:queries])
        for way in range(ways)
    ]
    shots, shown = len(rows[0][0]), len(rows[0][1])
    figure = Figure(figsize=(0.8 * (shots + shown + 1.2), 0.8 * ways + 0.5), layout="constrained")
    widths = [1] * shots + [0.4] + [1] * shown
    axes = figure.subplots(ways, shots + 1 + shown, squeeze=False, width_ratios=widths)
    for way, (support, query) in enumerate(rows):
        for column, image in enumerate([*support, None, *query]):
            axis = axes[way, column]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#bbbbbb")
            if image is None:
                axis.axis("off")
            else:
                show_image(axis, image)
        axes[way, 0].set_ylabel(f"class {way}", fontsize=8)
    axes[0, 0].set_title("support", fontsize=9, loc="left")
    axes[0, shots + 1].set_title("queries", fontsize=9, loc="left")
    return figure


def show_image(axis: Axes, image: Tensor) -> None:
    """Draws an image (C, H, W) in [0, 1]. Colours as they are; of grey images 1 is ink."""
    if len(image) == 3:
        axis.imshow(image.permute(1, 2, 0).numpy())
    else:
        axis.imshow(1 - image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)


def draw_inner_steps(record: dict[str, Any], data: TaskData) -> Figure:
    """The score before adaptation and after each inner step, with 95 % intervals over episodes."""
    curve, kind = record["after_each_inner_step"], data.kind
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    steps = range(len(curve["mean"]))
    axis.errorbar(steps, curve["mean"], yerr=curve["ci95"], color=BLUE, marker="o", markersize=4, capsize=3)
    axis.set_xlabel("inner steps on the support set")
    axis.set_ylabel(f"query {kind.metric}")
    axis.set_title(
        f"{record['algo']}, {record['data']} {data.task_name} ({curve['episodes']} episodes, 95 % interval)",
        fontsize=9,
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if kind.unit == "%":
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.axhline(1 / record["n_way"], color="#999999", linestyle=":", linewidth=1)
        axis.annotate("chance", (steps[-1], 1 / record["n_way"]), fontsize=8, color="#777777", ha="right", va="bottom")
    else:
        axis.set_ylim(0, None)
    axis.grid(axis="y", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


class Line(NamedTuple):
    """Points with intervals, under one name."""

    name: str
    x: list[float]
    y: list[float]
    ci95: list[float]  # half the interval; nan: none


def write_study(
    folder: Path, stem: str, lines: Sequence[Line], *, xlabel: str, ylabel: str, title: str, logarithmic: bool = False
) -> list[Path]:
    """Writes the lines as `stem`.png and .svg, and their points as .csv; returns the three paths."""
    figure = draw_lines(lines, xlabel=xlabel, ylabel=ylabel, title=title, logarithmic=logarithmic)
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg", "csv")]
    for path in paths[:2]:
        save(figure, path)
    temporary = paths[2].with_name(f"{stem}.tmp.csv")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", xlabel, ylabel, "ci95"])
        for line in lines:
            writer.writerows(zip([line.name] * len(line.x), line.x, line.y, line.ci95, strict=True))
    temporary.replace(paths[2])
    return paths


def draw_lines(
    lines: Sequence[Line], *, xlabel: str, ylabel: str, title: str, logarithmic: bool = False, percent: bool = True
) -> Figure:
    """Scores with their intervals, a line each, told apart by colour, marker and a legend."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for line, color, marker in zip(lines, itertools.cycle(COLORS), itertools.cycle(_MARKERS)):
        axis.errorbar(
            line.x, line.y, yerr=line.ci95, color=color, marker=marker, markersize=4, capsize=3, label=line.name
        )
    axis.set(xlabel=xlabel, ylabel=f"{ylabel} (%)" if percent else ylabel)
    axis.set_title(title, fontsize=9)
    if logarithmic:
        axis.set_xscale("log")
        few = len(lines) == 1 and len(lines[0].x) <= 8  # then each point is named
        axis.xaxis.set_major_locator(FixedLocator(lines[0].x) if few else LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if len(lines) > 1:
        if len(lines) > 6:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        else:
            axis.legend(frameon=False)
    axis.grid(axis="y", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
