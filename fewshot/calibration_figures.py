"""Pictures of how far a learner may be believed that says how sure it is."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE = "#1f5f99"
_GREY = "#999999"


def draw_calibration(expected: Sequence[float], observed: Sequence[float]) -> Figure:
    """The share of targets that lie inside a prediction's interval, against the probability that it claims."""
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    axis.annotate("as claimed", (0.75, 0.72), fontsize=8, color="#777777", ha="center", va="top", rotation=45)
    axis.plot([0, *expected, 1], [0, *observed, 1], color=BLUE)
    axis.plot(expected, observed, "o", color=BLUE, markersize=4)
    axis.set(xlabel="probability of the interval", ylabel="targets inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _percent(axis)
    return figure


def draw_reliability(
    ece: float, name: str, *, confidence: Sequence[float | None], accuracy: Sequence[float | None], count: Sequence[int]
) -> Figure:
    """A reliability diagram: accuracy in every bin of confidence, and below it how many queries each bin has.

    A. Niculescu-Mizil, R. Caruana: Predicting Good Probabilities With Supervised Learning, ICML 2005. A bar that ends
    at its black mark, the bin's mean confidence, is right as often as it says.

    Args:
        name: what was scored, for the title.
    """
    figure = Figure(figsize=(4.2, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    width, total = 1 / len(count), max(1, sum(count))
    left = [width * number for number in range(len(count))]
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1, zorder=3)
    bars = dict(width=width, align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    upper.bar(left, [value or 0 for value in accuracy], **bars, label="accuracy")
    for start, value in zip(left, confidence, strict=True):
        if value is not None:
            upper.plot([start, start + width], [value, value], color="#222222", linewidth=1.4, label="confidence")
    lower.bar(left, [n / total for n in count], **bars)
    handles, labels = upper.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    upper.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, loc="upper left")
    upper.set_title(f"{name}\nexpected calibration error {100 * ece:.1f} %", fontsize=9)
    upper.set(ylabel="queries answered right", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="confidence", ylabel="queries", ylim=(0, None))
    lower.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))  # whole per cents
    for axis in (upper, lower):
        _percent(axis)
    return figure


def _percent(axis: Axes) -> None:
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.spines[["top", "right"]].set_visible(False)
