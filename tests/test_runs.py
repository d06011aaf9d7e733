"""Whole runs, as a person starts them: what they print, leave behind, and take up again."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, Compose
from reliability import OF_THIS_MACHINE

from fewshot import checkpoints
from fewshot.errors import UserError
from fewshot.precision import bfloat16_works
from fewshot.runs import evaluate, train

KEYS = {
    *("algo", "data", "split", "n_way", "k_shot", "q_query", "metric", "mean", "ci95", "episodes", "episodes_sha256"),
    *("inner_steps", "normalization", "seed", "checkpoint", "git_commit", "versions", "seconds"),
}


def run_train(compose_cfg: Compose, folder: Path, *overrides: str) -> dict:
    train(compose_cfg(*overrides, folder=folder))
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def shell(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_train_then_evaluate_gives_the_same_number(compose_cfg: Compose, tmp_path: Path, capsys) -> None:
    trained = run_train(compose_cfg, tmp_path / "a")
    assert "5-way 1-shot accuracy" in capsys.readouterr().out
    best = str(tmp_path / "a" / "checkpoints" / "best.ckpt")
    evaluated = evaluate(compose_cfg(f"ckpt_path={best}", config="evaluate", folder=tmp_path / "b"))
    for key in ("mean", "ci95", "episodes_sha256", "classes_sha256", "after_each_inner_step", "normalization"):
        assert evaluated[key] == trained[key], key
    assert set(trained) >= KEYS
    assert trained["normalization"] == "transductive"
    assert trained["episodes"] == 40
    assert trained["inner_steps"] == 3
    assert 0 < trained["mean"] < 1


def test_what_a_run_leaves(compose_cfg: Compose, tmp_path: Path) -> None:
    value = train(compose_cfg(folder=tmp_path))
    for left in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "results.json", "classes.json"):
        assert (tmp_path / left).is_file(), left
    assert (tmp_path / "plots" / "episode.png").stat().st_size > 1000
    assert (tmp_path / "plots" / "inner_steps.png").stat().st_size > 1000
    assert not list(tmp_path.rglob("*tmp*"))
    logged = rows(tmp_path)
    best = max(float(row["val/acc"]) for row in logged if row["val/acc"])
    assert value == pytest.approx(best), "the sweeper gets the best validation value, not the last"
    for column in (
        "train/loss",
        "train/acc_step_0",
        "train/acc_step_1",
        "train/tasks_per_second",
        "train/gflops_per_second",
        "train/peak_memory_mb",
        "train/grad_norm",
    ):
        assert any(row[column] for row in logged), column
    assert [int(float(row["step"])) for row in logged if row["train/loss"]] == [2, 4, 6]
    assert any(row["val/acc_step_3"] for row in logged)
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert classes["split"] == "official"
    assert not set(classes["train"]["classes"]) & set(classes["test"]["classes"])


def test_checkpoints_load_with_weights_only(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("test=false", folder=tmp_path))
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["global_step"] in (3, 6)
        assert checkpoint[checkpoints.RECORD]["config"]["algo"]["inner_lr"] == 0.4
    assert not (tmp_path / "results.json").exists()


def test_seed_zero_is_a_seed_and_decides_everything(compose_cfg: Compose, tmp_path: Path) -> None:
    runs = [run_train(compose_cfg, tmp_path / n, f"seed={s}") for n, s in (("a", 0), ("b", 0), ("c", 1))]
    assert runs[0]["mean"] == runs[1]["mean"]
    assert runs[0]["after_each_inner_step"] == runs[1]["after_each_inner_step"]
    assert runs[0]["mean"] != runs[2]["mean"]
    weights = [torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in "abc"]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not all(torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_a_resumed_run_is_the_run_that_was_never_stopped(compose_cfg: Compose, tmp_path: Path) -> None:
    options = ("test=false", "outer.optimizer.lr=0.01", "aug=rotate")
    train(compose_cfg(*options, "trainer.max_steps=9", folder=tmp_path / "whole"))
    train(compose_cfg(*options, "trainer.max_steps=6", folder=tmp_path / "parts"))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    train(compose_cfg(*options, "trainer.max_steps=9", f"ckpt_path={last}", folder=tmp_path / "parts"))
    whole, parts = (
        torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 9
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    logged = [
        [{k: v for k, v in row.items() if k not in OF_THIS_MACHINE} for row in rows(tmp_path / n)]
        for n in ("whole", "parts")
    ]
    assert logged[0] == logged[1], "the log goes on as if nothing had happened"


def test_recalled_configuration(compose_cfg: Compose, tmp_path: Path) -> None:
    """What the run was started with is what the checkpoint brings; what is typed now lies on top."""
    train(compose_cfg("test=false", "algo=fomaml", "algo.inner_lr=0.2", "task_name=mine", folder=tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / ".hydra").mkdir()
    arguments = checkpoints.recall(["-m", f"ckpt_path={path}", "seed=3"], resume=True)
    assert arguments[0] == "-m"
    assert "algo=fomaml" in arguments
    assert f"hydra.run.dir='{tmp_path / 'run'}'" in arguments
    assert arguments[-1] == "seed=3"
    arguments = checkpoints.recall([f"ckpt_path={path}"], resume=False)
    assert "task_name=evaluate" in arguments
    assert "task_name=mine" not in arguments
    assert checkpoints.recall(["algo=maml"], resume=True) == ["algo=maml"]
    arguments = checkpoints.recall(["--cfg", "job", f"ckpt_path={path}"], resume=False)
    assert arguments[:2] == ["--cfg", "job"], "flags keep their values"


def test_the_checkpoint_overrules_files_that_changed_since(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("test=false", folder=tmp_path))
    checkpoint = checkpoints.read(str(tmp_path / "checkpoints" / "last.ckpt"))
    checkpoint[checkpoints.RECORD]["config"]["algo"]["inner_lr"] = 0.123  # as if conf/algo had said so then
    recalled = checkpoint[checkpoints.RECORD]["overrides"]
    today = compose_cfg("data.n_way=3")
    restored = checkpoints.restore(today, checkpoint, [*recalled, "data.n_way=3", "aug=rotate", "episodes=7"])
    assert restored.algo.inner_lr == 0.123
    assert restored.data.n_way == 3
    assert restored.aug == today.aug
    assert restored.model.hidden == 8


def test_overrides_of_an_evaluation_take_effect(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("test=false", folder=tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = evaluate(
        compose_cfg(f"ckpt_path={path}", "episodes=8", "algo.eval_inner_steps=5", "data.k_shot=2", config="evaluate")
    )
    assert found["episodes"] == 8
    assert found["inner_steps"] == 5
    assert len(found["after_each_inner_step"]["mean"]) == 6
    assert found["k_shot"] == 2


def test_a_network_with_running_statistics_can_be_scored_by_the_batch(compose_cfg: Compose, tmp_path: Path) -> None:
    trained = run_train(compose_cfg, tmp_path / "a", "algo=protonet")
    best = f"ckpt_path={tmp_path / 'a' / 'checkpoints' / 'best.ckpt'}"
    by_batch = ("algo=protonet", best, "algo.running_momentum=null")
    found = evaluate(compose_cfg(*by_batch, config="evaluate", folder=tmp_path / "b"))
    assert (trained["normalization"], found["normalization"]) == ("inductive", "transductive")
    assert found["episodes_sha256"] == trained["episodes_sha256"]
    assert found["mean"] != trained["mean"]
    with pytest.raises(UserError, match="does not fit this model: algorithm.statistics"):
        train(compose_cfg(*by_batch, "trainer.max_steps=9", folder=tmp_path / "c"))


def test_wandb_offline_is_closed_and_says_how_it_ended(compose_cfg: Compose, tmp_path: Path) -> None:
    import wandb

    train(compose_cfg("logger=wandb", "test=false", folder=tmp_path))
    assert wandb.run is None
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    with pytest.raises(UserError, match="not finite"):
        train(compose_cfg("logger=wandb", "algo.inner_lr=1e30", folder=tmp_path / "bad"))
    assert wandb.run is None


def test_tensorboard_has_the_names_of_the_csv(compose_cfg: Compose, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(compose_cfg("logger=tensorboard", folder=tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(rows(tmp_path)[0]) - {"step"} == set(events.Tags()["scalars"]) - {"epoch", "hp_metric"}


def test_bfloat16_runs_and_learns(compose_cfg: Compose, tmp_path: Path, monkeypatch) -> None:
    # Products so small do not use the instruction that some virtual processors lack.
    monkeypatch.setattr("fewshot.precision.bfloat16_works", lambda device: True)
    train(compose_cfg("trainer.precision=bf16-mixed", "test=false", "trainer.max_steps=20", folder=tmp_path))
    losses = [float(row["train/loss"]) for row in rows(tmp_path) if row["train/loss"]]
    assert losses[-1] < losses[0]


def test_bfloat16_that_would_kill_the_process_is_refused(compose_cfg: Compose, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("fewshot.precision.bfloat16_works", lambda device: False)
    with pytest.raises(UserError, match="trainer.precision=bf16-mixed: this machine's cpu cannot multiply matrices"):
        train(compose_cfg("trainer.precision=bf16-mixed", folder=tmp_path))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("code", [0, -4])
def test_whether_bfloat16_works_is_tried_elsewhere(code: int, monkeypatch) -> None:
    done = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    assert bfloat16_works("cpu") == (code == 0)  # -4: ended by an illegal instruction


def test_not_finite_keeps_the_last_good_checkpoint(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("test=false", "trainer.max_steps=3", folder=tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(UserError, match="outer step 5: .* Last good checkpoint: .*last.ckpt"):
        train(compose_cfg("algo.inner_lr=1e30", f"ckpt_path={last}", "test=false", folder=tmp_path))
    assert last.read_bytes() == before


def test_commands_from_another_folder(tmp_path: Path) -> None:
    """train, go on, evaluate: as typed, from anywhere, with the run's own configuration recalled."""
    done = shell(str(ROOT / "train.py"), *SMALL, "algo=fomaml", "trainer.max_steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "train").iterdir()
    assert str(run) in done.stdout
    last = run / "checkpoints" / "last.ckpt"
    done = shell(str(ROOT / "train.py"), f"ckpt_path={last}", "trainer.max_steps=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "train").iterdir())) == 1, "it goes on in its own folder"
    trained = json.loads((run / "results.json").read_text())
    assert trained["algo"] == "fomaml"
    done = shell(str(ROOT / "evaluate.py"), f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "evaluate").iterdir()
    evaluated = json.loads((folder / "results.json").read_text())
    assert evaluated["mean"] == trained["mean"]
    assert evaluated["algo"] == "fomaml"


def test_a_sweep_keeps_its_jobs_apart(tmp_path: Path) -> None:
    done = shell(
        str(ROOT / "train.py"), "-m", *SMALL, "trainer.max_steps=3", "algo=maml,fomaml", "aug=none,rotate", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "train" / "multirun").iterdir()
    found = [json.loads((sweep / str(job) / "results.json").read_text()) for job in range(4)]
    assert [f["algo"] for f in found] == ["maml", "maml", "fomaml", "fomaml"]
    assert len({f["episodes_sha256"] for f in found}) == 1, "all are scored on the same tasks"
    assert len({f["mean"] for f in found}) > 1


def test_a_random_network_is_a_floor_too(compose_cfg: Compose) -> None:
    found = [
        evaluate(compose_cfg("algo=nearest", "algo.space=network", f"seed={s}", "model.norm=group", config="evaluate"))
        for s in (0, 0, 1)
    ]
    assert found[0]["mean"] == found[1]["mean"] != found[2]["mean"]
    assert 0.25 < found[0]["mean"] < 0.8
    with pytest.raises(UserError, match="algo.space=ink is not one of pixels, network"):
        evaluate(compose_cfg("algo=nearest", "algo.space=ink", config="evaluate"))


def test_nearest_needs_no_checkpoint(compose_cfg: Compose) -> None:
    found = evaluate(compose_cfg("algo=nearest", config="evaluate"))
    assert found["normalization"] == "inductive"
    assert found["inner_steps"] == 0
    assert 0.35 < found["mean"] < 0.7
