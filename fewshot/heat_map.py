"""Tables as colours: scores by two keys, side by side for the values of a third."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

_MOST_SIDE_BY_SIDE = 3
_DARK = 0.6  # of the scale, from where numbers are white
_CELL = (0.8, 0.55)  # inches


class Panel(NamedTuple):
    """One table; nan is an empty cell."""

    title: str
    values: NDArray[np.float64]  # (rows, columns)
    ci95: NDArray[np.float64] | None = None  # (rows, columns), half the intervals; None: not shown


def draw_heat_maps(
    panels: Sequence[Panel],
    rows: Sequence[Any],
    columns: Sequence[Any],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    unit: str,
    percent: bool = True,
) -> Figure:
    """Tables of the same rows and columns, with the number in every cell and one scale of colours for all.

    Args:
        xlabel, ylabel: what columns and rows are.
        unit: what the numbers are, beside the colours.
        percent: whether they are fractions, shown in per cent.
    """
    wide = min(len(panels), _MOST_SIDE_BY_SIDE)
    high = math.ceil(len(panels) / wide)
    size = (1.9 + wide * (_CELL[0] * len(columns) + 0.3), 1.1 + high * (_CELL[1] * len(rows) + 0.4))
    figure = Figure(figsize=(max(size[0], 4.2), size[1]), layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    values = np.stack([panel.values for panel in panels])
    scale = float(np.nanmin(values)), float(np.nanmax(values))
    for axis, panel in zip(grid.flat, panels, strict=False):
        shown = _heat_map(axis, panel, scale, percent)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    bar = figure.colorbar(shown, ax=grid, label=f"{unit} (%)" if percent else unit, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    if percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.suptitle(title, fontsize=9)
    return figure


def _heat_map(axis: Axes, panel: Panel, scale: tuple[float, float], percent: bool) -> AxesImage:
    shown = axis.imshow(panel.values, cmap="Blues", aspect="auto", vmin=scale[0], vmax=scale[1])
    dark = scale[0] + _DARK * (scale[1] - scale[0])
    for (row, column), value in np.ndenumerate(panel.values):
        if np.isnan(value):
            continue
        color = "white" if value > dark else "black"
        ci95 = None if panel.ci95 is None else float(panel.ci95[row, column])
        above = 0.0 if ci95 is None else 0.12
        axis.text(column, row - above, _number(value, percent), ha="center", va="center", fontsize=9, color=color)
        if ci95 is not None:
            small = f"± {_number(ci95, percent)}"
            axis.text(column, row + 0.24, small, ha="center", va="center", fontsize=6.5, color=color)
    axis.set_facecolor("#f3f3f3")
    axis.set_title(panel.title, fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return shown


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.3g}"
