"""Pictures of a run: what a task looks like, and what each inner step brings."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fewshot.tasks import TaskBatch, TaskKind

_BLUE = "#1f5f99"


def write_plots(folder: Path, record: dict[str, Any], batch: TaskBatch, kind: TaskKind) -> None:
    """Writes `episode.png` and, for algorithms that take inner steps, `inner_steps.png`."""
    folder.mkdir(exist_ok=True)
    _save(draw_episode(batch), folder / "episode.png")
    if record["inner_steps"] > 0:
        _save(draw_inner_steps(record, kind), folder / "inner_steps.png")


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
                axis.imshow(1 - image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
        axes[way, 0].set_ylabel(f"class {way}", fontsize=8)
    axes[0, 0].set_title("support", fontsize=9, loc="left")
    axes[0, shots + 1].set_title("queries", fontsize=9, loc="left")
    return figure


def draw_inner_steps(record: dict[str, Any], kind: TaskKind) -> Figure:
    """The score before adaptation and after each inner step, with 95 % intervals over episodes."""
    curve = record["after_each_inner_step"]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    steps = range(len(curve["mean"]))
    axis.errorbar(steps, curve["mean"], yerr=curve["ci95"], color=_BLUE, marker="o", markersize=4, capsize=3)
    axis.set_xlabel("inner steps on the support set")
    axis.set_ylabel(f"query {kind.metric}")
    axis.set_title(
        f"{record['algo']}, {record['data']} {record['n_way']}-way {record['k_shot']}-shot "
        f"({curve['episodes']} episodes, 95 % interval)",
        fontsize=9,
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if kind.metric == "accuracy":
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.axhline(1 / record["n_way"], color="#999999", linestyle=":", linewidth=1)
        axis.annotate("chance", (steps[-1], 1 / record["n_way"]), fontsize=8, color="#777777", ha="right", va="bottom")
    axis.grid(axis="y", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
