"""A learner that says how sure it is: its likelihood, and whether it may be believed."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Compose

from fewshot import calibration as module
from fewshot.algorithms.zero import Zero
from fewshot.calibration import LEVELS, calibration
from fewshot.data.task_data import TaskData
from fewshot.runs import train
from fewshot.tasks import Classification, Regression, TaskBatch


def test_the_likelihood_is_that_of_normal_distributions() -> None:
    torch.manual_seed(0)
    kind, told, targets = Regression(2), torch.randn(7, 4), torch.randn(7, 2)
    normal = torch.distributions.Normal(kind.expectation(told), kind.deviation(told))
    torch.testing.assert_close(kind.negative_log_likelihood(told, targets), -normal.log_prob(targets).sum(1).mean())
    assert kind.deviation(torch.full((1, 4), -1000.0)) == pytest.approx(0.1)
    labels = torch.randint(3, (7,))
    logits = torch.randn(7, 3)
    classes = Classification(3)
    assert classes.negative_log_likelihood(logits, labels) == classes.loss(logits, labels)
    assert classes.deviation(logits) is None


class Tasks:
    """Two blocks of tasks whose targets are normal, of mean 0 and deviation 1."""

    def blocks(self, split: str) -> range:
        return range(2)

    def task_batch(self, split: str, block: int) -> TaskBatch:
        targets = torch.randn(30, 100, 1, generator=torch.Generator().manual_seed(block))
        return TaskBatch(targets, targets, targets, targets)


@pytest.mark.parametrize("claimed", [1.0, 0.5, 2.0])
def test_who_is_right_about_itself_is_calibrated(monkeypatch: pytest.MonkeyPatch, claimed: float) -> None:
    kind = Regression(1)
    raw = torch.log(torch.expm1(torch.tensor((claimed - 0.1) / 0.9)))

    def told(algorithm: Zero, batch: TaskBatch) -> torch.Tensor:
        return torch.cat([torch.zeros_like(batch.query_y), raw.expand_as(batch.query_y)], dim=-1)

    monkeypatch.setattr(module.engine, "distributions", told)
    data: TaskData = Tasks()  # type: ignore[assignment]
    found = calibration(Zero(torch.nn.Identity(), kind), data)
    pairs = list(zip(LEVELS, found["calibration"]["observed"], strict=True))
    if claimed == 1.0:
        assert all(observed == pytest.approx(expected, abs=0.02) for expected, observed in pairs)
        assert found["nll"] == pytest.approx(1.4189, abs=0.02)
    else:
        assert all((observed < expected) == (claimed < 1) for expected, observed in pairs)


def test_a_neural_process_learns_waves_and_how_far_to_trust_it(compose_cfg: Compose, tmp_path: Path) -> None:
    sizes = ("data.val_episodes=32", "episodes=64", "trainer.max_steps=300", "data.steps_per_epoch=300")
    network = ("model.hidden=[64]", "model.init_std=null", "algo.code=64", "algo.encoder=[64]", "algo.decoder=[64]")
    train(compose_cfg("algo=cnp", "data=sinusoid", *sizes, *network, small=False, folder=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["mean"] < 3.006  # the best that ignores a task's points
    assert found["nll"] < 0.5 * math.log(2 * math.pi * math.e * 3.006)  # normal distributions of that variance
    assert found["calibration"]["expected"] == list(LEVELS)
    assert 0 < found["calibration"]["observed"][0] < found["calibration"]["observed"][-1] <= 1
    assert found["normalization"] == "inductive"
    for name in ("fit.png", "calibration.png"):
        assert (tmp_path / "plots" / name).stat().st_size > 1000


def test_who_says_nothing_of_that_gets_no_such_entry(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("algo=cnp", "trainer.max_steps=3", folder=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert "nll" not in found
