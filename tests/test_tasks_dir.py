"""Tasks drawn beforehand: written, read, answered, scored; and every way in which a folder can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image

from fewshot.data.task_folder import read_answers, read_tasks
from fewshot.draw_tasks import draw
from fewshot.errors import UserError
from fewshot.runs import evaluate, train

FEW = ("episodes=40", "data.eval_q_query=2", "data.k_shot=2")


def drawn(compose_cfg: Compose, folder: Path, *overrides: str) -> Path:
    draw(compose_cfg(f"out={folder}", *FEW, *overrides, config="draw_tasks"))
    return folder


def test_a_folder_scores_as_the_tasks_it_was_drawn_from(compose_cfg: Compose, tmp_path: Path, capsys) -> None:
    train(compose_cfg("test=false", "trainer.max_steps=20", folder=tmp_path / "run"))
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    direct = evaluate(compose_cfg(checkpoint, *FEW, config="evaluate", folder=tmp_path / "direct"))
    tasks = drawn(compose_cfg, tmp_path / "tasks")
    assert direct["episodes_sha256"] in capsys.readouterr().out
    labels = tmp_path / "tasks.labels.csv"
    given = (checkpoint, f"tasks_dir={tasks}", f"labels={labels}")
    found = evaluate(compose_cfg(*given, config="evaluate", folder=tmp_path / "found"))
    assert found["mean"] == pytest.approx(direct["mean"], abs=0.01)  # sums in another order may tip a query
    assert found["k_shot"] == 2
    assert found["episodes"] == 40
    printed = capsys.readouterr().out
    assert "white background" in printed
    assert "5-way 2-shot accuracy" in printed
    rows = (tmp_path / "found" / "output.csv").read_text().splitlines()
    assert rows[0] == "id,class"
    assert [row.split(",")[0] for row in rows[1:]] == [str(i) for i in range(400)]
    answers = read_answers(tmp_path / "found" / "output.csv", 40, 10, 5)
    right = (answers == read_answers(labels, 40, 10, 5)).double().mean().item()
    assert right == pytest.approx(found["mean"], abs=1e-6)


def test_without_labels_and_without_data(compose_cfg: Compose, tmp_path: Path, monkeypatch) -> None:
    """Only the checkpoint and the folder are needed: no data set is opened, no score is made up."""
    train(compose_cfg("test=false", folder=tmp_path / "run"))
    tasks = drawn(compose_cfg, tmp_path / "tasks")
    monkeypatch.setattr("fewshot.data.datamodule.EpisodeData.setup", None)
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    evaluate(compose_cfg(checkpoint, f"tasks_dir={tasks}", config="evaluate", folder=tmp_path / "found"))
    record = json.loads((tmp_path / "found" / "results.json").read_text())
    assert record["mean"] is None
    assert record["checkpoint"].endswith("last.ckpt")


def test_black_and_white_paper_and_other_sizes_read_the_same(compose_cfg: Compose, tmp_path: Path) -> None:
    white = drawn(compose_cfg, tmp_path / "white")
    black, large = tmp_path / "black", tmp_path / "large"
    for copy, change in ((black, invert), (large, enlarge)):
        shutil.copytree(white, copy)
        for path in copy.rglob("*.png"):
            change(path)
    expected = read_tasks(white, n_way=5, channels=1, image_size=28)
    assert expected.background == "white"
    found = read_tasks(black, n_way=5, channels=1, image_size=28)
    assert found.background == "black"
    assert torch.equal(found.tasks.support_x, expected.tasks.support_x)
    larger = read_tasks(large, n_way=5, channels=1, image_size=28)
    assert (larger.tasks.query_x - expected.tasks.query_x).abs().mean() < 0.01
    assert expected.tasks.support_y[0].tolist() == [0, 1, 2, 3, 4] * 2
    assert expected.tasks.support_x.mean() < 0.3, "ink is 1, paper 0"


def test_of_other_shapes_the_middle_square_is_taken(tmp_path: Path) -> None:
    """Nothing is stretched; as of a folder of images."""
    drawn = (np.arange(20 * 26) * 89 % 120).astype(np.uint8).reshape(20, 26)
    for part, number in (("support", 0), ("support", 1), ("query", 0)):
        (tmp_path / part / "0000").mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn + number).save(tmp_path / part / "0000" / f"image_{number}.png")
    tasks = read_tasks(tmp_path, n_way=2, channels=1, image_size=20).tasks
    assert torch.equal(tasks.query_x[0, 0, 0], torch.from_numpy(drawn[:, 3:23]).float().div(255))


def invert(path: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def enlarge(path: Path) -> None:
    Image.open(path).resize((56, 56), Image.Resampling.NEAREST).save(path)


def test_support_images_are_those_of_their_labels(compose_cfg: Compose, tmp_path: Path) -> None:
    """Image i of a support folder is of class i modulo N, also where shots were drawn in another order."""
    cfg = compose_cfg(f"out={tmp_path / 'tasks'}", *FEW, config="draw_tasks")
    draw(cfg)
    from fewshot.build import build

    data = build(cfg.data)
    data.setup()
    batch = data.task_batch("test", 0)
    read = read_tasks(tmp_path / "tasks", n_way=5, channels=1, image_size=28).tasks
    for label in range(5):
        theirs = read.support_x[0][read.support_y[0] == label]
        ours = batch.support_x[0][batch.support_y[0] == label]
        assert torch.equal(theirs, ours)
    assert torch.equal(read.query_x[:32], batch.query_x)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no folder .*support"),
    "no queries": (lambda d: shutil.rmtree(d / "query"), "there is no folder .*query"),
    "task in one part": (lambda d: shutil.rmtree(d / "query" / "0003"), "task 0003 in only one of"),
    "image missing": (lambda d: (d / "query" / "0002" / "image_4.png").unlink(), "0002/image_4.png is missing"),
    "uneven": (lambda d: (d / "query" / "0002" / "image_9.png").unlink(), "0002 holds 9 images, other tasks 10"),
    "no task at all": (lambda d: [shutil.rmtree(p) for p in (d / "query").iterdir()], "query holds no tasks"),
    "empty task": (lambda d: [p.unlink() for p in (d / "query" / "0000").iterdir()], "0000/image_0.png is missing"),
    "unreadable": (lambda d: (d / "query" / "0001" / "image_1.png").write_bytes(b"no"), "0001/image_1.png cannot be"),
    "cut short": (
        lambda d: (d / "query" / "0001" / "image_1.png").write_bytes(
            (d / "query" / "0001" / "image_1.png").read_bytes()[:60]
        ),
        "0001/image_1.png cannot be",
    ),
    "odd size": (lambda d: enlarge(d / "support" / "0001" / "image_1.png"), "image_1.png has 56×56 pixels, .* 28×28"),
    "stranger": (lambda d: (d / "support" / "0001" / "notes.txt").write_text(""), "notes.txt is no image of a task"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_folder_is_named_and_nothing_half_written(compose_cfg: Compose, tmp_path: Path, name: str) -> None:
    tasks = drawn(compose_cfg, tmp_path / "tasks", "episodes=4")
    spoil, message = WRONG[name]
    spoil(tasks)
    cfg = compose_cfg("algo=nearest", f"tasks_dir={tasks}", config="evaluate", folder=tmp_path / "out")
    with pytest.raises(UserError, match=message):
        evaluate(cfg)
    assert not list((tmp_path / "out").glob("output*"))


def test_ways_that_do_not_fit_the_model(compose_cfg: Compose, tmp_path: Path) -> None:
    tasks = drawn(compose_cfg, tmp_path / "tasks", "episodes=4")
    with pytest.raises(UserError, match="holds 10 images a task, no multiple of data.n_way=4"):
        evaluate(compose_cfg("algo=nearest", f"tasks_dir={tasks}", "data.n_way=4", config="evaluate"))


def test_a_learned_head_answers_tasks_of_its_own_number_of_classes(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("algo=cnp", "trainer.max_steps=3", "test=false", folder=tmp_path / "run"))
    best = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"data.train_n_way=5, but CNP learns one head .* set data.train_n_way=3"):
        evaluate(
            compose_cfg("algo=cnp", f"ckpt_path={best}", f"tasks_dir={tmp_path}", "data.n_way=3", config="evaluate")
        )


def test_a_learner_of_regression_has_no_use_for_images(compose_cfg: Compose, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds images of classes: data=fewshot.data.sinusoid.SinusoidData has none"):
        evaluate(compose_cfg("data=sinusoid", "algo=zero", f"tasks_dir={tmp_path}", config="evaluate", small=False))


def test_labels_that_do_not_fit(compose_cfg: Compose, tmp_path: Path) -> None:
    tasks = drawn(compose_cfg, tmp_path / "tasks", "episodes=4")
    labels = tmp_path / "tasks.labels.csv"
    rows = labels.read_text().splitlines()
    for content, message in (
        (rows[:-1], "has 39 rows, wanted are ids 0 to 39"),
        (["a,b", *rows[1:]], "is not a file of answers"),
        ([*rows[:-1], "39,5"], "names class 5"),
    ):
        labels.write_text("\n".join(content))
        with pytest.raises(UserError, match=message):
            evaluate(compose_cfg("algo=nearest", f"tasks_dir={tasks}", f"labels={labels}", config="evaluate"))


def test_drawing_overwrites_nothing_and_needs_a_name(compose_cfg: Compose, tmp_path: Path) -> None:
    tasks = drawn(compose_cfg, tmp_path / "tasks", "episodes=4")
    for overrides, message in (
        ([f"out={tasks}"], "exists: choose another"),
        ([], "name the folder"),
        ([f"out={tmp_path / 'new'}", "split=train"], "split=train is not one of val, test"),
    ):
        with pytest.raises(UserError, match=message):
            draw(compose_cfg(*overrides, config="draw_tasks"))
    assert not (tmp_path / "new").exists()
