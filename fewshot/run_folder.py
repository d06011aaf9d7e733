"""The folder of a run: whether there is room, what is unfinished in it, whether it is done."""

import json
import shutil
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from fewshot.errors import UserError


def tested(folder: Path, step: int) -> bool:
    """Whether the record is of a run of so many steps: one that went on has that of before, until it is tested."""
    path = folder / "results.json"
    return path.exists() and json.loads(path.read_text()).get("train_steps") == step


def refuse_full_disk(folder: Path, learner: nn.Module) -> None:
    """Weights and Adam's two moments, in three files and the temporary copy of one; and room for logs."""
    needed = 4 * 3 * 4 * sum(p.numel() for p in learner.parameters()) + 10_000_000
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, a run writes up to {needed / 1e6:.0f} MB: "
            "make room or choose another folder with hydra.run.dir=DIR"
        )


@rank_zero_only
def clear_up(folder: Path) -> None:
    """Removes what a start of this run that was killed had not finished writing."""
    for unfinished in (*folder.glob("*.tmp"), *folder.glob("checkpoints/*.tmp")):
        unfinished.unlink(missing_ok=True)
