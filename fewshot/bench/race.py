"""Accuracy against seconds: MAML by our engine and by other libraries, from the same weights on the same tasks.

python -m fewshot.bench.race
python -m fewshot.bench.race sides=[ours,loop] accuracy=0.9

Sides take turns, some steps each, in one process, until the validation tasks are answered as well as asked for. A
side's clock runs during its own steps alone, compiling included; drawing tasks and validation stand outside.
"""

import time
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf

from fewshot import engine
from fewshot.bench.case import Case
from fewshot.bench.figure import draw_race
from fewshot.bench.measure import device_named, synchronise
from fewshot.bench.peers import NotOffered, Step
from fewshot.bench.sides import OURS, PEERS, maml, step_of
from fewshot.build import build, settle
from fewshot.data.datamodule import EpisodeData
from fewshot.errors import UserError, one_line_errors
from fewshot.evaluation import git_commit, versions, write_json
from fewshot.precision import bfloat16_works
from fewshot.tasks import TaskBatch

Curve = list[tuple[int, float, float]]  # (outer step, seconds, accuracy)


@hydra.main(config_path="../../conf", config_name="race", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Prints a line per validation and, last, the seconds of every side; writes race.json and race.png."""
    with one_line_errors():
        race(cfg)


def race(cfg: DictConfig) -> None:
    """The whole run."""
    device = device_named(cfg.device)
    _refuse_bad(cfg, device.type)
    settle()
    data: EpisodeData = build(cfg.data)
    data.setup()
    case = Case("race", data.meta_batch_size, cfg.data.n_way, cfg.data.k_shot, cfg.data.q_query, **cfg.case)
    runners = [Runner(name, case, device, seed=cfg.seed, lr=cfg.lr) for name in cfg.sides]
    folder, step = Path(HydraConfig.get().runtime.output_dir), 0
    while step < cfg.max_steps and (running := [r for r in runners if not r.curve or r.curve[-1][2] < cfg.accuracy]):
        tasks = [_tasks(data, "train", step + number, device) for number in range(cfg.every)]
        step += cfg.every
        for runner in running:
            runner.run(tasks)
            right = _accuracy(case, runner, data, device, cfg.eval_inner_steps)
            runner.curve.append((step, runner.seconds, right))
            print(f"{runner.name:18} step {step:5}  {runner.seconds:7.1f} s  {right:.3f}", flush=True)
    curves = {runner.name: runner.curve for runner in runners}
    record = {"curves": curves, "config": OmegaConf.to_container(cfg, resolve=True)}
    write_json(folder / "race.json", record | {"git_commit": git_commit(), "versions": versions()})
    draw_race(curves, cfg.accuracy, folder / "race.png")
    print(f"written: {folder / 'race.json'}")
    for name, curve in curves.items():
        steps, seconds, right = curve[-1]
        verdict = "reached" if right >= cfg.accuracy else "not reached"
        print(f"{name}: {cfg.accuracy} {verdict} after {seconds:.0f} s, {steps} steps")


class Runner:
    """A side with weights, an optimiser and a clock of its own.

    Args:
        name: of the side.
        case: network, tasks and inner loop.
        seed: of the weights: the same for all.
        lr: of Adam.
    """

    def __init__(self, name: str, case: Case, device: torch.device, *, seed: int, lr: float) -> None:
        torch.manual_seed(seed)
        self.name, self.network = name, case.network().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        try:
            self.step: Step = step_of(name, self.network, case)
        except (ImportError, NotOffered) as error:
            raise UserError(f"sides={name} cannot take part: {error}") from error
        self.seconds = 0.0
        self.curve: Curve = []

    def run(self, tasks: list[TaskBatch]) -> None:
        """An outer step on each meta-batch."""
        synchronise()
        started = time.perf_counter()
        for batch in tasks:
            self.optimizer.zero_grad()
            self.step(batch)
            self.optimizer.step()
        synchronise()
        self.seconds += time.perf_counter() - started


def _tasks(data: EpisodeData, split: str, number: int, device: torch.device) -> TaskBatch:
    return data.gather(move_data_to_device(data.draw(split, number), device))


def _accuracy(case: Case, runner: Runner, data: EpisodeData, device: torch.device, inner_steps: int) -> float:
    """On all validation tasks."""
    algorithm = maml(case, runner.network, eval_inner_steps=inner_steps)
    blocks = [_tasks(data, "val", block, device) for block in data.blocks("val")]
    return torch.cat([engine.evaluate(algorithm, batch)[1, :, -1] for batch in blocks]).mean().item()


def _refuse_bad(cfg: DictConfig, device: str) -> None:
    for name in cfg.sides:
        if name not in (*OURS, *PEERS):
            raise UserError(f"sides={name} is not one of {', '.join([*OURS, *PEERS])}")
        if name in OURS and OURS[name][1] and not bfloat16_works(device):
            raise UserError(f"sides={name}: this machine's {device} cannot multiply matrices in bfloat16")
    for key in ("every", "max_steps", "eval_inner_steps", "lr", "accuracy"):
        if not cfg[key] > 0:
            raise UserError(f"{key}={cfg[key]} must be positive")


if __name__ == "__main__":
    with one_line_errors():
        main()
