"""SIGTERM costs nothing: the run that goes on is the run that was never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import Compose
from reliability import OF_THIS_MACHINE
from test_runs import rows

from fewshot.errors import UserError
from fewshot.outer import MetaLearner
from fewshot.preemption import EXIT_CODE
from fewshot.runs import train

OPTIONS = ("test=false", "outer.optimizer.lr=0.01", "aug=rotate", "outer.schedule=cosine", "trainer.max_steps=7")


def checkpoint(folder: Path, name: str) -> dict:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, verb: str) -> None:
    """Sends the signal while the learner is at it, for the first time after so many steps."""
    original, sent = getattr(MetaLearner, verb), []

    def signalled(self: MetaLearner, *arguments: object) -> object:
        if self.global_step == step and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(MetaLearner, verb, signalled)


@pytest.mark.parametrize(
    ("step", "verb", "stands"),
    [*((step, "training_step", step + 1) for step in (0, 1, 2, 4)), (3, "validation_step", 3)],
)
def test_a_run_that_is_preempted_loses_nothing(
    compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, verb: str, stands: int
) -> None:
    """Within an epoch of three steps, at its last step, in its validation."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    before = signal.getsignal(signal.SIGTERM)
    train(compose_cfg(*OPTIONS, folder=whole))
    assert signal.getsignal(signal.SIGTERM) is before
    with monkeypatch.context() as patched:
        stop_at(patched, step, verb)
        with pytest.raises(SystemExit) as end:
            train(compose_cfg(*OPTIONS, folder=parts))
    assert end.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint(parts, "last.ckpt")["global_step"] == stands
    train(compose_cfg(*OPTIONS, "ckpt_path=last", folder=parts))
    for name in ("last.ckpt", "best.ckpt"):
        expected, found = checkpoint(whole, name), checkpoint(parts, name)
        assert [expected[key] for key in ("global_step", "epoch")] == [found[key] for key in ("global_step", "epoch")]
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)
    logged = [
        [{k: v for k, v in row.items() if k not in OF_THIS_MACHINE} for row in rows(run)] for run in (whole, parts)
    ]
    assert logged[0] == logged[1]


def test_the_same_command_starts_goes_on_tests_and_then_has_nothing_to_do(
    compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    same = [option for option in OPTIONS if option != "test=false"] + ["ckpt_path=last"]
    for step in (1, 6):  # from nothing; then on, to the end of training but not to the test
        with monkeypatch.context() as patched:
            stop_at(patched, step, "training_step")
            with pytest.raises(SystemExit):
                train(compose_cfg(*same, folder=tmp_path))
        assert checkpoint(tmp_path, "last.ckpt")["global_step"] == step + 1
        assert not (tmp_path / "results.json").exists()
    before = checkpoint(tmp_path, "last.ckpt")
    value = train(compose_cfg(*same, folder=tmp_path))
    assert max(float(row["val/acc"]) for row in rows(tmp_path) if row["val/acc"]) == pytest.approx(value)
    written = (tmp_path / "results.json").read_bytes()
    assert json.loads(written)["train_seconds"] == before["train_seconds"] > 0
    capsys.readouterr()
    assert train(compose_cfg(*same, folder=tmp_path)) == value
    assert capsys.readouterr().out == f"finished before: {tmp_path}\n"
    assert (tmp_path / "results.json").read_bytes() == written


def test_in_its_test_too_a_run_ends_with_the_code(
    compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [option for option in OPTIONS if option != "test=false"] + ["ckpt_path=last", "episodes=40"]
    with monkeypatch.context() as patched:
        stop_at(patched, 7, "test_step")
        with pytest.raises(SystemExit) as end:
            train(compose_cfg(*same, folder=tmp_path))
    assert end.value.code == EXIT_CODE
    assert not (tmp_path / "results.json").exists()
    train(compose_cfg(*same, folder=tmp_path))
    assert json.loads((tmp_path / "results.json").read_text())["train_steps"] == 7


def test_a_run_that_goes_on_is_tested_again(compose_cfg: Compose, tmp_path: Path) -> None:
    same = [option for option in OPTIONS if option != "test=false"] + ["ckpt_path=last"]
    for steps in (7, 9):
        train(compose_cfg(*same, f"trainer.max_steps={steps}", folder=tmp_path))
        assert json.loads((tmp_path / "results.json").read_text())["train_steps"] == steps


def test_a_damaged_last_checkpoint_leaves_the_one_before(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg(*OPTIONS, folder=tmp_path))
    whole = checkpoint(tmp_path, "last.ckpt")
    last, before = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "last.previous.ckpt"))
    assert checkpoint(tmp_path, before.name)["global_step"] == 6
    last.write_bytes(b"half of")
    train(compose_cfg(*OPTIONS, "ckpt_path=last", folder=tmp_path))
    torch.testing.assert_close(checkpoint(tmp_path, "last.ckpt")["state_dict"], whole["state_dict"], rtol=0, atol=0)
    last.write_bytes(b"half of")
    before.write_bytes(b"this, too")
    with pytest.raises(UserError, match="ckpt_path=last: .* cannot be read; remove them to start anew"):
        train(compose_cfg(*OPTIONS, "ckpt_path=last", folder=tmp_path))


def test_wandb_goes_on_with_the_same_run(compose_cfg: Compose, tmp_path: Path) -> None:
    for steps in (3, 6):
        train(
            compose_cfg("logger=wandb", "test=false", "ckpt_path=last", f"trainer.max_steps={steps}", folder=tmp_path)
        )
    ids = [path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(ids) == 2
    assert len(set(ids)) == 1
