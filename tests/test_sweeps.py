"""Sweeps go on after a crash, do nothing twice, fail job by job, and come to the same by every launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL
from omegaconf import read_write

from fewshot.errors import UserError
from fewshot.jobs import FAILED, OwnFolder, run_job

NAMED = "hydra.sweep.dir=sweep"


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def results(sweep: Path) -> list[tuple[str, int, float]]:
    """Algorithm, seed and score of every job, in the order of the jobs."""
    folders = sorted((path for path in sweep.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    return [(record["algo"], record["seed"], record["mean"]) for record in found]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four jobs by the basic launcher."""
    folder = tmp_path_factory.mktemp("basic")
    finish(start(folder, "algo=maml,fomaml", "seed=1,2", NAMED, "-m"))
    return folder / "sweep"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_every_launcher_gives_the_same_numbers(basic: Path, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    finish(start(tmp_path, "algo=maml,fomaml", "seed=1,2", NAMED, f"hydra/launcher={launcher}", "-m"))
    assert results(tmp_path / "sweep") == results(basic)


def test_killed_in_the_middle_it_goes_on_and_does_nothing_twice(basic: Path, tmp_path: Path) -> None:
    """The second job is killed after its first checkpoint."""
    command = ("algo=maml,fomaml", "seed=1,2", NAMED, "-m")
    process = start(tmp_path, *command)
    sweep = tmp_path / "sweep"
    while not (sweep / "1" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = (sweep / "0" / "results.json").read_bytes()
    output = finish(start(tmp_path, *command))
    assert output.count("finished before:") == 1
    assert (sweep / "0" / "results.json").read_bytes() == before
    assert results(sweep) == results(basic)
    assert "4 of 4 jobs done" in output
    for job in range(4):
        expected, found = (
            torch.load(place / str(job) / "checkpoints" / "last.ckpt", weights_only=True) for place in (basic, sweep)
        )
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)


def test_a_job_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    command = ("algo.inner_lr=1e30,0.4", "algo.task_chunk=0,2", NAMED, "-m")
    output = finish(start(tmp_path, *command), code=1)
    sweep = tmp_path / "sweep"
    assert (sweep / "3" / "results.json").exists()
    assert "1 of 4 jobs done" in output
    for job, reason in ((0, "task_chunk=0"), (1, "not finite"), (2, "task_chunk=0")):
        assert reason in json.loads((sweep / str(job) / FAILED).read_text())["error"]
        assert f"failed: sweep/{job}  " in output
    assert "Traceback" not in output


def test_a_sweep_of_other_settings_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    finish(start(tmp_path, "algo.inner_lr=0.4,0.3", NAMED, "trainer.max_steps=3", "-m"))
    output = finish(start(tmp_path, "algo.inner_lr=0.4,0.2", NAMED, "trainer.max_steps=3", "-m"), code=1)
    assert "finished before" in output
    assert "holds a run with algo.inner_lr=0.3, not 0.2: choose another hydra.sweep.dir" in output


def test_optuna_gets_the_best_validation_value(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    finish(start(tmp_path, "sweep=optuna", "hydra.sweeper.n_trials=2", NAMED))
    best = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    values = []
    for job in range(2):
        rows = (tmp_path / "sweep" / str(job) / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("val/acc")
        values.append(max(float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]))
    assert f"best_value: {max(values)}" in best


def test_two_that_begin_in_the_same_second_do_not_share_a_folder(compose_cfg, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_STARTED", raising=False)
    compose_cfg()
    from hydra.core.hydra_config import HydraConfig

    config, folders = HydraConfig.instance().cfg, []
    for kind in ("run", "run", "multirun", "multirun"):
        getattr(OwnFolder(), f"on_{kind}_start")(config=config)
        folders.append(Path(config.hydra["run" if kind == "run" else "sweep"].dir))
        getattr(OwnFolder(), f"on_{kind}_end")(config=config)
    assert len(set(folders)) == 4
    assert all(folder.is_dir() for folder in folders)
    assert folders[1].name == f"{folders[0].name}_2"


def test_jobs_side_by_side_use_one_device_each(compose_cfg, tmp_path: Path) -> None:
    from hydra.core.hydra_config import HydraConfig

    cfg = compose_cfg("trainer=ddp", "trainer.devices=2", "hydra.mode=MULTIRUN", folder=tmp_path)
    hydra = HydraConfig.instance().cfg
    with read_write(hydra.hydra.launcher):
        hydra.hydra.launcher._target_ = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    run_job(lambda cfg: pytest.fail("it ran"), cfg)
    assert "trainer.devices=2: the jobs that this launcher" in json.loads((tmp_path / FAILED).read_text())["error"]
    with pytest.raises(UserError, match="no sweep"):
        run_job(_refuse, compose_cfg(folder=tmp_path))


def _refuse(cfg: object) -> float:
    raise UserError("no sweep: its errors are told by the program")
