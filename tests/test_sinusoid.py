"""Few-shot regression: the waves are the paper's, and every part of a run speaks of squared errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose

from fewshot import engine
from fewshot.build import build, build_learner
from fewshot.data.sinusoid import SinusoidData
from fewshot.errors import UserError
from fewshot.models.mlp import MLP
from fewshot.runs import evaluate, train

QUICK = [
    *("data=sinusoid", "data.steps_per_epoch=100", "data.val_episodes=40", "episodes=64", "algo.task_chunk=null"),
    *("trainer.accelerator=cpu", "trainer.max_steps=200", "trainer.log_every_n_steps=50", "algo.inner_lr=0.01"),
    *("model.init_std=null", "outer.optimizer.lr=0.01"),
]


def sinusoids(compose_cfg: Compose, *overrides: str) -> SinusoidData:
    return build(compose_cfg("data=sinusoid", *overrides, small=False).data)


def test_the_waves_are_those_of_the_paper(compose_cfg: Compose) -> None:
    """E[A] = 2.55 and E[A²] = 8.503; the phase is within half a turn, x within ±5; nothing is noisy."""
    data = sinusoids(compose_cfg, "data.meta_batch_size=4000")
    amplitude, phase = data._waves(np.random.default_rng(0), 40_000)
    assert amplitude.mean() == pytest.approx(2.55, abs=0.03)
    assert (amplitude**2).mean() == pytest.approx(8.5033, abs=0.15)
    assert 0.1 <= amplitude.min() < 0.11
    assert 4.99 < amplitude.max() <= 5
    assert 0 <= phase.min() < 0.01
    assert math.pi - 0.01 < phase.max() <= math.pi
    batch = data.task_batch("train", 0)
    assert [tuple(tensor.shape) for tensor in batch] == [(4000, 10, 1)] * 4
    assert 4.99 < batch.support_x.abs().max() <= 5
    # A wave has two unknowns: fitted to its support points, it must go through the queries.
    design = torch.cat([batch.support_x.sin(), batch.support_x.cos()], -1).double()
    weights = torch.linalg.lstsq(design, batch.support_y.double()).solution
    predicted = torch.cat([batch.query_x.sin(), batch.query_x.cos()], -1).double() @ weights
    torch.testing.assert_close(predicted, batch.query_y.double(), atol=1e-2, rtol=0)
    assert (weights[:, 0] >= -1e-3).logical_or(weights[:, 1] <= 1e-3).all(), "A sin(x − φ) with φ in [0, π]"


def test_tasks_depend_on_seed_split_and_step_alone(compose_cfg: Compose) -> None:
    data, again = sinusoids(compose_cfg), sinusoids(compose_cfg)
    assert torch.equal(data.draw("train", 7).query_y, again.draw("train", 7).query_y)
    assert not torch.equal(data.draw("train", 7).query_y, data.draw("train", 8).query_y)
    assert data.episodes_sha256("test") == sinusoids(compose_cfg, "seed=5").episodes_sha256("test")
    assert data.episodes_sha256("test") != sinusoids(compose_cfg, "data.eval_seed=5").episodes_sha256("test")
    assert data.episodes_sha256("val") != data.episodes_sha256("test")
    assert len(data.draw("test", 31).support_y) == 1000 - 31 * 32


def test_the_floor_without_learning_is_half_the_mean_square(compose_cfg: Compose, capsys) -> None:
    found = evaluate(compose_cfg("algo=zero", "data=sinusoid", "episodes=4000", config="evaluate", small=False))
    assert found["mean"] == pytest.approx(4.2517, abs=2 * found["ci95"])
    assert found["metric"] == "mean squared error"
    assert "10-point regression mean squared error 4." in capsys.readouterr().out


@pytest.mark.parametrize("algo", ["maml", "fomaml", "metasgd", "reptile", "imaml", "r2d2"])
def test_it_learns_waves(compose_cfg: Compose, tmp_path: Path, algo: str) -> None:
    """200 steps are enough to do better than any answer that ignores the task's points: 3.006."""
    overrides = [f"algo={algo}", *QUICK]
    if algo == "r2d2":
        overrides.remove("algo.inner_lr=0.01")
    if algo == "imaml":
        # Its derivative is that of the minimum: with 4 of these steps, far from it, five seeds of six diverged.
        overrides += ["algo.inner_lr=0.003", "algo.inner_steps=64", "algo.eval_inner_steps=64"]
    if algo == "reptile":
        overrides += ["algo.inner_lr=0.01", "outer.optimizer.lr=1.0", "algo.eval_inner_batch=null"]
    train(compose_cfg(*overrides, small=False, folder=tmp_path))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["mean"] < 3.006, record["mean"]
    assert record["n_way"] is None
    assert record["k_shot"] == 10
    assert record["normalization"] == "inductive"
    assert (tmp_path / "plots" / "fit.png").stat().st_size > 1000
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "val/mse" in header
    assert "acc" not in header


def test_it_is_evaluated_with_other_numbers_of_points(compose_cfg: Compose, tmp_path: Path) -> None:
    train(
        compose_cfg(
            *QUICK,
            "trainer.max_steps=3",
            "trainer.log_every_n_steps=1",
            "test=false",
            small=False,
            folder=tmp_path / "run",
        )
    )
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = evaluate(compose_cfg(f"ckpt_path={best}", *QUICK, "data.k_shot=5", config="evaluate", small=False))
    assert found["k_shot"] == 5
    assert len(found["after_each_inner_step"]["mean"]) == 4


def test_a_picture_shows_the_support_of_the_first_test_task(compose_cfg: Compose) -> None:
    data = sinusoids(compose_cfg)
    picture, task = data.example(), data.task_batch("test", 0)
    assert torch.equal(picture.support_x, task.support_x)
    assert torch.equal(picture.support_y, task.support_y)
    assert (picture.query_x[0, 1:] > picture.query_x[0, :-1]).all()


def test_what_does_not_fit_is_refused(compose_cfg: Compose) -> None:
    for overrides, message in {
        ("algo=nearest",): "Nearest is for classification: it cannot lower the mean squared error",
        ("algo=protomaml",): "ProtoMAML is for classification",
        ("model=conv4",): r"model=conv4 takes images \(C, H, W\), not inputs of shape \(1,\)",
        ("optimized_metric=val/acc",): "optimized_metric=val/acc is not logged here: one of val/loss, val/mse",
        ("callbacks.best.mode=max",): "callbacks.best.mode=max, but of val/mse the best is the minimum",
        ("data.amplitude=[2,1]",): r"data.amplitude=\[2,1\] must be a low and a higher value",
        ("data.k_shot=0",): "data.k_shot=0 must be at least 1",
    }.items():
        with pytest.raises(UserError, match=message):
            build_learner(compose_cfg("data=sinusoid", *overrides, small=False))


def test_the_network_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model = MLP((1,), 1, init_std=0.01)
    assert sum(p.numel() for p in model.parameters()) == 1_761
    weights = model.body[3].weight
    assert weights.std().item() == pytest.approx(0.0088, abs=0.001), "0.88 is the deviation of a normal cut off at 2"
    assert weights.abs().max() <= 0.02
    assert not model.head.bias.any()
    assert MLP((1, 28, 28), 5)(torch.rand(3, 1, 28, 28)).shape == (3, 5)
    with pytest.raises(UserError, match="model.init_std=0 must be positive"):
        MLP((1,), 1, init_std=0)


def test_predictions_in_every_state_are_those_that_are_judged(compose_cfg: Compose) -> None:
    data, learner = build_learner(compose_cfg(*QUICK, small=False))
    batch = data.task_batch("test", 0)
    states = engine.predict(learner.algorithm, batch, every_state=True)
    judged = engine.evaluate(learner.algorithm, batch, every_state=True)[1]
    errors = (states - batch.query_y).square().mean((-2, -1))  # (S, T)
    torch.testing.assert_close(errors.T, judged)


@pytest.mark.parametrize("override", ["data.amplitude=3", "data.amplitude=[1,2,3]", "data.x=[a,b]", "model.hidden=40"])
def test_lists_are_checked_like_all_values(compose_cfg: Compose, override: str) -> None:
    with pytest.raises(UserError, match=f"{override.split('=')[0]}=.* must be a list of (2 float|int)"):
        build_learner(compose_cfg("data=sinusoid", override, small=False))
