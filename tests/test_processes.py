"""Several processes come to what one does: the same meta-gradient, the same run, in one folder."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, SMALL, Compose, random_tasks
from reliability import OF_THIS_MACHINE
from test_algorithms import ROWS, dead, learner
from test_bad_tasks import spoiled

from fewshot import engine, ranks
from fewshot.bad_tasks import BadTasks, MetaStep
from fewshot.build import build
from fewshot.errors import UserError
from fewshot.runs import evaluate, train
from fewshot.tasks import TaskBatch

TASKS = 8
SPOILED = {"one": [1], "all of the first process": [0, 1, 2, 3, 5], "all": list(range(TASKS))}
Found = dict[str, tuple[dict[str, torch.Tensor | None], MetaStep]]


def steps_of_all(rank: int = 0, processes: int = 1) -> Found:
    """What every learner makes of this process's tasks, and what MAML makes of them where some are spoiled."""
    own = slice(rank * TASKS // processes, (rank + 1) * TASKS // processes)
    cases = {name: (name, random_tasks(TASKS)) for name in ROWS}
    cases |= {key: ("maml", spoiled(random_tasks(TASKS), *bad)) for key, bad in SPOILED.items()}
    found = {}
    for case, (name, batch) in cases.items():
        algorithm, part = learner(name), TaskBatch(*(tensor[own] for tensor in batch))
        step = BadTasks().gradient(partial(engine.meta_backward, algorithm), algorithm.parameters(), part)
        found[case] = ({n: p.grad for n, p in algorithm.named_parameters()}, step)
    return found


def one_of_several(rank: int, processes: int, folder: Path) -> None:
    """In a process of its own: takes part, writes what it came to."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    places = torch.tensor([[place, -place] for place in range(processes)])
    assert torch.equal(ranks.gathered(places[rank]), places.flatten())
    found = steps_of_all(rank, processes)
    torch.save({case: (grads, step._asdict()) for case, (grads, step) in found.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> Found:
    return steps_of_all()


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of so many processes came to."""
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.spawn(one_of_several, (request.param, folder), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("case", [*ROWS, *SPOILED])
def test_the_meta_gradient_is_that_of_one_process(alone: Found, together: list[Found], case: str) -> None:
    """First order and second, for every learner that trains by gradient; and which tasks were left out."""
    gradients, step = alone[case]
    assert any(value is not None for value in gradients.values()) or case == "all"
    for other, told in (found[case] for found in together):
        torch.testing.assert_close(other, gradients, rtol=1e-9, atol=1e-12)
        for name, value in step._asdict().items():
            # Scores are of 32 bits; where nothing is kept the norm has no weights to have a type from.
            torch.testing.assert_close(told[name], value, equal_nan=True, check_dtype=name != "norm")
    assert step.bad == SPOILED.get(case, [])
    first, *others = (found[case][0] for found in together)
    for other in others:  # their weights must not drift apart
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "FEWSHOT_DATA": os.environ["FEWSHOT_DATA"]}


def start(
    folder: Path, *overrides: str, launcher: tuple[str, ...] = (), program: str = "train", extra: dict | None = None
) -> subprocess.Popen:
    """A program in `folder`, and its output in a pipe."""
    command = [sys.executable, *launcher, str(ROOT / f"{program}.py"), *SMALL, *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment() | (extra or {}), **pipes)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "train").iterdir()
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def logged(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and k not in OF_THIS_MACHINE} for row in rows]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that all others are compared with."""
    folder = tmp_path_factory.mktemp("single")
    finish(start(folder))
    return run_folder(folder)


def assert_same_run(single: Path, other: Path) -> None:
    """To rounding: weights, logs, results; and nothing else lies in the folder."""
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (single, other))
        assert found["global_step"] == expected["global_step"]
        states = [
            {k: v for k, v in each["state_dict"].items() if not dead(k)}  # of those Adam makes steps of the rounding
            for each in (expected, found)
        ]
        torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
    for expected, found in zip(logged(single), logged(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    expected, found = (json.loads((run / "results.json").read_text()) for run in (single, other))
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-3)
    for key in ("episodes", "episodes_sha256", "train_steps", "algo", "normalization"):
        assert found[key] == expected[key]
    assert found["after_each_inner_step"]["mean"] == pytest.approx(expected["after_each_inner_step"]["mean"], abs=1e-3)
    files = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (single, other)]
    assert files[0] == files[1]


def test_plain_python_starts_the_others(single: Path, tmp_path: Path) -> None:
    output = finish(start(tmp_path, "trainer=ddp", "trainer.devices=2"))
    assert_same_run(single, run_folder(tmp_path))
    assert output.count("step 6/6") == output.count("accuracy") == output.count("run: ") == 1
    assert "nitializing" not in output


@pytest.mark.parametrize("who", ["algo=nearest", "ckpt_path"])
def test_an_evaluation_is_the_same_to_the_last_bit(
    compose_cfg: Compose, single: Path, tmp_path: Path, who: str
) -> None:
    """Three blocks of tasks for two processes, and the curve's tasks among them."""
    learner = who if "=" in who else f"{who}={single / 'checkpoints' / 'best.ckpt'}"
    overrides = (learner, "episodes=70", "outer.curve_episodes=40")
    expected = evaluate(compose_cfg(*overrides, config="evaluate"))
    finish(start(tmp_path, *overrides, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=run", program="evaluate"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (expected["ece"] is None) == (who == "algo=nearest")
    keys = ("mean", "ci95", "loss", "episodes", "episodes_sha256", "after_each_inner_step", "ece", "reliability")
    for key in keys:
        assert found[key] == expected[key]


def test_torchrun(single: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finish(start(tmp_path, "trainer=ddp", launcher=launcher))
    assert_same_run(single, run_folder(tmp_path))


def test_slurm(single: Path, tmp_path: Path) -> None:
    """Its variables, set by hand: four tasks on two nodes, the folder shared."""
    job = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "fewshot", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = []
    for task in range(4):
        place = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % 2), "SLURM_NODEID": str(task // 2)}
        tasks.append(start(tmp_path, "trainer=ddp", extra=job | place))
        time.sleep(0.6)  # clocks that differ would name several folders
    for process in tasks:
        finish(process)
    assert_same_run(single, run_folder(tmp_path))


def test_each_job_of_a_sweep_has_processes_of_its_own(single: Path, tmp_path: Path) -> None:
    finish(start(tmp_path, "trainer=ddp", "trainer.devices=2", "algo=maml,fomaml", "-m"))
    sweep = next((tmp_path / "outputs" / "train" / "multirun").iterdir())
    assert_same_run(single, sweep / "0")
    assert json.loads((sweep / "1" / "results.json").read_text())["algo"] == "fomaml"


def test_a_sweep_of_several_processes_goes_on(single: Path, tmp_path: Path) -> None:
    """All processes of its job go on from the same step."""
    command = ("trainer=ddp", "trainer.devices=2", "algo=maml", "hydra.sweep.dir=sweep", "-m")
    process = start(tmp_path, *command)
    wait_for(tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.communicate(timeout=60)
    finish(start(tmp_path, *command))
    assert_same_run(single, tmp_path / "sweep" / "0")


def test_a_signal_to_one_stops_all_and_the_run_goes_on(single: Path, tmp_path: Path) -> None:
    overrides = ("trainer=ddp", "trainer.devices=2", "ckpt_path=last", "hydra.run.dir=outputs/train/run")
    process = start(tmp_path, *overrides, "data.steps_per_epoch=1000", "trainer.max_steps=1000000", "test=false")
    wait_for(tmp_path / "outputs" / "train" / "run" / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=143)
    assert output.count("SIGTERM at outer step") == 1
    stands = torch.load(tmp_path / "outputs/train/run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    output = finish(start(tmp_path, *overrides, "data.steps_per_epoch=3", f"trainer.max_steps={stands + 2}"))
    assert f"step {stands + 2}/{stands + 2}" in output
    assert "accuracy" in output


def test_where_a_process_dies_the_others_end_and_say_so(tmp_path: Path) -> None:
    overrides = ("trainer=ddp", "trainer.devices=2", "data.steps_per_epoch=1000", "trainer.max_steps=1000000")
    process = start(tmp_path, *overrides)
    while not (runs := list((tmp_path / "outputs" / "train").glob("*"))):
        time.sleep(0.1)
    wait_for(runs[0] / "metrics.csv", process)
    (child,) = children(process.pid)
    os.kill(child, signal.SIGKILL)
    output = finish(process, code=2)
    assert output.strip().splitlines()[-1].startswith("error: process 1 of 2 ended with code -9")
    assert "Traceback" not in output


def test_where_the_first_process_dies_the_others_end(tmp_path: Path) -> None:
    overrides = ("trainer=ddp", "trainer.devices=2", "data.steps_per_epoch=1000", "trainer.max_steps=1000000")
    process = start(tmp_path, *overrides, "hydra.run.dir=run")
    wait_for(tmp_path / "run" / "metrics.csv", process)
    assert len(children(process.pid)) == 1
    process.kill()
    process.communicate(timeout=60)  # the pipe closes when the last of them has gone


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def children(parent: int) -> list[int]:
    """Python processes that this one started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # it has ended
            continue
        if fields["PPid"].strip() == str(parent) and "train.py" in (status.parent / "cmdline").read_text():
            found.append(int(fields["Pid"]))
    return found


def test_shares_are_even(compose_cfg: Compose) -> None:
    data = build(compose_cfg("data.meta_batch_size=6").data)
    data.refuse_uneven_shares(3)
    with pytest.raises(UserError, match=r"data.meta_batch_size=6 tasks .* to 4 processes: 4 or 8 can"):
        data.refuse_uneven_shares(4)
    with pytest.raises(UserError, match=r"data.meta_batch_size=6 tasks .* to 8 processes: 8 can"):
        data.refuse_uneven_shares(8)


@pytest.mark.parametrize("option", ["trainer.devices=2", "+trainer.strategy=ddp"])
def test_other_strategies_are_refused(compose_cfg: Compose, option: str) -> None:
    with pytest.raises(UserError, match=r"share the tasks of a meta-batch by trainer=ddp trainer.devices=N"):
        train(compose_cfg(option))


def test_nodes_that_are_started_by_hand_need_a_folder(compose_cfg: Compose) -> None:
    with pytest.raises(
        UserError, match=r"trainer.num_nodes=2, started by hand: give every node the same hydra.run.dir"
    ):
        train(compose_cfg("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"))
