"""A learner that says how sure it is: its likelihood, and whether it may be believed."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Compose, random_tasks, small_maml
from torchmetrics.functional.classification import multiclass_calibration_error

from fewshot import calibration as module
from fewshot import engine
from fewshot.algorithms.zero import Zero
from fewshot.build import build_learner
from fewshot.calibration import LEVELS, calibration, confidence_judges, reliability
from fewshot.calibration_figures import draw_reliability
from fewshot.checkpoints import load_weights, read
from fewshot.data.task_data import TaskData
from fewshot.evaluation import Scores
from fewshot.figures import save
from fewshot.runs import evaluate, train
from fewshot.tasks import CONFIDENCE_BINS, Classification, Regression, TaskBatch


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


def found_of(predictions: torch.Tensor, targets: torch.Tensor) -> dict:
    """What the record says of tasks with these logits (T, M, N) and labels (T, M)."""
    bins = torch.vmap(Classification(3).confidence_bins)(predictions, targets)
    empty = torch.empty(0)
    return reliability(small_maml(), Scores(empty, empty, empty, list(bins.double().T)))


def logits(*confidences: float) -> torch.Tensor:
    """Of three classes the first has this probability, the others share what is left: (M, 3)."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, (1 - first) / 2, (1 - first) / 2], dim=1).log()


def test_the_calibration_error_by_hand() -> None:
    """Two tasks. (0.8, 13/15]: confidences 0.82 and 0.84, one right. (14/15, 1]: 0.95 and 1, both right. (0.4, 7/15]:
    0.45, wrong. So |0.83 − 0.5| · 2/5 + |0.975 − 1| · 2/5 + |0.45 − 0| · 1/5 = 0.132 + 0.01 + 0.09."""
    tasks = ((logits(0.82, 0.45, 0.95), [0, 1, 0]), (logits(0.84, 1.0), [2, 0]))
    bins = [Classification(3).confidence_bins(told, torch.tensor(truth)).double() for told, truth in tasks]
    empty = torch.empty(0)
    found = reliability(small_maml(), Scores(empty, empty, empty, list(torch.stack(bins, dim=1))))
    assert found["ece"] == pytest.approx(0.232, abs=1e-6)
    assert [n for n in found["reliability"]["count"] if n] == [1, 2, 2]
    assert [found["reliability"]["count"].index(n) for n in (1, 2)] == [6, 12]
    assert found["reliability"]["count"][-1] == 2, "confidence 1 is in the highest bin"
    assert found["reliability"]["accuracy"][12] == 0.5
    assert found["reliability"]["confidence"][12] == pytest.approx(0.83)
    assert found["reliability"]["confidence"][0] is None


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    predictions, targets = 2 * torch.randn(20, 30, 3, generator=draw), torch.randint(3, (20, 30), generator=draw)
    expected = multiclass_calibration_error(predictions.flatten(0, 1), targets.flatten(), 3, n_bins=15, norm="l1")
    assert found_of(predictions, targets)["ece"] == pytest.approx(expected.item(), abs=1e-6)
    assert sum(found_of(predictions, targets)["reliability"]["count"]) == 600


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_who_is_right_as_often_as_it_says_has_no_calibration_error(temperature: float) -> None:
    """Labels are drawn from the probabilities themselves; at another temperature a predictor is too sure, or too
    little."""
    draw = torch.Generator().manual_seed(0)
    predictions = 1.5 * torch.randn(100, 400, 3, generator=draw)
    targets = torch.multinomial(predictions.softmax(-1).flatten(0, 1), 1, generator=draw).view(100, 400)
    found = found_of(predictions / temperature, targets)
    assert (found["ece"] < 0.01) == (temperature == 1)
    told = found["reliability"]
    gap = sum(n * (c - a) for n, c, a in zip(*(told[k] for k in ("count", "confidence", "accuracy")), strict=True) if n)
    assert temperature == 1 or (gap > 0) == (temperature < 1)


@pytest.mark.parametrize("chunk", [None, 3])
def test_confidences_are_counted_in_the_pass_that_scores(chunk: int | None) -> None:
    """Whatever the chunks and states: the last state's, task by task, which add up to those of all queries."""
    algorithm, batch = small_maml(steps=2), random_tasks(5, queries=4)
    algorithm.task_chunk = chunk
    judges = confidence_judges(algorithm)
    every = engine.evaluate(algorithm, batch, every_state=True, also=judges)
    assert every.shape == (2 + 3 * CONFIDENCE_BINS, 5, 3)
    torch.testing.assert_close(every[:2], engine.evaluate(algorithm, batch, every_state=True))
    last = engine.evaluate(algorithm, batch, also=judges)[..., -1]
    torch.testing.assert_close(every[..., -1], last)
    predictions = engine.predict(algorithm, batch)
    whole = algorithm.kind.confidence_bins(predictions.flatten(0, 1), batch.query_y.flatten())
    torch.testing.assert_close(last[2:].sum(1).float(), whole)


def test_the_record_and_the_picture_of_a_classifier(compose_cfg: Compose, tmp_path: Path) -> None:
    """A run says what its own predictions for the test tasks come to."""
    train(compose_cfg(folder=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    data, learner = build_learner(compose_cfg(folder=tmp_path))
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    load_weights(learner, read(best), best)
    batches = [data.task_batch("test", block) for block in data.blocks("test")]
    told = torch.cat([engine.predict(learner.algorithm.eval(), batch).flatten(0, 1) for batch in batches]).softmax(-1)
    truth = torch.cat([batch.query_y.flatten() for batch in batches])
    assert found["ece"] == pytest.approx(multiclass_calibration_error(told, truth, 5, n_bins=15).item(), abs=1e-5)
    assert sum(found["reliability"]["count"]) == 40 * 75
    assert (tmp_path / "plots" / "reliability.png").stat().st_size > 1000


def test_who_gives_no_probabilities_gets_no_calibration_error(compose_cfg: Compose, tmp_path: Path) -> None:
    found = evaluate(compose_cfg("algo=nearest", config="evaluate", folder=tmp_path))
    assert found["ece"] is None
    assert found["reliability"] is None
    assert not (tmp_path / "plots" / "reliability.png").exists()
    found = evaluate(compose_cfg("algo=zero", "data=sinusoid", "episodes=40", config="evaluate", small=False))
    assert "ece" not in found


def test_a_learner_that_came_to_no_number_can_be_drawn(tmp_path: Path) -> None:
    found = found_of(torch.full((2, 4, 3), torch.nan), torch.zeros(2, 4, dtype=torch.int64))
    assert math.isnan(found["ece"])
    save(draw_reliability(found["ece"], "nothing", **found["reliability"]), tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").exists()
