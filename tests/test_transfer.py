"""Transfer learning: a plain classifier of fixed classes in training, fine-tuning elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Compose, one_task, random_tasks

from fewshot import engine
from fewshot.algorithms.transfer import Transfer
from fewshot.build import build, build_learner
from fewshot.data.episodes import TaskShape, draw_tasks, generator
from fewshot.errors import UserError
from fewshot.models.conv4 import Conv4
from fewshot.runs import train
from fewshot.tasks import Classification


def transfer() -> Transfer:
    torch.manual_seed(0)
    model = Conv4((1, 16, 16), 3, hidden=8)
    return Transfer(model, Classification(3), eval_inner_steps=3, test_inner_steps=5, inner_lr=0.4).double()


def test_training_is_plain_classification_of_all_images() -> None:
    algorithm, task = transfer(), random_tasks(1)
    losses, *_ = engine.meta_backward(algorithm, task)
    got = {name: p.grad.clone() for name, p in algorithm.named_parameters()}
    algorithm.zero_grad()
    one = one_task(task)
    logits = algorithm.model(torch.cat([one.support_x, one.query_x]))
    loss = F.cross_entropy(logits, torch.cat([one.support_y, one.query_y]))
    loss.backward()
    torch.testing.assert_close(losses[0], loss.detach())
    for name, p in algorithm.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-6, atol=1e-10)


def test_steps_differ_by_stage() -> None:
    algorithm, batch = transfer(), random_tasks(2)
    for stage, states in (("train", 1), ("val", 4), ("test", 6)):
        assert engine.evaluate(algorithm, batch, stage=stage, every_state=True).shape[-1] == states


def test_a_fixed_label_belongs_to_one_class_in_every_task() -> None:
    classes = [7, 3, 11, 5]
    index = draw_tasks(generator(0, "train", 0), 200, classes, [20] * 12, TaskShape(3, 1, 2), fixed_labels=True)
    for images, labels in ((index.support_i, index.support_y), (index.query_i, index.query_y)):
        assert torch.equal(torch.tensor(classes)[labels], images // 20)
    assert index.support_y.unique().tolist() == [0, 1, 2, 3]


def test_validation_and_test_have_no_fixed_labels(compose_cfg: Compose) -> None:
    data = build(compose_cfg("algo=transfer").data)
    assert data.fixed_labels
    data.setup()
    index = data.draw("test", 0).tasks
    seen = {(int(i) // 20, int(y)) for i, y in zip(index.support_i.flatten(), index.support_y.flatten(), strict=True)}
    assert len(seen) > len({image for image, _ in seen}), "one class has several labels over the tasks"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=transfer", "data.fixed_labels=false"], "data.fixed_labels=false, but Transfer needs true"),
        (["algo=maml", "data.fixed_labels=true"], "data.fixed_labels=true, but MAML needs false"),
    ],
)
def test_labels_that_do_not_fit_the_algorithm_are_refused(
    compose_cfg: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_learner(compose_cfg(*overrides))


def test_it_may_train_on_more_classes_than_a_task_has(compose_cfg: Compose) -> None:
    data, learner = build_learner(compose_cfg("algo=transfer", "data.num_classes=9"))
    assert data.kind.outputs("train") == 9
    assert learner.algorithm(data.task_batch("train", 0).query_x[0]).shape == (5, 9)
    assert engine.predict(learner.algorithm, data.task_batch("test", 0)).shape[-1] == 9


def test_it_learns_its_classes(compose_cfg: Compose, tmp_path) -> None:
    train(
        compose_cfg("algo=transfer", "test=false", "trainer.max_steps=20", "data.steps_per_epoch=20", folder=tmp_path)
    )
    header, *rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = [float(row[header.index("train/loss")]) for row in rows if row[header.index("train/loss")]]
    assert losses[-1] < 0.7 * losses[0]
