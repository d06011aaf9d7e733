"""SIGTERM costs nothing: the run that goes on is the run that was never stopped."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import Compose
from test_runs import rows

from fewshot.outer import MetaLearner
from fewshot.preemption import EXIT_CODE
from fewshot.runs import train

OPTIONS = ("test=false", "outer.optimizer.lr=0.01", "aug=rotate", "outer.schedule=cosine", "trainer.max_steps=7")
SPEED = ("train/tasks_per_second", "train/gflops_per_second", "train/peak_memory_mb")


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
    [(0, "training_step", 1), (4, "training_step", 5), (2, "training_step", 3), (3, "validation_step", 3)],
)
def test_a_run_that_is_preempted_loses_nothing(
    compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, verb: str, stands: int
) -> None:
    """Within an epoch of three steps, at its last step, in its validation."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(compose_cfg(*OPTIONS, folder=whole))
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        stop_at(patched, step, verb)
        with pytest.raises(SystemExit) as end:
            train(compose_cfg(*OPTIONS, folder=parts))
    assert end.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint(parts, "last.ckpt")["global_step"] == stands
    train(compose_cfg(*OPTIONS, f"ckpt_path={parts / 'checkpoints' / 'last.ckpt'}", folder=parts))
    for name in ("last.ckpt", "best.ckpt"):
        expected, found = checkpoint(whole, name), checkpoint(parts, name)
        assert expected["global_step"] == found["global_step"]
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
        torch.testing.assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)
    logged = [[{k: v for k, v in row.items() if k not in SPEED} for row in rows(run)] for run in (whole, parts)]
    assert logged[0] == logged[1]


def test_at_the_very_end_training_is_written_first(
    compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 6, "training_step")
        with pytest.raises(SystemExit):
            train(compose_cfg(*OPTIONS, folder=tmp_path))
    assert checkpoint(tmp_path, "last.ckpt")["global_step"] == 7
