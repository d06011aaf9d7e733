"""One checkpoint scored against ways, shots and inner steps: each cell is what evaluate.py says of such tasks."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Compose, random_tasks
from lightning import Trainer
from test_algorithms import ROWS, learner
from test_processes import finish, start

from fewshot import engine, grid_record
from fewshot.build import build, build_learner
from fewshot.data.episodes import TaskShape
from fewshot.errors import UserError
from fewshot.grid import chunk_of
from fewshot.grid_record import Cell, draw_grid, table, write_csv, write_grid
from fewshot.heat_map import Panel, draw_heat_maps
from fewshot.outer import MetaLearner
from fewshot.runs import evaluate, train

LEARNERS = {
    "maml": (),
    "protomaml": ("algo.inner_lr=0.1",),
    "baselinepp": ("algo.eval_inner_steps=4", "algo.running_momentum=null", "outer.optimizer.lr=0.0001"),
    "protonet": (),
}
GRID = ("grid=default", "grid.shots=[1,2]", "grid.steps=[0,2,4]", "grid.episodes=32", "grid.q_query=2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in LEARNERS}


@pytest.fixture
def trained(compose_cfg: Compose, folders: dict[str, Path]):
    """trained(name): what the command line needs to score a checkpoint of this learner, trained once."""

    def given(name: str) -> tuple[str, ...]:
        path = folders[name] / "checkpoints" / "best.ckpt"
        if not path.exists():
            options = ("outer.optimizer.lr=0.01", "test=false", "trainer.max_steps=3")
            train(compose_cfg(f"algo={name}", *options, *LEARNERS[name], folder=folders[name]))
        return f"algo={name}", *LEARNERS[name], f"ckpt_path={path}"

    return given


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "grid.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_cell_is_what_evaluate_says_of_such_tasks(compose_cfg: Compose, tmp_path: Path, trained, name: str) -> None:
    """Number for number: the same tasks, the same steps, the same interval."""
    given, any_way = trained(name), name != "maml"
    ways = "grid.ways=[3]" if any_way else "grid.ways=[5]"
    grid = evaluate(compose_cfg(*given, *GRID, ways, config="evaluate", folder=tmp_path / "grid"))
    n_way, k_shot, step = 3 if any_way else 5, 2, 0 if name == "protonet" else 4
    shape = (f"data.n_way={n_way}", "data.train_n_way=5", "data.k_shot=2", "data.train_k_shot=1", "data.eval_q_query=2")
    steps = (f"algo.eval_inner_steps={step}",) if step else ()
    found = evaluate(compose_cfg(*given, *shape, *steps, "episodes=32", config="evaluate", folder=tmp_path / "one"))
    (cell,) = (c for c in grid["cells"] if (c["n_way"], c["k_shot"], c["inner_steps"]) == (n_way, k_shot, step))
    for key in ("n_way", "k_shot", "mean", "ci95", "episodes", "episodes_sha256"):
        assert cell[key] == found[key], key
    assert (tmp_path / "one" / "results.json").exists()
    assert grid["normalization"] == found["normalization"]
    assert grid["q_query"] == found["q_query"]
    for key in ("classes_sha256", "split", "data", "algo", "seed", "checkpoint", "versions"):
        assert grid[key] == found[key], key
    if step:
        (before,) = (c for c in grid["cells"] if (c["n_way"], c["k_shot"], c["inner_steps"]) == (n_way, k_shot, 2))
        again = evaluate(compose_cfg(*given, *shape, "algo.eval_inner_steps=2", "episodes=32", config="evaluate"))
        assert (before["mean"], before["ci95"]) == (again["mean"], again["ci95"])
        assert len({c["mean"] for c in grid["cells"]}) > 3, "steps and shapes tell"


@pytest.mark.parametrize("name", [name for name in ROWS if learner(name).test_inner_steps])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_one_pass_stands_after_some_steps_where_so_many_alone_lead(name: str, norm: str) -> None:
    """Beyond the steps of training, too; and with what MAML++ has for each step by itself."""
    algorithm, batch, tried = learner(name, norm), random_tasks(3), [0, 1, 2, 3, 7]
    for value in [*algorithm.parameters(), *algorithm.buffers()]:  # no two steps have the same
        value.data.mul_(1 + 0.3 * torch.rand(value.shape, dtype=value.dtype))
    algorithm.test_inner_steps = max(tried)
    together = engine.evaluate(algorithm, batch, every_state=tried)
    every = engine.evaluate(algorithm, batch, every_state=True)
    assert together.shape == (2, 3, len(tried))
    assert torch.equal(together, every[..., tried])
    for place, step in enumerate(tried):
        algorithm.test_inner_steps = step
        assert torch.equal(engine.evaluate(algorithm, batch)[..., 0], together[..., place]), step
    assert not torch.equal(together[0, :, 0], together[0, :, -1])


def test_what_a_grid_leaves(compose_cfg: Compose, tmp_path: Path, trained, capsys) -> None:
    evaluate(compose_cfg(*trained("protonet"), *GRID, "grid.ways=[3,5]", config="evaluate", folder=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"grid.csv", "grid.json", "plots"}
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["grid.png"]
    assert (tmp_path / "plots" / "grid.png").stat().st_size > 5000
    written, record = rows(tmp_path), json.loads((tmp_path / "grid.json").read_text())
    assert list(written[0]) == ["n_way", "k_shot", "inner_steps", "mean", "ci95", "episodes", "episodes_sha256"]
    assert [(row["n_way"], row["k_shot"], row["inner_steps"]) for row in written] == [
        (n, k, "0") for n in "35" for k in "12"
    ]
    assert [{key: str(value) for key, value in cell.items()} for cell in record["cells"]] == written
    assert len({row["episodes_sha256"] for row in written}) == 4
    assert record["empty"] is None
    assert record["seconds"] > 0
    printed = capsys.readouterr().out
    assert "inductive" in printed
    assert "inner steps" not in printed
    for row in written:
        assert f"{float(row['mean']):.3f} ± {float(row['ci95']):.3f}" in printed


def test_ways_that_a_head_was_not_trained_for_stay_empty(compose_cfg: Compose, tmp_path: Path, trained, capsys) -> None:
    evaluate(compose_cfg(*trained("maml"), *GRID, "grid.ways=[2,5,999]", config="evaluate", folder=tmp_path))
    assert [(row["n_way"], row["k_shot"], row["inner_steps"]) for row in rows(tmp_path)] == [
        ("5", k, s) for k in "12" for s in "024"
    ]
    printed = capsys.readouterr().out
    reason = "2, 999 ways are left empty: MAML was trained at 5 ways and has one head for all tasks"
    assert printed.count(reason) == 1
    assert json.loads((tmp_path / "grid.json").read_text())["empty"] == reason
    lines = [line.split() for line in printed.splitlines()]
    assert ["2"] in lines
    assert ["999"] in lines
    assert [line[0] for line in lines if line.count("±") == 2] == ["5", "2", "4"], "a row for every number of steps"


def test_a_classifier_of_fixed_classes_answers_with_the_first_of_its_outputs(compose_cfg: Compose) -> None:
    algorithm = build_learner(compose_cfg("algo=transfer"))[1].algorithm
    assert [n for n in (2, 5, 6) if algorithm.can_answer(n)] == [2, 5]
    with pytest.raises(UserError, match="data.train_n_way=5, but Transfer"):
        build_learner(compose_cfg("algo=transfer", "data.n_way=6", "data.train_n_way=5", "data.num_classes=5"))


ERRORS = {
    "grid.ways=[]": "grid.ways=[] must be one or more numbers of at least 2",
    "grid.ways=[5,1]": "grid.ways=[5, 1] must be one or more numbers of at least 2",
    "grid.ways=5": "grid.ways=5 must be a list of int",
    "grid.shots=[0]": "grid.shots=[0] must be one or more numbers of at least 1",
    "grid.steps=[-1,3]": "grid.steps=[-1, 3] must be one or more numbers of at least 0",
    "grid.steps=[1.5]": "grid.steps=[1.5] must be a list of int",
    "grid.episodes=1": "grid.episodes=1 must be at least 2",
    "grid.q_query=0": "grid.q_query=0 must be at least 1",
    "grid.ways=[2,3]": "grid.ways=[2, 3]: MAML was trained at 5 ways and has one head for all tasks; add 5 to",
    "grid.shots=[1,18]": "grid.shots=18 + grid.q_query=5 = 23 images of a class, but every class has 20",
    "grid.q_query=20": "grid.shots=1 + grid.q_query=20 = 21 images of a class, but every class has 20",
    "episodes=41": "episodes=41 is for a test; of each pair of way and shot grid.episodes=… tasks",
    "tasks_dir=TASKS": "grid= draws tasks of its own for one learner as it was trained: leave tasks_dir out",
    "protocol=hw15": "grid= draws tasks of its own for one learner as it was trained: leave protocol out",
    "normalization=both": "grid= draws tasks of its own for one learner as it was trained: leave normalization out",
    "algo=nearest ckpt_path=null grid.ways=[5,99]": "grid.ways=99 but split 'test' has 30 classes: lower grid.ways",
    "algo=zero data=sinusoid ckpt_path=null": "the tasks of SinusoidData have no ways: score it as python evaluate.py",
}


@pytest.mark.parametrize("overrides", ERRORS)
def test_refused_before_anything_is_computed(
    compose_cfg: Compose, tmp_path: Path, trained, monkeypatch, overrides: str
) -> None:
    def begun(*arguments: object) -> None:
        raise AssertionError("it began before it was refused")

    monkeypatch.setattr(MetaLearner, "test_step", begun)
    small = [] if "sinusoid" in overrides else [each for each in SMALL if not each.startswith("episodes=")]
    given = (*small, *trained("maml"), "grid=default", *overrides.split())
    with pytest.raises(UserError) as refused:
        evaluate(compose_cfg(*given, config="evaluate", small=False, folder=tmp_path))
    assert ERRORS[overrides] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def found(ways: list[int], shots: list[int], steps: list[int], **more: Any) -> tuple[dict[str, Any], list[Cell]]:
    """A record and its cells; of `more` those of `empty_ways` are missing."""
    missing = more.pop("empty_ways", [])
    keys = [(n, k, s) for n in ways if n not in missing for k in shots for s in steps]
    cells = [Cell(*key, place / len(keys), 0.01, 40, "0") for place, key in enumerate(keys)]
    record = {"algo": "maml", "data": "strokes", "metric": "accuracy", "normalization": "inductive"}
    record |= {"ways": ways, "shots": shots, "inner_steps": steps, "episodes": 40, "q_query": 2, "empty": None}
    return record | {"train_n_way": 5, "train_k_shot": 1, "checkpoint": "a"} | more, cells


def test_files_are_whole_or_as_they_were(tmp_path: Path, monkeypatch) -> None:
    record, cells = found([5], [1, 2], [0])
    write_grid(tmp_path, record, cells)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 3

    class Broken(float):
        def __str__(self) -> str:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_csv(tmp_path / "grid.csv", [*cells, cells[0]._replace(mean=Broken(1))])
    monkeypatch.setattr(Path, "replace", lambda *arguments: (_ for _ in ()).throw(OSError("no space left")))
    for write in (lambda: write_csv(tmp_path / "grid.csv", cells[:1]), lambda: write_grid(tmp_path, record, cells[:1])):
        with pytest.raises(OSError, match="no space left"):
            write()
    assert {path: path.read_bytes() for path in before} == before


def test_every_cell_of_the_picture_has_its_number() -> None:
    """A map for every number of steps, on one scale; of one way alone, one map of steps by shots."""
    figure = draw_grid(*found([2, 5, 10, 20], [1, 2, 5, 10], [0, 1, 3, 5], empty_ways=[2]))
    *maps, bar = figure.axes
    assert len(maps) == 6
    shown = [axis for axis in maps if axis.get_visible()]
    assert [len(axis.texts) for axis in shown] == [2 * 12] * 4
    assert len({axis.images[0].get_clim() for axis in shown}) == 1
    assert bar.get_ylabel() == "accuracy (%)"
    figure = draw_grid(*found([2, 5], [1, 2, 5], [0, 1, 3], empty_ways=[2]))
    (only, _) = figure.axes
    assert only.get_title() == "5-way"
    assert [text.get_text() for text in only.get_yticklabels()] == ["0", "1", "3"]
    assert [text.get_text() for text in only.texts[:4]] == ["0.0", "± 1.0", "33.3", "± 1.0"]
    figure = draw_grid(*found([2, 5], [1, 2], [0]))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["2", "5"]


def test_dark_cells_have_white_numbers_and_one_cell_alone_is_drawn(tmp_path: Path) -> None:
    figure = draw_grid(*found([2, 5], [1, 2], [0]))
    colors = [text.get_color() for text in figure.axes[0].texts[::2]]
    assert (colors[0], colors[-1]) == ("black", "white")
    panel = Panel("", np.array([[0.5]]))
    grid_record.save(draw_heat_maps([panel], [1], [1], xlabel="", ylabel="", title="", unit="x"), tmp_path / "a.png")


def test_the_table_has_a_row_for_every_way_and_step() -> None:
    lines = table(*found([2, 5], [1, 2, 5], [0, 3])).splitlines()
    numbers = [line.split() for line in lines if "0.010" in line]
    assert [row[:2] for row in numbers] == [["2", "0"], ["3", "0.083"], ["5", "0"], ["3", "0.583"]]
    assert all(row.count("±") == 3 for row in numbers)


def test_larger_tasks_are_computed_fewer_at_a_time(compose_cfg: Compose) -> None:
    data, learned = build_learner(compose_cfg("data.meta_batch_size=32"))
    algorithm = learned.algorithm  # 32 tasks of 10 images
    for shape, chunk in (((5, 1, 1), 32), ((5, 1, 5), 10), ((20, 10, 5), 1), ((2, 1, 1), 32), ((5, 5, 5), 6)):
        assert chunk_of(algorithm, data, TaskShape(*shape)) == chunk, shape
    algorithm.task_chunk = 3
    assert chunk_of(algorithm, data, TaskShape(5, 1, 5)) == 1
    algorithm.task_chunk = "auto"
    assert chunk_of(algorithm, data, TaskShape(20, 10, 5)) == "auto"
    algorithm.task_chunk = None
    assert chunk_of(algorithm, data, TaskShape(5, 1, 5)) == 10


def test_two_processes_come_to_the_grid_of_one(compose_cfg: Compose, tmp_path: Path, trained) -> None:
    given = (*trained("protonet"), *GRID, "grid.ways=[3]", "grid.episodes=70")
    expected = evaluate(compose_cfg(*given, config="evaluate"))
    finish(start(tmp_path, *given, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=run", program="evaluate"))
    record = json.loads((tmp_path / "run" / "grid.json").read_text())
    assert record["cells"] == expected["cells"]


def test_sigterm_ends_a_grid_with_143_and_leaves_no_file(
    compose_cfg: Compose, tmp_path: Path, trained, monkeypatch
) -> None:
    """In the last tasks of a cell, too."""
    given, test_step = trained("protonet"), MetaLearner.test_step

    def stopped(self: MetaLearner, *arguments: Any) -> None:
        test_step(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetaLearner, "test_step", stopped)
    with pytest.raises(SystemExit) as ended:
        evaluate(compose_cfg(*given, *GRID, "grid.episodes=8", config="evaluate", folder=tmp_path))
    assert ended.value.code == 143
    assert not list(tmp_path.rglob("grid.*"))


def test_no_logger_gets_the_score_of_a_cell_as_that_of_the_test(compose_cfg: Compose, trained, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(Trainer, "test", lambda self, *_, **__: seen.append(self.loggers) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(compose_cfg(*trained("protonet"), *GRID, config="evaluate"))
    assert seen == [[]]


def test_the_configuration_mirrors_the_constructor(compose_cfg: Compose) -> None:
    cfg = compose_cfg("grid=default", "grid.ways=[20,5,5]", config="evaluate")
    assert vars(build(cfg.grid)).keys() == cfg.grid.keys() - {"_target_"}
    assert build(cfg.grid).ways == [5, 20]
    assert "grid" not in compose_cfg(config="evaluate")
