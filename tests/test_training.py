"""Every learner of conf/algo meta-trains: its loss falls, it beats chance on unseen classes, and it can be resumed."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose

from fewshot import engine
from fewshot.build import build_learner
from fewshot.errors import UserError
from fewshot.runs import train

NOTHING_TO_TRAIN = {"nearest", "hausdorff", "zero", "own"}
ALGOS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml") if path.stem not in NOTHING_TO_TRAIN)

# 60 steps of 8 tasks on a network of 8 channels: seconds each.
SHORT = [
    *("data.meta_batch_size=8", "trainer.max_steps=60", "data.steps_per_epoch=60", "trainer.log_every_n_steps=6"),
    *("data.eval_q_query=5", "data.val_episodes=60", "outer.optimizer.lr=0.01", "outer.curve_episodes=1"),
    *("data.k_shot=2", "data.q_query=2"),
]
OWN = {  # what differs from a learner's YAML, which is meant for runs a thousand times as long
    "reptile": ["outer.optimizer.lr=1.0", "algo.inner_lr=0.003", "algo.eval_inner_steps=10"],
    "cavia": ["algo.inner_lr=10"],
    "imaml": ["algo.inner_steps=3", "algo.eval_inner_steps=3", "algo.cg_steps=2"],
    "mamlpp": ["algo.inner_steps=2", "algo.eval_inner_steps=2", "algo.running_momentum=0.1"],
    "baselinepp": ["algo.inner_lr=0.1", "algo.eval_inner_steps=30"],
    # What has to learn by itself what comparing is takes longer: two classes, four times the steps.
    # At 0.01 it leaves chance sooner or later by luck; at 0.003 with each of four seeds within 150 steps.
    "mann": [
        *(LONG := ["data.n_way=2", "trainer.max_steps=240", "data.steps_per_epoch=240"]),
        *("algo.slots=16", "outer.optimizer.lr=0.003"),
    ],
    "snail": [*LONG, "algo.filters=16", "algo.keys=[16,16,16]", "algo.values=[16,16,16]"],
    "cnp": LONG,
}
MARGIN = 0.10  # above chance, on 60 unseen tasks of 10 queries or more: four standard errors


@pytest.mark.parametrize("algo", ALGOS)
def test_the_loss_falls_and_unseen_classes_are_told_apart(compose_cfg: Compose, tmp_path: Path, algo: str) -> None:
    train(compose_cfg(*SHORT, f"algo={algo}", *OWN.get(algo, []), "test=false", folder=tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    accuracy = [float(row["val/acc"]) for row in rows if row["val/acc"]]
    chance = 0.5 if "data.n_way=2" in OWN.get(algo, []) else 0.2
    assert max(accuracy) > chance + MARGIN, accuracy


@pytest.mark.parametrize("algo", ALGOS)
def test_taken_up_again_it_is_the_run_that_was_never_stopped(compose_cfg: Compose, tmp_path: Path, algo: str) -> None:
    options = (f"algo={algo}", *OWN.get(algo, []), "test=false", "outer.schedule=constant", "data.steps_per_epoch=2")
    if algo == "baselinepp":
        options += ("algo.eval_inner_steps=2",)
    train(compose_cfg(*options, "trainer.max_steps=4", folder=tmp_path / "whole"))
    train(compose_cfg(*options, "trainer.max_steps=2", folder=tmp_path / "parts"))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    train(compose_cfg(*options, "trainer.max_steps=4", f"ckpt_path={last}", folder=tmp_path / "parts"))
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


ANY_WAY = ["r2d2", "metaoptnet", "protomaml", "protonet", "matchingnet", "relationnet"]


@pytest.mark.parametrize("algo", ANY_WAY)
def test_a_learner_without_a_head_of_its_own_takes_tasks_of_any_way(compose_cfg: Compose, algo: str) -> None:
    _, five = build_learner(compose_cfg(f"algo={algo}"))
    _, three = build_learner(compose_cfg(f"algo={algo}", "data.n_way=3"))
    three.load_state_dict(five.state_dict())


@pytest.mark.parametrize("algo", ANY_WAY)
def test_it_may_train_on_more_ways_and_shots_than_it_is_tested_on(compose_cfg: Compose, algo: str) -> None:
    ways = ("data.train_n_way=7", "data.train_k_shot=2", "data.q_query=1", "data.n_way=3")
    data, learner = build_learner(compose_cfg(f"algo={algo}", *ways, "data.meta_batch_size=2"))
    batch = data.task_batch("train", 0)
    assert batch.support_x.shape[:2] == (2, 14)
    assert batch.query_y.max() == 6
    assert torch.isfinite(engine.meta_backward(learner.algorithm, batch).loss).all()
    assert engine.predict(learner.algorithm, data.task_batch("val", 0)).shape[-1] == 3


@pytest.mark.parametrize("algo", ["maml", "anil", "cavia", "reptile", "mann", "snail", "cnp"])
def test_a_learned_head_is_refused_tasks_of_other_ways(compose_cfg: Compose, algo: str) -> None:
    with pytest.raises(UserError, match=r"data.train_n_way=7, but \w+ learns one head .* set data.train_n_way=5"):
        build_learner(compose_cfg(f"algo={algo}", "data.train_n_way=7"))


@pytest.mark.parametrize("algo", ["maml", "metasgd", "reptile", "transfer"])
def test_the_inner_optimizer_is_a_choice(compose_cfg: Compose, algo: str) -> None:
    _, learner = build_learner(compose_cfg(f"algo={algo}", "algo/inner_optimizer=adam", "algo.inner_optimizer.clip=3"))
    assert type(learner.algorithm.inner_optimizer).__name__ == "Adam"
    assert learner.algorithm.inner_optimizer.clip == 3
