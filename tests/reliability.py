"""Kills a run again and again and compares it with the run that was never stopped; watches a long one.

`python tests/reliability.py kills` kills thirty times, `… long` takes ten thousand steps; what they print stands in
docs/reliability.md. A test kills a few times.
"""

import csv
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
# A checkpoint about every second, with an augmentation, a schedule and the logs of a real run.
RUN = [
    *("data=strokes", "data.source.alphabets=12", "data.source.characters=10", "data.val_episodes=20", "episodes=40"),
    *("data.steps_per_epoch=10", "data.meta_batch_size=4", "model.hidden=8", "trainer.accelerator=cpu", "aug=rotate"),
    *("trainer.log_every_n_steps=2", "outer.curve_episodes=16", "outer.schedule=cosine", "outer.optimizer.lr=0.01"),
]
EVERY = 250  # steps between validations of the long run: by step 500 all that happens has happened
OF_THIS_MACHINE = ("train/tasks_per_second", "train/gflops_per_second", "train/peak_memory_mb", "val/seconds")


class Kill(NamedTuple):
    """One life of the run."""

    seconds: float  # it lived
    stood: int  # outer steps in its last checkpoint; 0 where there was none
    writing: bool  # it left a temporary file: something was being written


def whole_run(folder: Path, steps: int) -> None:
    """The run, never stopped."""
    subprocess.run(_command(folder, steps), check=True, env=_environment(), stdout=subprocess.DEVNULL)


def killed_run(
    folder: Path, steps: int, kills: int, rng: random.Random, shortest: float, longest: float
) -> Iterator[Kill]:
    """The same command again and again, killed after so many seconds, at last left alone."""
    last = folder / "checkpoints" / "last.ckpt"
    for _ in range(kills):
        seconds = rng.uniform(shortest, longest)
        process = subprocess.Popen(_command(folder, steps), env=_environment(), stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            raise RuntimeError(
                f"the run ended after {seconds:.1f} s with code {process.returncode}, before it was killed"
            )
        stood = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
        yield Kill(seconds, stood, bool(list(folder.rglob("*.tmp"))))
    whole_run(folder, steps)


def differences(expected: Path, found: Path) -> list[str]:
    """What is not the same in two run folders, bit for bit; times and speeds left aside."""
    different = []
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (expected, found))
        for key in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "bad_tasks"):
            if not _same(one[key], other[key]):
                different.append(f"{name}: {key}")
    rows = [_rows(run / "metrics.csv") for run in (expected, found)]
    different += [f"metrics.csv: row {n}" for n, pair in enumerate(zip(*rows, strict=False)) if pair[0] != pair[1]]
    if len(rows[0]) != len(rows[1]):
        different.append(f"metrics.csv: {len(rows[0])} and {len(rows[1])} rows")
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (expected, found)]
    return different + sorted(f"file: {name}" for name in files[0] ^ files[1])


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in OF_THIS_MACHINE} for row in csv.DictReader(file)]


def _command(folder: Path, steps: int) -> list[str]:
    place = [f"hydra.run.dir={folder}", "ckpt_path=last", f"trainer.max_steps={steps}"]
    return [sys.executable, str(ROOT / "train.py"), *RUN, *place]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def long_run(folder: Path, steps: int) -> list[dict[str, float]]:
    """A run of many steps of a tiny network: what it logged of its own speed and memory, in order."""
    options = [
        f"data.steps_per_epoch={EVERY}",
        "trainer.log_every_n_steps=100",
        f"trainer.max_steps={steps}",
        "test=false",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *RUN, *options, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if "train/tasks_per_second" in row]


def main(part: str) -> None:
    """Prints a section of docs/reliability.md."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    print(f"`python tests/reliability.py {part}`, {date.today()}, {versions}.\n")
    with tempfile.TemporaryDirectory() as place:
        print({"kills": thirty_kills, "long": ten_thousand_steps}[part](Path(place)), end="")


def thirty_kills(place: Path, kills: int = 30, steps: int = 2500) -> str:
    """Compares a run that is killed so often with one that is not."""
    rng, started, lines = random.Random(0), time.perf_counter(), []
    whole_run(place / "whole", steps)
    for number, kill in enumerate(killed_run(place / "killed", steps, kills, rng, 2.0, 16.0), start=1):
        lines.append(f"| {number} | {kill.seconds:.1f} s | {kill.stood} | {'yes' if kill.writing else ''} |\n")
        print(lines[-1], end="", file=sys.stderr, flush=True)
    found = ", ".join(differences(place / "whole", place / "killed")) or "nothing"
    minutes = (time.perf_counter() - started) / 60
    return f"""One run of {steps} outer steps is never stopped. The same command with `ckpt_path=last` is started
{kills} times and killed (SIGKILL) at a random moment of its first 2 to 16 seconds, some of which go by before training;
then it is left alone. Compared are weights, Adam's moments, schedule, step and epoch in `last.ckpt` and `best.ckpt`,
every row of `metrics.csv` but its speeds, and the names of all files. Different, bit for bit: **{found}**.
({minutes:.0f} minutes)

{_shown([*RUN, f"trainer.max_steps={steps}", "hydra.run.dir=RUN", "ckpt_path=last"])}

| kill | lived | outer steps in `last.ckpt` | while writing |
|---|---|---|---|
""" + "".join(lines)


def ten_thousand_steps(place: Path, steps: int = 10_000) -> str:
    """Watches memory, speed and files."""
    rows = long_run(place / "long", steps)
    early, late = (statistics.median(row["train/tasks_per_second"] for row in part) for part in _fifths(rows))
    at_500 = next(row for row in rows if row["step"] >= 500)["train/peak_memory_mb"]
    at_end = rows[-1]["train/peak_memory_mb"]
    files = [path for path in (place / "long").rglob("*") if path.is_file()]
    log = place / "long" / "metrics.csv"
    megabytes, of_log = sum(path.stat().st_size for path in files) / 1e6, log.stat().st_size / 1e6
    return f"""{steps} outer steps of the same network, a validation every {EVERY}. Peak memory of the process:
{at_500:.0f} MB at step 500, {at_end:.0f} MB at step {steps}: **{at_end / at_500 - 1:+.1%}**. Tasks per second,
medians of the first and of the last fifth: {early:.0f} and {late:.0f}. The run leaves {len(files)} files,
{megabytes:.1f} MB, {of_log:.2f} MB of them `metrics.csv`.
"""


def _shown(overrides: Sequence[str]) -> str:
    """The command, four overrides a line, as code of Markdown."""
    lines = [" ".join(overrides[start : start + 4]) for start in range(0, len(overrides), 4)]
    return "    python train.py " + " \\\n        ".join(lines)


def _fifths(rows: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    size = max(1, len(rows) // 5)
    return rows[:size], rows[-size:]


if __name__ == "__main__":
    main(sys.argv[1])
