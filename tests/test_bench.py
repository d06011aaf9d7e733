"""The benchmark: every side does the same work, what cannot be compared is left out and named."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import Compose
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewshot import engine
from fewshot.allocation import bytes_of
from fewshot.augment import Augmentation, Identity, RotateClasses
from fewshot.bench import __main__ as bench
from fewshot.bench import peers, race
from fewshot.bench.agreement import Reference, meta_gradient
from fewshot.bench.case import Case, PlainNetwork
from fewshot.bench.drawing import drawing_ms
from fewshot.bench.measure import Timing, take_turns
from fewshot.bench.sides import PEERS, maml, ours
from fewshot.errors import UserError

TINY = dict(tasks=2, n_way=3, blocks=2, hidden=4, image_size=8)


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_the_field_s_speed_reference_has_its_parameters(compose_cfg: Compose) -> None:
    cfg = compose_cfg(config="bench", small=False)
    assert sum(p.numel() for p in Case("reference", **cfg.cases.reference).network().parameters()) == 75_205
    assert sum(p.numel() for p in Case("omniglot", **cfg.cases.omniglot_1_step).network().parameters()) == 112_261


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_ours_and_the_plain_loop_are_the_same_step(create_graph: bool, steps: int) -> None:
    torch.manual_seed(0)
    case = Case("tiny", **TINY, inner_steps=steps, create_graph=create_graph)
    network = case.network().double()
    batch = case.batch(0)
    batch = batch._replace(support_x=batch.support_x.double(), query_x=batch.query_x.double())
    found = []
    for step in (ours(case, network), peers.plain_loop(PlainNetwork(network), case)):
        network.zero_grad()
        step(batch)
        found.append(gradient(network))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("create_graph", [True, False])
def test_arithmetic_is_that_of_the_plain_loop(create_graph: bool) -> None:
    case = Case("tiny", **TINY, create_graph=create_graph)
    network = case.network()
    with FlopCounterMode(display=False) as counter:
        peers.plain_loop(PlainNetwork(network), case)(case.batch(0))
    assert engine.count_flops(maml(case, network), case.batch(0)) == counter.get_total_flops()
    assert not any(p.grad is None or p.grad.isnan().any() for p in network.parameters())


def test_memory_is_the_most_that_was_held_at_once() -> None:
    def step() -> None:
        for _ in range(3):
            torch.ones(1_000_000).sum()  # four megabytes, let go of each time

    assert bytes_of(step, torch.device("cpu"))[1] == pytest.approx(4e6, rel=0.05)


def test_sides_take_turns_and_the_slow_sit_out() -> None:
    turns: list[str] = []

    def side(name: str):
        return lambda: turns.append(name)

    timings = take_turns({"a": side("a"), "b": side("b")}, repeats=3, seconds=60)
    assert turns == ["a", "a", "b", "b"] * 3
    assert isinstance(timings["a"], Timing)
    assert timings["a"].low <= timings["a"].median <= timings["a"].high
    turns.clear()
    take_turns({"a": side("a")}, repeats=3, seconds=0)
    assert turns == ["a", "a"]


def test_what_rounding_does_is_told_from_a_mistake() -> None:
    torch.manual_seed(0)
    case = Case("tiny", **TINY, inner_steps=2)
    network, batch = case.network(), case.batch(0)
    reference = Reference(case, network, batch)
    exact = meta_gradient(peers.plain_loop(PlainNetwork(network), case), network, batch)
    assert reference.agreement("ours", exact + 0.01 * exact.norm() / len(exact) ** 0.5) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(0.01, rel=1e-3),
    )
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_the_record_and_the_last_lines(compose_cfg: Compose, tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(network, case):
        raise ImportError("No module named 'broken'")

    def wrong(network, case):
        def step(batch) -> None:
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)

        return step

    monkeypatch.setitem(PEERS, "higher", broken)
    monkeypatch.setitem(PEERS, "torchopt", wrong)
    overrides = ("sides=[ours,loop,higher,torchopt]", "repeats=1")
    cfg = compose_cfg(*overrides, config="bench", small=False, folder=tmp_path)
    cfg.cases, cfg.growth, cfg.growth_from = {"tiny": TINY}, {"tasks": [1, 2]}, TINY
    bench.benchmark(cfg)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [row["order"] for row in record["rows"]] == [2, 1]
    for row in record["rows"]:
        assert set(row["sides"]) == {"ours", "loop"}
        assert row["left_out"]["higher"] == "No module named 'broken'"
        assert "its meta-gradient differs by" in row["left_out"]["torchopt"]
        assert all(math.isfinite(side["gflops"]) and side["peak_mb"] > 0 for side in row["sides"].values())
        assert all(side["difference"] < 1e-12 and side["rounding"] < 1e-3 for side in row["sides"].values())
    assert [row["value"] for row in record["growth"]] == [1, 2]
    assert (tmp_path / "growth.png").is_file()
    last = capsys.readouterr().out.strip().splitlines()[-2:]
    assert last[0].startswith("second order, cpu: ")
    assert last[1].startswith("first order, cpu: ")
    assert "x the fastest peer (loop)" in last[0]


@pytest.mark.parametrize("augmentation", [Identity(), RotateClasses()])
def test_drawing_is_timed_and_takes_time(augmentation: Augmentation) -> None:
    few, many = (
        drawing_ms(Case("tiny", **TINY | {"tasks": tasks}), augmentation, torch.device("cpu"), repeats=3)
        for tasks in (1, 256)
    )
    assert few.keys() == {"plain", "augmented"}
    assert all(0 < few[name] < many[name] for name in few)


def test_a_race(compose_cfg: Compose, tmp_path: Path, capsys) -> None:
    overrides = ["data=strokes", "data.split=official", "data.image_size=14", "data.val_episodes=4", "every=2"]
    cfg = compose_cfg(*overrides, "sides=[ours,loop]", "max_steps=4", config="race", small=False, folder=tmp_path)
    cfg.case, cfg.data.meta_batch_size = dict(blocks=2, hidden=4, image_size=14), 2
    race.race(cfg)
    curves = json.loads((tmp_path / "race.json").read_text())["curves"]
    assert [step for step, _, _ in curves["ours"]] == [2, 4]
    assert all(0 < first[1] < second[1] for first, second in curves.values())
    # The same weights, tasks and gradients: the same accuracy.
    assert [right for _, _, right in curves["ours"]] == pytest.approx([right for _, _, right in curves["loop"]])
    assert (tmp_path / "race.png").is_file()
    assert "ours: 0.95 not reached after" in capsys.readouterr().out


def test_who_has_arrived_runs_no_more(compose_cfg: Compose, tmp_path: Path) -> None:
    cfg = compose_cfg(
        "data=strokes", "data.split=official", "accuracy=0.01", config="race", small=False, folder=tmp_path
    )
    cfg.case, cfg.data.meta_batch_size, cfg.every, cfg.sides = dict(blocks=2, hidden=4), 2, 1, ["ours"]
    race.race(cfg)
    assert len(json.loads((tmp_path / "race.json").read_text())["curves"]["ours"]) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sides=[mine]", "sides=mine is not one of ours, compiled"),
        ("sides=[learn2learn]", "sides=learn2learn cannot take part: "),
        ("every=0", "every=0 must be positive"),
    ],
)
def test_refusals_of_a_race(compose_cfg: Compose, override: str, message: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn.algorithms", None)
    with pytest.raises(UserError, match=message):
        race.race(compose_cfg("data=strokes", "data.split=official", override, config="race", small=False))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sides=[mine]", "sides=mine is not one of ours, compiled"),
        ("only=[omniglot]", "only=omniglot is not one of omniglot_1_step"),
        ("orders=[3]", "orders=3 is not one of 1, 2"),
    ],
)
def test_refusals(compose_cfg: Compose, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.benchmark(compose_cfg(override, config="bench", small=False))


def test_too_many_blocks() -> None:
    with pytest.raises(UserError, match="after blocks=5 nothing is left of images with image_size=28"):
        Case("deep", blocks=5)
