"""Episodes: fair, disjoint, the same for the same (seed, split, step), whoever draws them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose

from fewshot.build import build, build_learner
from fewshot.data.datamodule import EpisodeData
from fewshot.data.episodes import (
    TaskShape,
    _distinct,
    check_shape,
    draw_tasks,
    episodes_sha256,
    evaluation_block,
    generator,
)
from fewshot.data.strokes import load_strokes
from fewshot.errors import UserError
from fewshot.tasks import BLOCK

SHAPE = TaskShape(5, 2, 3)
CLASSES = list(range(100, 160))
EVEN = [20] * 160  # images of each class


def draw(step: int = 0, tasks: int = 64, seed: int = 1):
    return draw_tasks(generator(seed, "train", step), tasks, CLASSES, EVEN, SHAPE)


def make_data(compose_cfg: Compose, *overrides: str) -> EpisodeData:
    data = build(compose_cfg(*overrides).data)
    data.setup()
    return data


def test_support_and_queries_never_share_an_image() -> None:
    for step in range(20):
        index = draw(step)
        for support, queries in zip(index.support_i, index.query_i, strict=True):
            images = torch.cat([support, queries])
            assert len(images.unique()) == len(images) == 25


def test_every_class_has_its_shots_and_queries_and_one_label() -> None:
    index = draw()
    for s_i, s_y, q_i, q_y in zip(*index, strict=True):
        assert s_y.bincount().tolist() == [2] * 5
        assert q_y.bincount().tolist() == [3] * 5
        classes = torch.cat([s_i, q_i]) // 20
        labels = torch.cat([s_y, q_y])
        assert len({(int(c), int(y)) for c, y in zip(classes, labels, strict=True)}) == 5
        assert set(classes.tolist()) <= set(CLASSES)


def test_labels_and_places_say_nothing_about_classes() -> None:
    """Over many tasks every class has every label, and every place every label, equally often."""
    index = draw_tasks(generator(1, "train", 0), 12_000, CLASSES, EVEN, TaskShape(5, 1, 1))
    classes, labels = (index.support_i // 20 - 100).flatten(), index.support_y.flatten()
    counts = torch.zeros(60, 5).index_put_((classes, labels), torch.ones(len(labels)), accumulate=True)
    expected = counts.sum() / counts.numel()
    chi2 = ((counts - expected) ** 2 / expected).sum().item() / (counts.numel() - 1)
    assert 0.7 < chi2 < 1.3
    for y in (index.support_y, index.query_y):
        by_place = torch.stack([column.bincount(minlength=5) for column in y.T]) / len(y)
        assert (by_place - 0.2).abs().max() < 0.03


def test_distinct_is_uniform_over_ordered_choices() -> None:
    chosen = _distinct(np.random.default_rng(0), np.full(24_000, 4), 3)
    _, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 850
    assert counts.max() < 1150


def test_same_classes_come_with_other_images() -> None:
    """A class is not tied to one set of drawings (a trap of older packages)."""
    images = draw_tasks(generator(0, "train", 0), 200, [0, 1], [20, 20], TaskShape(2, 1, 1)).support_i
    assert len({tuple(sorted(row.tolist())) for row in images}) > 50


def test_seed_split_and_step_decide_alone() -> None:
    first = draw(7)
    draw(8)
    for a, b in zip(first, draw(7), strict=True):
        assert torch.equal(a, b)
    others = [draw(8), draw(7, seed=2), draw_tasks(generator(1, "val", 7), 64, CLASSES, EVEN, SHAPE)]
    assert all(not torch.equal(first.support_i, other.support_i) for other in others)


def test_draws_are_pinned() -> None:
    """Another stream on another machine or with another numpy would show here."""
    index = draw_tasks(generator(0, "train", 0), 1, range(1000), [20] * 1000, TaskShape(3, 1, 1))
    assert [t.tolist() for t in index] == PINNED


PINNED = [[[11121, 16009, 17754]], [[0, 1, 2]], [[17748, 11124, 16015]], [[2, 0, 1]]]


def test_tasks_of_even_classes_are_those_of_the_first_version(tmp_path: Path) -> None:
    """Recorded before classes could be uneven: results of then and now are over the same tasks."""
    strokes = load_strokes(str(tmp_path), 28, alphabets=3, characters=4)
    blocks = [evaluation_block(0, "test", n, range(8, 12), strokes.counts, TaskShape(3, 2, 15)) for n in range(2)]
    assert episodes_sha256(strokes.images, strokes.names, blocks)[:16] == RECORDED_SHA
    training = draw_tasks(generator(3, "train", 7), 2, range(8), strokes.counts, SHAPE, fixed_labels=True)
    assert [training.support_i.tolist(), training.query_y.tolist()] == RECORDED


RECORDED_SHA = "bedf7a908e001820"
RECORDED = [
    [[131, 111, 17, 147, 72, 140, 108, 7, 74, 129], [94, 153, 46, 53, 146, 110, 88, 119, 125, 128]],
    [[3, 5, 6, 0, 0, 0, 6, 3, 5, 7, 5, 6, 7, 3, 7], [5, 2, 2, 6, 4, 7, 6, 4, 4, 5, 7, 5, 2, 6, 7]],
]


UNEVEN = [7, 3, 20, 5, 4, 9]


def test_uneven_classes_are_drawn_from_their_own_images_alone() -> None:
    """Every image of a class, however few it has, is drawn as often as another of its class, and none twice."""
    tasks = 6000
    index = draw_tasks(generator(0, "train", 0), tasks, [1, 2, 3, 4], UNEVEN, TaskShape(3, 1, 2))
    images, labels = (torch.cat(pair, dim=1) for pair in zip(index[:2], index[2:], strict=True))
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(UNEVEN))[images]
    for i, c, y in zip(images, owner, labels, strict=True):
        assert len(i.unique()) == 9, "support and queries share no image"
        assert sorted(y.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert len(set(zip(c.tolist(), y.tolist(), strict=True))) == len(c.unique()) == 3, "a label is a class"
    drawn = images.flatten().bincount(minlength=sum(UNEVEN)).split(UNEVEN)
    assert [int(part.sum()) for part in (drawn[0], drawn[5])] == [0, 0], "only from the classes of the split"
    for part in drawn[1:5]:
        assert (part / part.sum() * len(part) - 1).abs().max() < 0.1
    supports = index.support_i.flatten().bincount(minlength=sum(UNEVEN)).split(UNEVEN)[1]
    assert (supports / supports.sum() * 3 - 1).abs().max() < 0.1, "as support and as query"


def test_tasks_of_a_split_depend_on_its_own_classes_alone() -> None:
    shape = TaskShape(3, 1, 2)
    few = evaluation_block(0, "test", 0, [0, 1, 2, 3], [5, 3, 4, 6], shape)
    many = evaluation_block(0, "test", 0, [0, 1, 2, 3], [5, 3, 4, 6, 90], shape)
    assert torch.equal(few.query_i, many.query_i)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # where there is one processor
@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_yields_the_same_steps(compose_cfg: Compose, workers: int) -> None:
    data = make_data(compose_cfg, f"data.num_workers={workers}", "aug=rotate")
    loaded = list(data.train_dataloader())
    assert len(loaded) == 3
    for step, drawn in enumerate(loaded):
        expected = data.draw("train", step)
        assert torch.equal(drawn.tasks.query_i, expected.tasks.query_i)
        assert torch.equal(drawn.maps, expected.maps)
    fingerprints = {tuple(drawn.tasks.support_i.flatten().tolist()) for drawn in loaded}
    assert len(fingerprints) == 3, "no step repeats another"


def test_batches_are_as_the_contract_says(compose_cfg: Compose) -> None:
    data = make_data(compose_cfg, "data.k_shot=2", "data.eval_q_query=4")
    train, val = data.task_batch("train", 0), data.task_batch("val", 0)
    assert train.support_x.shape == (4, 10, 1, 28, 28)
    assert train.query_x.shape == (4, 10, 1, 28, 28), "q_query defaults to k_shot"
    assert val.query_x.shape == (20, 20, 1, 28, 28)
    assert train.support_x.dtype == torch.float32
    assert train.support_y.dtype == torch.int64
    assert train.support_x.min() == 0
    assert train.support_x.max() == 1
    assert train.support_x.mean() < 0.2, "ink is 1, paper 0"


def test_evaluation_tasks_are_fixed_and_hashed(compose_cfg: Compose) -> None:
    base = make_data(compose_cfg)
    for same in ("seed=5", "algo=fomaml", "aug=rotate", "data.meta_batch_size=2", "data.num_classes=10"):
        other = make_data(compose_cfg, same)
        if same != "seed=5":  # another seed divides the alphabets anew: other validation classes
            assert other.episodes_sha256("val") == base.episodes_sha256("val"), same
        assert other.episodes_sha256("test") == base.episodes_sha256("test"), same
    for different in ("data.eval_seed=1", "data.k_shot=2", "data.eval_q_query=3", "episodes=41", "data.source.seed=1"):
        hashed = make_data(compose_cfg, different).episodes_sha256("test")
        assert hashed != base.episodes_sha256("test"), different


def test_more_episodes_begin_with_the_fewer(compose_cfg: Compose) -> None:
    few, many = make_data(compose_cfg, "episodes=40"), make_data(compose_cfg, "episodes=100")
    assert torch.equal(few.draw("test", 0).tasks.query_i, many.draw("test", 0).tasks.query_i)
    assert len(few.draw("test", 1).tasks.query_i) == 40 - BLOCK
    assert sum(len(batch.tasks.query_i) for batch in many.test_dataloader()) == 100


def test_quarter_turns_are_classes_of_their_own_in_the_split_of_their_character(compose_cfg: Compose) -> None:
    plain, turned = make_data(compose_cfg), make_data(compose_cfg, "data.quarter_turns=true")
    for split, listed in plain.class_lists().items():
        names = turned.class_lists()[split]["classes"]
        assert [name.rsplit(" ", 1)[0] for name in names[::4]] == listed["classes"]
        assert len(names) == 4 * len(listed["classes"])
    character, image = plain.classes["val"][3], turned.image_set.of_class(turned.classes["val"][4 * 3 + 1])
    assert torch.equal(image, torch.rot90(plain.image_set.of_class(character), 1, (-2, -1)))
    few = make_data(compose_cfg, "data.quarter_turns=true", "data.num_classes=7")
    assert len(few.classes["train"]) == 28
    assert turned.episodes_sha256("test") != plain.episodes_sha256("test")
    with_augmentation = compose_cfg("data.quarter_turns=true", "aug=rotate_classes")  # of a run that turned in training
    tested = build_learner(with_augmentation, "test")[0]
    assert tested.episodes_sha256("test") == turned.episodes_sha256("test")


def test_tasks_that_cannot_be_filled_are_refused_with_both_numbers(compose_cfg: Compose) -> None:
    with pytest.raises(UserError, match="data.n_way=25 but split 'val' has 20 classes"):
        make_data(compose_cfg, "data.n_way=25")
    with pytest.raises(UserError, match=r"data.k_shot=6 \+ data.eval_q_query=15 = 21 images .* every class has 20"):
        make_data(compose_cfg, "data.k_shot=6")
    with pytest.raises(UserError, match="data.train_n_way=71 but split 'train' has 70 classes: lower data.train_n_way"):
        make_data(compose_cfg, "data.train_n_way=71")
    with pytest.raises(UserError, match="data.quarter_turns=true has turned classes already"):
        make_data(compose_cfg, "data.quarter_turns=true", "aug=rotate_classes_affine")
    with pytest.raises(UserError, match="data.num_classes=99 but split 'train' has 70 classes"):
        make_data(compose_cfg, "data.num_classes=99")
    with pytest.raises(UserError, match="must not be negative"):
        make_data(compose_cfg, "seed=-1")
    with pytest.raises(UserError, match="meta_batch_size=0 must be at least 1"):
        make_data(compose_cfg, "data.meta_batch_size=0")
    with pytest.raises(UserError, match="n_way >= 2"):
        check_shape(TaskShape(1, 1, 1), "train", {"a": 20, "b": 20})


def test_a_class_with_too_few_images_is_named() -> None:
    counts = {"cat": 30, "owl": 7, "dog": 16, "fox": 12}
    check_shape(TaskShape(3, 1, 6), "val", counts)
    with pytest.raises(
        UserError,
        match=r"data.k_shot=1 \+ data.eval_q_query=15 = 16 images of a class, but class owl has 7 \(2 of the 4 classes "
        r"of split 'val' have too few\): lower one of them",
    ):
        check_shape(TaskShape(3, 1, 15), "val", counts)
    with pytest.raises(UserError, match=r"data.train_k_shot=7 \+ data.q_query=1 = 8 .* class owl has 7 \(1 of the 4"):
        check_shape(TaskShape(3, 7, 1), "train", counts)


def test_classes_of_one_alphabet_share_a_task_and_all_alphabets_come_as_often() -> None:
    groups = [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10, 11]]
    index = draw_tasks(generator(0, "train", 0), 6000, list(range(12)), [20] * 12, TaskShape(3, 1, 2), groups=groups)
    classes = index.query_i // 20
    alphabet = torch.tensor([0] * 3 + [1] * 5 + [2] * 4)[classes]
    assert (alphabet == alphabet[:, :1]).all()
    assert all(len(row.unique()) == 3 for row in classes[:100])
    shares = alphabet[:, 0].bincount() / 6000
    assert (shares - 1 / 3).abs().max() < 0.03
    of_second = classes[alphabet[:, 0] == 1].flatten().bincount(minlength=8)[3:8].float()
    assert (of_second / of_second.sum() - 0.2).abs().max() < 0.02


def test_within_alphabet_holds_in_training_and_evaluation_and_is_recorded(compose_cfg: Compose) -> None:
    data = make_data(compose_cfg, "data.within_alphabet=true", "data.n_way=4")
    assert data.image_set is not None
    alphabet = [name.rsplit("/")[0] for name in data.image_set.names]
    for split in ("train", "val", "test"):
        tasks = data.draw(split, 0).tasks
        for row in data.class_of(tasks.query_i):
            assert len({alphabet[number] for number in row.tolist()}) == 1
            assert len(set(row.tolist())) == 4
    assert data.record()["within_alphabet"] is True
    assert data.task_name == "4-way 1-shot within alphabets"
    assert data.episodes_sha256("test") != make_data(compose_cfg, "data.n_way=4").episodes_sha256("test")


def test_a_turned_alphabet_is_one_of_its_own(compose_cfg: Compose) -> None:
    data = make_data(compose_cfg, "data.within_alphabet=true", "data.quarter_turns=true")
    assert data.image_set is not None
    names = data.image_set.names
    for row in data.class_of(data.draw("train", 0).tasks.support_i):
        assert len({names[number].rsplit(" ", 1)[1] for number in row.tolist()}) == 1


def test_more_ways_than_the_largest_alphabet_has_are_refused(compose_cfg: Compose) -> None:
    with pytest.raises(UserError, match=r"data.train_n_way=11, but the largest group of split 'train', .* has 10 "):
        make_data(compose_cfg, "data.within_alphabet=true", "data.train_n_way=11")


def test_test_tasks_are_sealed_while_training(compose_cfg: Compose) -> None:
    data = make_data(compose_cfg)
    data.sealed = True
    data.draw("val", 0)
    for asked in (lambda: data.task_batch("test", 0), lambda: data.episodes_sha256("test"), data.example):
        with pytest.raises(RuntimeError, match="before training has ended"):
            asked()


def test_classes_of_one_group_are_no_alphabets(compose_cfg: Compose, image_folder: Path) -> None:
    more = ["data=folder", f"data.root={image_folder}", "data.image_size=8", "data.n_way=2", "data.eval_q_query=5"]
    data = build(compose_cfg(*more, "data.within_alphabet=true", small=False).data)
    with pytest.raises(UserError, match="all classes of split 'train' are of one group"):
        data.setup()
