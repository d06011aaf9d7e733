"""What a test leaves in Weights & Biases beside its numbers: every task, the curve over inner steps, the pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from fewshot.checkpoints import leaves
from fewshot.evaluation import Scores
from fewshot.grid_record import Cell


def log_test(loggers: Sequence[Logger], record: dict[str, Any], evaluated: Scores, plots: Path) -> None:
    """Logs them to the W&B run, where there is one.

    Args:
        record: what results.json says.
        plots: the folder of the pictures.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        import wandb

        pairs = zip(evaluated.scores.tolist(), evaluated.losses.tolist(), strict=True)
        episodes = wandb.Table(["episode", record["metric"], "loss"], [[n, *pair] for n, pair in enumerate(pairs)])
        curve = zip(*(record["after_each_inner_step"][key] for key in ("mean", "ci95")), strict=True)
        steps = wandb.Table(["inner step", record["metric"], "ci95"], [[n, *point] for n, point in enumerate(curve)])
        line = wandb.plot.line(steps, "inner step", record["metric"], title=f"{record['algo']}: after each inner step")
        images = {f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted(plots.glob("*.png"))}
        logger.experiment.log({"test/episodes": episodes, "test/after_each_inner_step": line} | images)
        kept = {key: value for key, value in leaves(record, "results") if isinstance(value, str | int | float)}
        logger.experiment.summary.update({key.replace(".", "/"): value for key, value in kept.items()})


def log_grid(loggers: Sequence[Logger], cells: Sequence[Cell], picture: Path) -> None:
    """Logs a grid as a table and its picture."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = wandb.Table(list(Cell._fields), [list(cell) for cell in cells])
            logger.experiment.log({"test/grid": rows, "plots/grid": wandb.Image(str(picture))})
