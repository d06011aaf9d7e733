"""The interval, the record and the progress that a person sees."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import random_tasks

from fewshot.algorithms.nearest import Nearest
from fewshot.evaluation import git_commit, interval, summary, versions, write_json
from fewshot.metrics_csv import MetricsCSV
from fewshot.tasks import Classification


def test_interval_is_the_formula_and_shrinks_with_episodes() -> None:
    mean, ci95 = interval(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert mean == 0.5
    assert ci95 == pytest.approx(1.96 * math.sqrt(1 / 3) / 2)
    assert math.isnan(interval(torch.tensor([0.5]))[1])
    draw = torch.Generator().manual_seed(0)
    few, many = (interval(torch.rand(n, generator=draw))[1] for n in (100, 10_000))
    assert few / many == pytest.approx(10, rel=0.15)


def test_interval_covers_the_truth_at_its_nominal_rate() -> None:
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        accuracies = torch.bernoulli(torch.full((400, 75), 0.9), generator=draw).mean(1)
        mean, ci95 = interval(accuracies)
        covered += abs(mean - 0.9) <= ci95
    assert 0.935 < covered / 2000 < 0.965


def test_means_are_taken_in_double_precision() -> None:
    scores = torch.full((100_000,), 0.98765432, dtype=torch.float32)
    assert interval(scores)[0] == pytest.approx(scores[0].item(), abs=1e-12)


def test_the_printed_line() -> None:
    record = dict(metric="accuracy", mean=0.91234, ci95=0.0041, episodes=1000, normalization="transductive")
    assert summary("5-way 1-shot", record) == "5-way 1-shot accuracy 0.912 ± 0.004 (1000 episodes, transductive)"


def test_records_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"mean": 1})
    with pytest.raises(TypeError):
        write_json(path, {"mean": object()})
    assert json.loads(path.read_text()) == {"mean": 1}


def test_versions_and_commit() -> None:
    assert {"python", "torch", "torchvision", "lightning", "hydra-core", "fewshot"} <= set(versions())
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_metrics_csv_widens_resumes_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(str(path))
    log.log_metrics({"a": 1.0, "epoch": 0}, step=1)
    log.save()
    log.log_metrics({"b": 2.0}, step=2)
    log.finalize("success")
    assert path.read_text().splitlines() == ["step,a,b", "1,1.0,", "2,,2.0"]
    again = MetricsCSV(str(path))
    again.resume(1)
    again.log_metrics({"b": 3.0}, step=2)
    again.save()
    assert path.read_text().splitlines() == ["step,a,b", "1,1.0,", "2,,3.0"]


def test_nearest_takes_the_label_of_the_nearest_image() -> None:
    batch = random_tasks(1)
    nearest = Nearest(torch.nn.Identity(), Classification(3))
    (fitted,) = nearest.fit({}, batch.support_x[0], batch.support_y[0])
    assert torch.equal(nearest.predict(fitted, 0.5 * batch.support_x[0]).argmax(-1), batch.support_y[0])
    assert nearest.predict(fitted, batch.query_x[0]).shape == (6, 3)
