"""Protocols by name, what batch normalisation goes by, and the test split that nothing is chosen by."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Compose, one_task, random_tasks, small_maml

from fewshot import engine
from fewshot.algorithms.base import last
from fewshot.build import build
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.outer import MetaLearner
from fewshot.protocols import PROTOCOLS, follow, name_of
from fewshot.runs import evaluate, train
from fewshot.transduction import normalized, ways_to_test

OWN = [override for override in SMALL if not override.startswith(("episodes", "outer.curve"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of a few steps, by algorithm; filled as they are asked for."""
    return {"folder": str(tmp_path_factory.mktemp("trained"))}


def checkpoint(compose_cfg: Compose, trained: dict[str, str], algo: str, *overrides: str) -> str:
    if algo not in trained:
        folder = Path(trained["folder"]) / algo
        train(compose_cfg(*OWN, f"algo={algo}", "episodes=8", *overrides, small=False, folder=folder))
        trained[algo] = f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    return trained[algo]


def score(compose_cfg: Compose, *overrides: str) -> dict:
    return evaluate(compose_cfg(*overrides, config="evaluate", small=False))


def test_mamls_protocol_is_told_after_3_and_10_steps(compose_cfg: Compose, trained, capsys) -> None:
    best = checkpoint(compose_cfg, trained, "maml")
    found = score(compose_cfg, *OWN, best, "protocol=maml", "data.k_shot=2", "data.train_k_shot=2")
    protocol = found["protocol"]
    assert (protocol["name"], found["episodes"], found["q_query"], found["inner_steps"]) == ("maml", 600, 2, 10)
    curve = found["after_each_inner_step"]
    assert (curve["episodes"], len(curve["mean"])) == (600, 11)
    assert curve["mean"][10] == pytest.approx(found["mean"])
    printed = capsys.readouterr().out
    assert f"after 3 inner steps: {curve['mean'][3]:.3f}" in printed
    assert f"after 10 inner steps: {curve['mean'][10]:.3f}" in printed
    assert f"protocol maml: 600 tasks, 2 queries a class, sha256 {protocol['sha256'][:12]}" in printed


def test_what_a_protocol_fixes_cannot_be_typed_otherwise(compose_cfg: Compose, trained) -> None:
    best = checkpoint(compose_cfg, trained, "maml")
    with pytest.raises(UserError, match="protocol=hw15 is episodes=640, and you type episodes=10"):
        score(compose_cfg, *OWN, best, "protocol=hw15", "episodes=10")
    with pytest.raises(UserError, match="protocol=maml is algo.eval_inner_steps=10, and you type algo.eval_inner_st"):
        score(compose_cfg, *OWN, best, "protocol=maml", "algo.eval_inner_steps=5")
    with pytest.raises(UserError, match="protocol=maml is data.within_alphabet=False, and you type data.within_al"):
        score(compose_cfg, *OWN, best, "protocol=maml", "data.within_alphabet=true")
    with pytest.raises(UserError, match="tasks_dir=… is answered as the learner was trained: leave protocol"):
        score(compose_cfg, *OWN, best, "protocol=maml", "tasks_dir=TASKS")
    with pytest.raises(UserError, match="protocol=mine is not one of standard, maml, protonet, reptile, hw15, omni"):
        score(compose_cfg, *OWN, best, "protocol=mine")
    with pytest.raises(UserError, match="normalization=all is not one of trained, transductive, inductive, both"):
        score(compose_cfg, *OWN, best, "normalization=all")
    with pytest.raises(UserError, match="is about classes"):
        score(compose_cfg, "data=sinusoid", "protocol=maml", "algo=zero")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_known_by_what_it_fixes(compose_cfg: Compose, name: str) -> None:
    cfg = follow(compose_cfg(f"protocol={name}", config="evaluate", small=False), [])
    cfg.protocol = None
    assert name_of(cfg) == name
    cfg.episodes = 999
    assert name_of(cfg) is None


def test_the_training_run_of_the_checkpoint_does_not_decide(compose_cfg: Compose, tmp_path: Path) -> None:
    """A run that was configured otherwise is tested as the protocol says."""
    train(compose_cfg(*OWN, "algo=protonet", "data.eval_q_query=3", "episodes=8", small=False, folder=tmp_path))
    found = score(compose_cfg, *OWN, f"ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}", "protocol=hw15")
    assert (found["q_query"], found["episodes"], found["protocol"]["name"]) == (1, 640, "hw15")


def test_the_hash_is_that_of_what_was_fixed(compose_cfg: Compose, trained) -> None:
    best = checkpoint(compose_cfg, trained, "maml")
    first, again, other = (
        score(compose_cfg, *OWN, best, f"episodes={n}", *more)["protocol"]
        for n, more in ((8, []), (8, ["data.meta_batch_size=2"]), (8, ["data.eval_seed=1"]))
    )
    assert first["sha256"] == again["sha256"] != other["sha256"]
    assert first["name"] is None


def test_both_normalisations_of_a_learner_that_goes_by_the_batch(compose_cfg: Compose, trained) -> None:
    best = checkpoint(compose_cfg, trained, "maml")
    both, one = (score(compose_cfg, *OWN, best, "episodes=24", f"normalization={n}") for n in ("both", "inductive"))
    plain = score(compose_cfg, *OWN, best, "episodes=24")
    assert both["normalization"] == plain["normalization"] == "transductive"
    assert both["mean"] == both["by_normalization"]["transductive"]["mean"] == plain["mean"]
    assert one["normalization"] == "inductive"
    assert one["mean"] == both["by_normalization"]["inductive"]["mean"] != plain["mean"]
    assert one["protocol"]["sha256"] != plain["protocol"]["sha256"]


def test_both_normalisations_of_a_learner_with_running_statistics(compose_cfg: Compose, trained) -> None:
    best = checkpoint(compose_cfg, trained, "protonet")
    both = score(compose_cfg, *OWN, "algo=protonet", best, "episodes=24", "normalization=both")
    by_batch = score(compose_cfg, *OWN, "algo=protonet", best, "episodes=24", "algo.running_momentum=null")
    assert both["normalization"] == "inductive"
    assert both["by_normalization"]["transductive"]["mean"] == by_batch["mean"] != both["mean"]


def test_what_has_no_batch_normalisation_is_inductive(compose_cfg: Compose) -> None:
    learner = build(compose_cfg("model.norm=group").model, input_shape=(1, 28, 28), n_out=5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in learner.modules())
    found = score(compose_cfg, "data=strokes", *OWN[1:], "algo=nearest", "episodes=8", "normalization=both")
    assert "by_normalization" not in found
    with pytest.raises(UserError, match="normalization=transductive, but this Nearest has no batch normalisation"):
        score(compose_cfg, "data=strokes", *OWN[1:], "algo=nearest", "episodes=8", "normalization=transductive")


def test_one_by_one_no_answer_knows_of_another() -> None:
    """Also: it is the last row of the support set with the query, and a batch of queries says something else."""
    algorithm = small_maml().double()
    support_x, support_y, query_x, _ = one_task(random_tasks())
    params = {name: value.detach() for name, value in algorithm.named_parameters()}
    fitted = last(algorithm.fit(params, support_x, support_y))
    answers = engine.predict_one_by_one(algorithm, fitted, support_x, query_x)
    alone = engine.predict_one_by_one(algorithm, fitted, support_x, query_x[2:3])
    torch.testing.assert_close(answers[2:3], alone, rtol=1e-9, atol=1e-9)
    by_hand = algorithm.predict(fitted, torch.cat([support_x, query_x[2:3]]))[-1:]
    torch.testing.assert_close(alone, by_hand, rtol=1e-9, atol=1e-9)
    assert (answers - algorithm.predict(fitted, query_x)).abs().max() > 1e-3


def test_nothing_is_left_of_a_way_of_testing() -> None:
    learner = MetaLearner(small_maml(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert ways_to_test(learner.algorithm, "both") == ["inductive", "transductive"]
    with normalized(learner, "inductive"):
        assert learner.one_by_one
    assert not learner.one_by_one


def test_no_test_task_is_drawn_before_training_has_ended(compose_cfg: Compose, monkeypatch, tmp_path: Path) -> None:
    asked: list[str] = []
    original = TaskData.draw

    def noted(self: TaskData, split: str, step: int):
        asked.append(split)
        return original(self, split, step)

    monkeypatch.setattr(TaskData, "draw", noted)
    train(compose_cfg(folder=tmp_path))
    first = asked.index("test")
    assert {"train", "val"} == set(asked[:first])
    assert "train" not in asked[first:]

    def peeping(self: MetaLearner) -> None:
        self.trainer.datamodule.task_batch("test", 0)

    monkeypatch.setattr(MetaLearner, "on_validation_epoch_end", peeping)
    with pytest.raises(RuntimeError, match="before training has ended"):
        train(compose_cfg(folder=tmp_path / "peeping"))


def gone(*arguments: object, **options: object) -> None:
    raise AssertionError("the data set of the training was read")


def test_across_data_sets_is_reported_as_such(
    compose_cfg: Compose, trained, fake_omniglot: Path, monkeypatch, capsys
) -> None:
    """Also where the data set of the training is not at hand."""
    best = checkpoint(compose_cfg, trained, "maml")
    there = ["data=omniglot", f"data.root={fake_omniglot}", "data.n_way=3", "data.train_n_way=3"]
    at_three = checkpoint(compose_cfg, trained, "fomaml", "data.n_way=3")
    found = score(compose_cfg, *OWN[3:], at_three, *there, "episodes=8")
    assert (found["trained_on"], found["data"]) == ("strokes", "omniglot")
    assert "across data sets: trained on strokes, tested on omniglot" in capsys.readouterr().out
    within = score(compose_cfg, *OWN, best, "episodes=8")
    assert within["trained_on"] == within["data"] == "strokes"
    assert "across data sets" not in capsys.readouterr().out
    assert json.loads((Path(trained["folder"]) / "maml" / "results.json").read_text())["trained_on"] == "strokes"
    monkeypatch.setattr("fewshot.data.strokes.cached", gone)
    assert score(compose_cfg, *OWN[3:], at_three, *there, "episodes=8")["mean"] == found["mean"]


def test_what_is_tested_alone_must_be_possible(compose_cfg: Compose, trained) -> None:
    """Ways that no training alphabet has, and that the validation classes cannot fill, are nothing to a test."""
    best = checkpoint(compose_cfg, trained, "protonet")
    more = ["algo=protonet", "data.within_alphabet=true", "data.train_n_way=11", "data.n_way=10", "episodes=4"]
    assert score(compose_cfg, *OWN, best, *more)["within_alphabet"]
    with pytest.raises(UserError, match="data.train_n_way=11, but the largest group"):
        train(compose_cfg(*OWN, *more, small=False))


def test_a_learner_that_saw_the_test_classes_is_refused(
    compose_cfg: Compose, image_folder: Path, tmp_path: Path
) -> None:
    """By another seed, random classes are divided otherwise: alone, and in an ensemble."""
    own = ["data=folder", f"data.root={image_folder}", "data.image_size=16", "data.source.channels=3", "algo=protonet"]
    own += ["data.n_way=3", "data.eval_q_query=5", "data.steps_per_epoch=2", "trainer.max_steps=2", "model.hidden=4"]
    own += ["trainer.accelerator=cpu", "data.val_episodes=2", "episodes=2"]
    best = []
    for seed in (1, 2):
        train(compose_cfg(*own, f"seed={seed}", "test=false", small=False, folder=tmp_path / str(seed)))
        best.append(tmp_path / str(seed) / "checkpoints" / "best.ckpt")
    same = [*own[:5], *own[5:6], own[6], *own[9:], f"ckpt_path={best[0]}", "seed=1"]
    assert score(compose_cfg, *same)["episodes"] == 2
    for wrong in ("seed=2", f"ensemble=[{best[1]}]"):
        with pytest.raises(
            UserError, match=r"was trained, or chosen, on \d of the \d test classes, class.* among them"
        ):
            score(compose_cfg, *same, wrong)
