"""What a report says of runs: who belongs together, what is real, and a page that needs nothing beside it."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf

from fewshot.errors import UserError
from fewshot.report.__main__ import main, write_report
from fewshot.report.charts import charts
from fewshot.report.collect import Group, Run, differing, find_runs, group_runs
from fewshot.report.compare import difference, score
from fewshot.report.page import page
from fewshot.report.pictures import answers
from fewshot.report.tables import Table
from fewshot.runs import train


def made_up(seed: int, scores: torch.Tensor, sha: str = "same", written: float = 0.0, **settings: str) -> Run:
    record = {
        "algo": settings.get("algo", "maml"), "seed": seed, "mean": scores.mean().item(), "episodes": len(scores),
        "ci95": 1.96 * scores.std().item() / math.sqrt(len(scores)), "episodes_sha256": sha, "metric": "accuracy",
    }  # fmt: skip
    return Run(Path(f"run{seed}"), {"seed": str(seed), **settings}, record, [], scores, written)


def simulated(draw: torch.Generator, gap: float, episodes: int = 200) -> tuple[Group, Group]:
    """Two learners on the same tasks: most of the spread is the tasks', and both share it."""
    hardness = 0.10 * torch.randn(episodes, generator=draw, dtype=torch.float64)

    def scores(mean: float) -> torch.Tensor:
        return mean + hardness + 0.05 * torch.randn(episodes, generator=draw, dtype=torch.float64)

    return Group({}, [made_up(1, scores(0.8 + gap))]), Group({}, [made_up(1, scores(0.8))])


def test_the_paired_interval_covers_the_truth_at_its_rate_and_is_narrower() -> None:
    draw, trials, gap = torch.Generator().manual_seed(0), 2000, 0.01
    found = [difference(*simulated(draw, gap)) for _ in range(trials)]
    covered = sum(each is not None and abs(each.mean - gap) <= each.paired for each in found) / trials
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 trials
    assert all(each is not None and each.paired < each.unpaired for each in found)


def test_differences_need_the_same_tasks_and_a_seed_in_common() -> None:
    scores = torch.linspace(0, 1, 10, dtype=torch.float64)
    one = Group({}, [made_up(1, scores), made_up(2, scores + 0.2)])
    other = Group({}, [made_up(2, scores), made_up(3, scores + 9)])
    found = difference(one, other)
    assert found is not None
    assert (found.mean, found.paired, found.seeds) == (pytest.approx(0.2), pytest.approx(0, abs=1e-9), 1)
    assert difference(one, Group({}, [made_up(3, scores)])) is None
    assert difference(one, Group({}, [made_up(1, scores, sha="other")])) is None
    assert difference(one, Group({}, [made_up(1, scores)._replace(scores=None)])) is None


def test_a_group_has_two_intervals() -> None:
    scores = torch.linspace(0, 1, 101, dtype=torch.float64)
    found = score(Group({}, [made_up(seed, scores + shift) for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2))]))
    assert found.mean == pytest.approx(0.6)
    assert found.over_episodes == pytest.approx(1.96 * scores.std().item() / math.sqrt(101))
    assert found.over_seeds == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)  # Student, two degrees of freedom
    assert math.isnan(score(Group({}, [made_up(1, scores)])).over_seeds)


def test_what_differs_is_the_choice_not_all_that_comes_with_it() -> None:
    maml = {"algo": "maml", "algo.inner_lr": "0.4", "algo.create_graph": "true", "aug": "none", "seed": "1"}
    fomaml = maml | {"algo": "fomaml", "algo.create_graph": "false", "seed": "2"}
    assert differing([maml, fomaml]) == ["algo"]
    assert differing([maml, fomaml, fomaml | {"algo.inner_lr": "0.1"}]) == ["algo", "algo.inner_lr"]
    assert differing([maml, maml | {"seed": "2"}]) == []


def test_of_one_seed_the_newest_run_counts() -> None:
    scores = torch.linspace(0, 1, 10, dtype=torch.float64)
    runs = [made_up(1, scores, written=2.0), made_up(1, scores + 1, written=1.0), made_up(2, scores)]
    (group,) = group_runs(runs)
    assert [(run.seed, run.written) for run in group.runs] == [(1, 2.0), (2, 0.0)]


def test_what_is_built_by_another_name_is_another_group() -> None:
    adam = {"algo": "maml", "outer.optimizer._target_": "torch.optim.Adam"}
    assert differing([adam, adam | {"outer.optimizer._target_": "torch.optim.SGD"}]) == ["outer.optimizer._target_"]
    assert differing([adam, {"algo": "other", "outer.optimizer._target_": "torch.optim.SGD"}]) == ["algo"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture
def runs(compose_cfg: Compose, sweep: Path) -> Path:
    """Two algorithms with two seeds each."""
    for job, (algo, seed) in enumerate((a, s) for a in ("maml", "fomaml") for s in (1, 2)):
        folder = sweep / str(job)
        if not (folder / "results.json").exists():
            from hydra.core.hydra_config import HydraConfig

            cfg = compose_cfg(f"algo={algo}", f"seed={seed}", folder=folder)
            (folder / ".hydra").mkdir(parents=True)
            OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
            OmegaConf.save(HydraConfig.instance().cfg, folder / ".hydra" / "hydra.yaml")
            train(cfg)
    return sweep


def test_runs_are_found_and_grouped(runs: Path) -> None:
    found = find_runs([runs, runs / "0"])
    assert [(run.record["algo"], run.seed) for run in found] == [("maml", 1), ("maml", 2), ("fomaml", 1), ("fomaml", 2)]
    groups = group_runs(found)
    assert [group.settings for group in groups] == [{"algo": "maml"}, {"algo": "fomaml"}]
    for run in found:
        assert run.scores is not None
        assert run.scores.mean().item() == pytest.approx(run.record["mean"], abs=1e-12)
        assert [row["step"] for row in run.validation] == [3, 6]
        assert run.validation[0]["val/seconds"] < run.validation[1]["val/seconds"]
        assert run.tasks_per_second > 0


def test_the_page_holds_everything(runs: Path, tmp_path: Path) -> None:
    page = write_report([runs], tmp_path).read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing beside it"
    assert "<!--" not in page
    for part in ("maml", "fomaml", "over seeds", "paired", "beyond chance", "hardest test tasks", "taken for which"):
        assert part in page, part
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| maml \| 1, 2 \| \d+\.\d % \| ± \d", markdown)
    drawn = {path.stem for path in (tmp_path / "report").iterdir()}
    assert drawn == {"validation_by_steps", "validation_by_seconds", "inner_steps", "confusion", "hardest"}
    assert all(
        (tmp_path / "report" / f"{stem}.{kind}").stat().st_size > 1000 for stem in drawn for kind in ("png", "svg")
    )
    table = (tmp_path / "report.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 3
    assert not list(tmp_path.rglob("*.tmp*"))


def test_what_it_says_of_mistakes_is_what_was_scored(runs: Path) -> None:
    """The checkpoint answers the same tasks as in its test, and classes have their names."""
    run = find_runs([runs / "1"])[0]
    found = answers(run)
    assert found is not None
    assert run.scores is not None
    torch.testing.assert_close(found.scores, run.scores, rtol=0, atol=1e-6)
    classes = json.loads((runs / "1" / "classes.json").read_text())["test"]["classes"]
    assert {found.names[number] for number in found.classes.flatten().tolist()} <= set(classes)
    for task in range(len(found.classes)):  # a wrong answer is another class of the same task
        assert set(found.answered[task].tolist()) <= set(found.classes[task].tolist())


def test_without_the_data_it_is_written_without_pictures_of_mistakes(runs: Path, tmp_path: Path, capsys) -> None:
    best = runs / "0" / "checkpoints" / "best.ckpt"
    kept = {path: path.read_bytes() for path in runs.glob("*/checkpoints/best.ckpt")}
    try:
        for path in kept:
            path.write_bytes(b"gone")
        main([str(runs), f"out={tmp_path}"])
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert "no pictures of mistakes: ckpt_path=" in capsys.readouterr().err
    assert "hardest" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert best.exists()


def test_two_keys_make_a_map() -> None:
    runs = [
        made_up(seed, torch.full((10,), 0.1 * inner + 0.01 * batch + 0.002 * seed, dtype=torch.float64),
                **{"algo.inner_steps": str(inner), "data.meta_batch_size": str(batch)})
        for inner in (1, 3) for batch in (8, 16) for seed in (1, 2)
    ]  # fmt: skip
    runs = [run._replace(record=run.record | {"after_each_inner_step": {"mean": [0.2]}}) for run in runs]
    found = charts(group_runs(runs), "accuracy", "acc")
    axis, _colours = found["map"].axes
    assert [text.get_text() for text in axis.texts] == ["18.3", "26.3", "38.3", "46.3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "3"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "16"]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("action", "rows"),
    [
        ("", ["b", "a", "c", "d"]),
        ("click(1);", ["c", "b", "d", "a"]),  # the largest first, by their numbers
        ("click(1); click(1);", ["a", "d", "b", "c"]),
        ("click(0);", ["d", "c", "b", "a"]),
        ("type('INDUCTIVE x');", ["b", "c"]),
    ],
)
def test_in_a_browser_the_table_sorts_and_filters(tmp_path: Path, action: str, rows: list[str]) -> None:
    cells = [
        ["b", "9.5 %", "inductive x"],
        ["a", "−1.0 %", "inductive"],
        ["c", "10.0 %", "x inductive"],
        ["d", "+2", ""],
    ]
    text = page("title", "intro", [Table("Scores", "note", ["name", "score", "kind"], cells)], {})
    script = """<script>
      const click = column => document.querySelectorAll("th button")[column].click();
      const box = document.querySelector("input");
      const type = text => { box.value = text; box.dispatchEvent(new Event("input")); };
      ACTION
      const shown = [...document.querySelectorAll("tbody tr")].filter(row => !row.hidden);
      document.title = shown.map(row => row.cells[0].textContent).join();
    </script>""".replace("ACTION", action)
    (tmp_path / "page.html").write_text(text + script, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(BROWSER), *options, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"<title>{','.join(rows)}</title>" in done.stdout, done.stderr


def test_what_cannot_be_reported_on_is_told(tmp_path: Path) -> None:
    for arguments, told in (
        (["nowhere"], "nowhere: there is no such folder"),
        ([str(tmp_path)], "no run in it has been scored"),
        ([str(tmp_path), "output=x"], "output: the options are out=DIR"),
        ([str(tmp_path), "pictures=maybe"], "pictures=maybe must be true or false"),
    ):
        with pytest.raises(UserError, match=told):
            main(arguments)


def test_accuracy_and_error_are_not_compared(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", "hydra.yaml"):
        (other / ".hydra" / name).write_bytes((runs / "0" / ".hydra" / name).read_bytes())
    record = json.loads((runs / "0" / "results.json").read_text()) | {"metric": "mean squared error"}
    (other / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="scored by accuracy and by mean squared error: report on them apart"):
        find_runs([runs, other])
