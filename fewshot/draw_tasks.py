"""Draws a folder of tasks, as a teacher hands them out, and keeps the answers beside it.

python -m fewshot.draw_tasks out=DIR data=omniglot episodes=640 data.eval_q_query=1 data.eval_seed=7

writes DIR/support/0000…, DIR/query/0000… and, outside of what is handed out, DIR.labels.csv.
"""

import shutil
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from fewshot.build import build
from fewshot.data.datamodule import EpisodeData
from fewshot.data.task_folder import write_answers, write_tasks
from fewshot.errors import UserError, one_line_errors


@hydra.main(config_path="../conf", config_name="draw_tasks", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one job."""
    with one_line_errors():
        draw(cfg)


def draw(cfg: DictConfig) -> None:
    """Writes the folder under a temporary name and renames it: it stands there whole or not at all."""
    if cfg.out is None:
        raise UserError("out=DIR: name the folder that the tasks are written to")
    if cfg.split not in ("val", "test"):
        raise UserError(f"split={cfg.split} is not one of val, test: only those have fixed tasks")
    out = Path(str(cfg.out))
    if out.exists():
        raise UserError(f"out={out} exists: choose another folder, or remove it")
    data = build(cfg.data)
    if not isinstance(data, EpisodeData):
        raise UserError(f"a folder of tasks holds images, and {type(data).__name__} has none: choose data=omniglot")
    data.setup()
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    labels: list[torch.Tensor] = []
    answers = out.with_name(out.name + ".labels.csv")
    try:
        for block in data.blocks(cfg.split):
            batch = data.task_batch(cfg.split, block)
            write_tasks(temporary, batch, n_way=cfg.data.n_way, first=sum(map(len, labels)))
            labels.append(batch.query_y)
        write_answers(answers, torch.cat(labels))
        temporary.replace(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"out={out} cannot be written ({error}): make room, or choose another folder") from error
    print(
        f"{sum(map(len, labels))} tasks: {out}\nanswers: {answers}\nepisodes_sha256: {data.episodes_sha256(cfg.split)}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
