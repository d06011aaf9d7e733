"""The homework: its presets keep its settings, its table and figures say what the runs measured."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, Compose

from fewshot.build import build_learner
from fewshot.evaluation import seed_interval
from fewshot.figures import Line, write_study
from fewshot.runs import evaluate, train

PRESETS = ["hw15_simple", "hw15_medium", "hw15_strong", "hw15_boss"]


def sweep(folder: Path, *arguments: str) -> Path:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "data.val_episodes=40", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "outputs").glob("*/multirun/*")
    return made


def points(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_the_settings_of_the_homework(compose_cfg: Compose, name: str) -> None:
    cfg = compose_cfg(f"experiment={name}", "data=strokes", small=False)
    assert (cfg.data.n_way, cfg.data.k_shot, cfg.data.q_query, cfg.data.eval_q_query) == (5, 1, 1, 1)
    assert (cfg.data.meta_batch_size, cfg.data.val_episodes, cfg.episodes) == (32, 600, 640)
    assert cfg.data.split == "background_characters"
    assert cfg.outer.optimizer.lr == 1e-3
    _, learner = build_learner(cfg)
    algorithm = learner.algorithm
    assert (algorithm.inner_steps or 1, algorithm.eval_inner_steps, algorithm.test_inner_steps) == (1, 3, 10)
    assert algorithm.inner_lr == 0.4
    assert sum(p.numel() for p in algorithm.parameters()) == 112_261
    assert type(learner.optimizer([torch.zeros(1, requires_grad=True)])) is torch.optim.Adam


def test_equal_steps_are_compared(compose_cfg: Compose) -> None:
    meta = [compose_cfg(f"experiment={name}", small=False) for name in PRESETS[1:]]
    first, *second = [cfg.trainer.max_steps for cfg in meta]
    assert len(set(second)) == 1
    assert first >= second[0], "the figure has all three at the step where the shorter runs end"
    assert len({cfg.data.steps_per_epoch for cfg in meta}) == 1
    assert [cfg.algo.create_graph for cfg in meta] == [False, True, True]


def test_the_test_takes_its_own_steps_unless_others_are_typed(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("algo.test_inner_steps=4", "algo.eval_inner_steps=1", folder=tmp_path / "run"))
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    assert trained["inner_steps"] == 4
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    evaluated = evaluate(compose_cfg(f"ckpt_path={path}", config="evaluate"))
    assert evaluated["mean"] == trained["mean"]
    typed = evaluate(compose_cfg(f"ckpt_path={path}", "algo.eval_inner_steps=2", config="evaluate"))
    assert typed["inner_steps"] == 2


def test_the_whole_homework(tmp_path: Path) -> None:
    made = sweep(
        tmp_path, "sweep=hw15", "data.num_classes=5", "seed=1,2", "data.steps_per_epoch=2", "trainer.max_steps=4"
    )
    runs = [json.loads((made / str(job) / "results.json").read_text()) for job in range(8)]
    record = json.loads((made / "results.json").read_text())
    assert list(record["baselines"]) == PRESETS
    for number, name in enumerate(PRESETS):
        row, (one, two) = record["baselines"][name], runs[2 * number : 2 * number + 2]
        assert row["means"] == [one["mean"], two["mean"]]
        assert row["mean"] == pytest.approx((one["mean"] + two["mean"]) / 2)
        assert row["inner_steps"] == 10
    assert len({run["episodes_sha256"] for run in runs}) == 1
    table = (made / "table.md").read_text().splitlines()
    assert len(table) == 6
    assert f"**{record['baselines']['hw15_boss']['mean']:.3f}**" in table[-1]
    lines = points(made / "outer_steps.csv")
    assert [line["line"] for line in lines] == [
        name for name in ("simple", "medium", "strong", "boss") for _ in range(2)
    ]
    assert [float(line["outer steps"]) for line in lines] == [2, 4] * 4
    for kind in ("png", "svg"):
        assert (made / f"outer_steps.{kind}").stat().st_size > 1000


def test_the_report(tmp_path: Path) -> None:
    made = sweep(
        *(tmp_path, "experiment=hw15_report", "data.num_classes=20,10", "trainer.max_steps=3"),
        *("hydra.callbacks.report.inner_steps=5", "logger=wandb"),
    )
    sizes, steps = points(made / "num_classes.csv"), points(made / "inner_steps.csv")
    assert [float(point["training classes (characters)"]) for point in sizes] == [10, 20]
    assert [float(point["inner steps on the support set"]) for point in steps] == [0, 1, 2, 3, 4, 5]
    largest = points(made / "0" / "metrics.csv")
    logged = next(row for row in reversed(largest) if row["val/acc"])
    assert float(sizes[1]["validation accuracy"]) == pytest.approx(float(logged["val/acc"]))
    assert float(steps[3]["validation accuracy"]) == pytest.approx(float(logged["val/acc"])), "three steps in training"
    assert float(steps[3]["ci95"]) > 0
    record = json.loads((made / "results.json").read_text())
    assert record["inner_steps"]["y"] == [float(point["validation accuracy"]) for point in steps]
    assert list(made.glob("wandb/*run*/files/media/images/inner_steps*.png"))
    for stem in ("num_classes", "inner_steps"):
        assert (made / f"{stem}.png").stat().st_size > 1000
        assert (made / f"{stem}.svg").stat().st_size > 1000


def test_interval_over_seeds_is_students() -> None:
    mean, ci95 = seed_interval([0.90, 0.92, 0.94])
    assert mean == pytest.approx(0.92)
    assert ci95 == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)
    assert seed_interval([0.5])[1] != seed_interval([0.5])[1], "one seed has no interval: nan"


def test_a_study_is_written_whole(tmp_path: Path) -> None:
    line = Line("a", [1.0, 10.0], [0.5, 0.25], [0.1, 0.05])
    paths = write_study(tmp_path, "s", [line], xlabel="x", ylabel="y", title="t", logarithmic=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.png", "s.svg"]
    assert paths[2].read_text() == "line,x,y,ci95\na,1.0,0.5,0.1\na,10.0,0.25,0.05\n"
