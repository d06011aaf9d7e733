"""How the time of a step grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from fewshot.figures import COLORS, save

_LABELS = {"tasks": "tasks of a meta-batch", "inner_steps": "inner steps", "hidden": "channels"}


def draw_growth(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One curve a side, one panel for each quantity that grows; milliseconds, both axes logarithmic."""
    keys = list(dict.fromkeys(row["key"] for row in rows))
    sides = list(dict.fromkeys(side for row in rows for side in row["sides"]))
    figure = Figure(figsize=(3.4 * len(keys), 3.4), layout="constrained")
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        for number, side in enumerate(sides):
            found = [(row["value"], row["sides"][side]) for row in rows if row["key"] == key and side in row["sides"]]
            x, color = [value for value, _ in found], COLORS[number % len(COLORS)]
            axis.plot(x, [each["median"] for _, each in found], "o-", markersize=4, color=color, label=side)
            low, high = ([each[end] for _, each in found] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        values = [row["value"] for row in rows if row["key"] == key]
        axis.set(xscale="log", yscale="log", xlabel=_LABELS.get(key, key))
        axis.xaxis.set_major_locator(FixedLocator(values))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticklabels([str(value) for value in values])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes[0].set_ylabel("milliseconds a step")
    axes[-1].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_race(curves: dict[str, list[tuple[int, float, float]]], accuracy: float, path: Path) -> None:
    """Validation accuracy against seconds of training, a curve a side; dotted what they race to."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.axhline(accuracy, color="#999999", linestyle=":", linewidth=1)
    for number, (side, curve) in enumerate(curves.items()):
        _, seconds, right = zip(*curve, strict=True)
        axis.plot(seconds, right, "o-", markersize=3, color=COLORS[number % len(COLORS)], label=side)
    axis.set(xlabel="seconds of training", ylabel="validation accuracy", xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)
