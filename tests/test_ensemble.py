"""Averages of answers: of several learners, and of several distorted copies of the images."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL, Compose, random_tasks

from fewshot import engine
from fewshot.algorithms.base import last
from fewshot.algorithms.ensemble import Ensemble, Views
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.protonet import ProtoNet
from fewshot.augment import Affine, Identity, warp
from fewshot.errors import UserError
from fewshot.models.conv4 import Conv4
from fewshot.runs import evaluate, train
from fewshot.tasks import Classification

KIND = Classification(3)
DISTORT = Affine(degrees=10, scale=0.2, shear=0.1, shift=0.1, probability=1)


def learner(seed: int) -> ProtoNet:
    torch.manual_seed(seed)
    return ProtoNet(Conv4((1, 16, 16), 3, hidden=8), KIND).double()


def test_the_answer_is_the_mean_of_the_members_probabilities() -> None:
    members, batch = [learner(0), learner(1)], random_tasks()
    alone = [engine.predict(member, batch).softmax(-1) for member in members]
    together = engine.predict(Ensemble(members), batch)
    torch.testing.assert_close(together.exp(), (alone[0] + alone[1]) / 2)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_a_view_distorts_all_support_images_alike_and_all_queries_alike() -> None:
    member, batch, views = learner(0), random_tasks(tasks=1), Views(count=3, augmentation=DISTORT, seed=4)
    support_x, support_y, query_x, _ = (tensor[0] for tensor in batch)
    params = dict(member.named_parameters())
    expected = []
    for maps in views.maps:
        seen = [
            x if maps is None else warp(x, maps[part].expand(len(x), 2, 3))
            for part, x in enumerate((support_x, query_x))
        ]
        expected.append(member.predict(last(member.fit(params, seen[0], support_y)), seen[1]).softmax(-1))
    assert views.maps[0] is None
    assert (expected[1] - expected[2]).abs().max() > 1e-4
    found = engine.predict(Ensemble([member], views), batch)[0]
    torch.testing.assert_close(found.exp(), torch.stack(expected).mean(0))


def test_the_views_are_the_same_in_every_task_and_run() -> None:
    first, again, other = (Views(count=2, augmentation=DISTORT, seed=seed).maps[1] for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(UserError, match="Nearest gives no probabilities"):
        Ensemble([learner(0), Nearest(torch.nn.Identity(), KIND)])
    with pytest.raises(UserError, match="views.count=0 must be at least 1"):
        Views(count=0, augmentation=DISTORT)
    with pytest.raises(UserError, match="views.count=2, but views.augmentation distorts nothing"):
        Views(count=2, augmentation=Identity())


def test_evaluate_averages_checkpoints_and_views(compose_cfg: Compose, tmp_path: Path) -> None:
    best = []
    for seed in (1, 2):
        train(compose_cfg("algo=protonet", f"seed={seed}", "test=false", folder=tmp_path / str(seed)))
        best.append(tmp_path / str(seed) / "checkpoints" / "best.ckpt")

    def score(*overrides: str) -> dict:
        return evaluate(compose_cfg(*SMALL[:2], f"ckpt_path={best[0]}", *overrides, config="evaluate"))

    alone, itself, both = score(), score(f"ensemble=[{best[0]}]"), score(f"ensemble=[{best[1]}]")
    assert itself["mean"] == pytest.approx(alone["mean"], abs=1e-3)  # ties may be broken otherwise
    assert itself["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert abs(both["loss"] - alone["loss"]) > 1e-5
    assert both["algo"] == "protonet"  # as in a sweep over checkpoints, of which Hydra does not know it
    assert both["ensemble"] == [str(best[1])]
    viewed = score("views=affine", "views.count=2")
    assert viewed["views"] == 2
    assert viewed["loss"] != alone["loss"]
    with pytest.raises(UserError, match=r"ensemble=x must be a list: ensemble=\[x\]"):
        score("ensemble=x")
    with pytest.raises(UserError, match="protocol=maml tells scores after several inner steps"):
        evaluate(
            compose_cfg(
                *SMALL[:2], f"ckpt_path={best[0]}", "views=affine", "protocol=maml", config="evaluate", small=False
            )
        )
    with pytest.raises(UserError, match="are for what was trained: ckpt_path="):
        evaluate(compose_cfg("algo=nearest", "views=affine", config="evaluate"))
    train(compose_cfg("algo=protonet", "data.image_size=20", "test=false", folder=tmp_path / "20"))
    with pytest.raises(UserError, match=r"sees images of \(1, 20, 20\), ckpt_path=.* of \(1, 28, 28\): they must"):
        score(f"ensemble=[{tmp_path / '20' / 'checkpoints' / 'best.ckpt'}]")
