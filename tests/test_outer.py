"""The outer loop: one step is one Adam step on the mean meta-gradient, whatever Lightning does around it."""

import copy
import math
from typing import Any

import pytest
import torch
from conftest import SMALL, Compose
from lightning import Trainer

from fewshot import engine
from fewshot.build import build, build_learner
from fewshot.data.datamodule import EpisodeData
from fewshot.errors import UserError
from fewshot.outer import MetaLearner
from fewshot.tasks import TaskBatch


def make(compose_cfg: Compose, *overrides: str) -> tuple[EpisodeData, MetaLearner]:
    return build_learner(compose_cfg("callbacks={}", *overrides))


def trainer(**options) -> Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False)
    return Trainer(accelerator="cpu", reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, **quiet, **options)


@pytest.mark.parametrize("algo", ["maml", "fomaml"])
def test_training_is_adam_on_the_mean_meta_gradient(compose_cfg: Compose, algo: str) -> None:
    data, learner = make(compose_cfg, f"algo={algo}")
    twin = copy.deepcopy(learner.algorithm)
    trainer(max_steps=3).fit(learner, datamodule=data)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.001)
    for step in range(3):
        optimizer.zero_grad()
        engine.meta_backward(twin, data.task_batch("train", step))
        optimizer.step()
    for ours, theirs in zip(learner.algorithm.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_max_steps_counts_meta_updates_and_validation_ends_every_epoch(compose_cfg: Compose) -> None:
    data, learner = make(compose_cfg, "data.steps_per_epoch=3")
    run = trainer(max_steps=7)
    run.fit(learner, datamodule=data)
    assert run.global_step == 7
    assert run.callback_metrics["step"] == 7, "the short last epoch is validated too"
    assert len(learner.evaluated.scores) == 20


def test_cosine_schedule_is_stepped_by_us(compose_cfg: Compose) -> None:
    data, learner = make(compose_cfg, "outer.schedule=cosine", "outer.optimizer.lr=0.01")
    seen = []
    learner.on_train_batch_start = lambda *_: seen.append(learner.optimizers().param_groups[0]["lr"])
    trainer(max_steps=6).fit(learner, datamodule=data)
    assert seen == pytest.approx([0.01 * (1 + math.cos(math.pi * s / 6)) / 2 for s in range(6)])


def test_gradient_is_clipped_to_the_norm_asked_for(compose_cfg: Compose) -> None:
    norms, logged = [], []
    for clip in ("0.01", "null"):
        data, learner = make(compose_cfg, f"outer.grad_clip={clip}")
        learner.on_train_batch_end = lambda *_, module=learner: norms.append(
            torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()
        )
        run = trainer(max_steps=1, log_every_n_steps=1)
        run.fit(learner, datamodule=data)
        logged.append(run.callback_metrics["train/grad_norm"].item())
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert norms[1] > 0.02
    assert logged == pytest.approx([norms[1], norms[1]], rel=1e-5), "logged before clipping"


def test_evaluation_works_in_every_mode_of_lightning_and_changes_nothing(compose_cfg: Compose) -> None:
    data, learner = make(compose_cfg)
    before = copy.deepcopy(learner.state_dict())
    by_hand = [engine.evaluate(learner.algorithm, data.task_batch("test", block))[1, :, 0] for block in range(2)]
    for inference_mode in (True, False):
        run = trainer(inference_mode=inference_mode)
        run.test(learner, datamodule=data, verbose=False)
        assert torch.equal(learner.evaluated.scores, torch.cat(by_hand).double())
        run.validate(learner, datamodule=data, verbose=False)
        assert len(learner.evaluated.scores) == 20
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_before_adaptation_accuracy_is_chance(compose_cfg: Compose) -> None:
    """Labels leak if an unadapted learner does better than 1/N, trained or not."""
    data, learner = make(compose_cfg, "outer.curve_episodes=40")
    trainer(max_steps=12).fit(learner, datamodule=data)
    trainer().test(learner, datamodule=data, verbose=False)
    unadapted = learner.evaluated.curve[1, :, 0]
    assert len(unadapted) == 40
    assert abs(unadapted.mean() - 0.2) < 3.5 * unadapted.std() / math.sqrt(40)
    assert learner.evaluated.curve[1, :, -1].mean() > 0.25
    assert torch.equal(learner.evaluated.curve[1, :, -1], learner.evaluated.scores)


def test_numbers_that_are_not_finite_stop_the_run_at_the_third_step_and_never_reach_the_weights(
    compose_cfg: Compose,
) -> None:
    data, learner = make(compose_cfg, "algo.inner_lr=1e30")
    with pytest.raises(UserError, match=r"outer step 2: .* not finite for \d of 4 tasks \(number .*algo.inner_lr"):
        trainer(max_steps=5).fit(learner, datamodule=data)
    assert all(torch.isfinite(p).all() for p in learner.parameters())


def test_a_step_with_bad_tasks_counts_as_a_step(compose_cfg: Compose, monkeypatch) -> None:
    """One of four tasks is spoiled at step 1: the run goes on, of as many steps, and says so."""
    data, learner = make(compose_cfg)
    gather = data.gather

    def spoiled(drawn: Any) -> TaskBatch:
        batch = gather(drawn)
        if learner.trainer.training and learner.global_step == 1:
            batch.query_x[2] = torch.nan
        return batch

    monkeypatch.setattr(data, "gather", spoiled)
    runner = trainer(max_steps=4, log_every_n_steps=1)
    runner.fit(learner, datamodule=data)
    assert runner.global_step == 4
    assert (learner.bad_tasks.total, learner.bad_tasks.in_a_row) == (1, 0)
    assert runner.callback_metrics["train/left_out"] == 1
    saved: dict[str, Any] = {}
    learner.on_save_checkpoint(saved)
    assert saved["bad_tasks"] == [1, 0]


def test_refusals(compose_cfg: Compose) -> None:
    for override, message in {
        "outer.schedule=step": "outer.schedule=step is not one of constant, linear, cosine",
        "outer.curve_episodes=0": "outer.curve_episodes=0 must be at least 1",
        "outer.grad_clip=-1": "outer.grad_clip=-1 must be positive",
        "algo.inner_steps=0": "algo.inner_steps=0 must be at least 1",
        "algo.inner_lr=-0.1": "algo.inner_lr=-0.1 must be positive",
    }.items():
        with pytest.raises(UserError, match=message):
            make(compose_cfg, override)


@pytest.mark.parametrize(
    "override",
    [
        "algo.inner_steps=two",
        "algo.inner_lr=[1]",
        "algo.create_graph=maybe",
        "data.n_way=",
        "data.k_shot=1.5",
        "seed=x",
        "data.source.alphabets=many",
        "data.num_classes=[3]",
    ],
)
def test_values_of_the_wrong_type_are_named(compose_cfg: Compose, override: str) -> None:
    with pytest.raises(UserError, match=f"{override.split('=')[0]}=.* must be "):
        make(compose_cfg, override)


def test_what_cannot_be_built_is_named(compose_cfg: Compose) -> None:
    for overrides, message in {
        ("algo=own",): "algo._target_=FILE.NAME: say what to build",
        ("algo=own", "algo._target_=nowhere.Mine"): r"algo._target_=nowhere.Mine cannot be imported \(.*nowhere",
        ("algo=own", "algo._target_=torch.nn.Linear"): "torch.nn.Linear is no subclass of fewshot.algorithms.base.Alg",
        ("model=own", "model._target_=fewshot.models.conv4.Conv5"): "Conv5 cannot be imported",
    }.items():
        small = [override for override in SMALL if not ("model=own" in overrides and override.startswith("model."))]
        with pytest.raises(UserError, match=message):
            build_learner(compose_cfg("callbacks={}", *small, *overrides, small=False))


def test_build_says_what_our_constructors_say(compose_cfg: Compose) -> None:
    with pytest.raises(UserError, match="bogus"):
        build(compose_cfg("aug=rotate", "+aug.bogus=1").aug)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=protonet", "outer.recompute=true"], "outer.recompute=true has no effect: ProtoNet keeps nothing"),
        (["algo=fomaml", "outer.recompute=true"], "outer.recompute=true has no effect: MAML keeps nothing"),
        (["outer.compile=true", "outer.recompute=true"], "outer.recompute=true and outer.compile=true: one of them"),
        (["algo=mamlpp", "outer.compile=true"], "outer.compile=true, but MAMLPlusPlus computes something else from"),
        (["outer.compile=true", "algo.task_chunk=auto"], "outer.compile=true compiles for chunks of one size"),
        (["algo.task_chunk=0"], "algo.task_chunk=0 must be at least 1, auto, or null"),
    ],
)
def test_engines_that_cannot_be(compose_cfg: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(compose_cfg, *overrides)


def test_on_a_cpu_compiling_is_refused_before_training(compose_cfg: Compose) -> None:
    data, learner = make(compose_cfg, "outer.compile=true")
    with pytest.raises(UserError, match="outer.compile=true is for a GPU: on a CPU the compiled step is hardly faster"):
        trainer(max_steps=3).fit(learner, datamodule=data)
    trainer().validate(learner, datamodule=data, verbose=False)  # which compiles nothing


def test_recomputed_training_is_the_same_training(compose_cfg: Compose) -> None:
    weights = []
    for recompute in ("true", "false"):
        data, learner = make(compose_cfg, f"outer.recompute={recompute}", "algo.inner_steps=3")
        assert learner.algorithm.recompute == (recompute == "true")
        learner.double()
        batches = [data.task_batch("train", step) for step in range(2)]
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for batch in batches:
            optimizer.zero_grad()
            engine.meta_backward(
                learner.algorithm, TaskBatch(*(t.double() if t.is_floating_point() else t for t in batch))
            )
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in learner.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-10)
