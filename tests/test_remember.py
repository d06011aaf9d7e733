"""Copy and recall: the sequences are the papers', and a memory learns to answer them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Compose
from omegaconf import DictConfig

from fewshot.data.sequence_tasks import associative_recall, copy
from fewshot.errors import UserError
from fewshot.remember import drawer, learn, longest_at, network_for, remember, respond, wrong_bits


def test_copy_shows_vectors_then_a_mark_then_nothing() -> None:
    shown, answers = copy(torch.Generator().manual_seed(0), 3, bits=4, length=5)
    assert shown.shape == (11, 3, 5)
    assert torch.equal(shown[:5, :, :4], answers)
    assert torch.equal(shown[5], torch.eye(5)[4].expand(3, 5))
    assert not shown[6:].any()
    assert 0.2 < answers.mean() < 0.8


def test_recall_asks_for_the_item_after_the_one_that_is_shown() -> None:
    shown, answers = associative_recall(torch.Generator().manual_seed(0), 50, bits=6, items=4)
    assert shown.shape == (4 * 4 + 4 + 1 + 3, 50, 8)
    assert not shown[-3:].any()
    asked = shown[17:20, :, :6]
    for row in range(50):
        items = [shown[4 * i + 1 : 4 * i + 4, row, :6] for i in range(4)]
        (place,) = (i for i in range(3) if torch.equal(items[i], asked[:, row]))
        assert torch.equal(answers[:, row], items[place + 1])
    assert torch.equal(shown[:, 0, 6].nonzero().flatten(), torch.tensor([0, 4, 8, 12]))
    assert torch.equal(shown[:, 0, 7].nonzero().flatten(), torch.tensor([16, 20]))


def small(compose_cfg: Compose, memory: str, steps: int) -> DictConfig:
    # A controller of eight units cannot hold twelve bits itself.
    sizes = ("bits=4", "longest=3", "slots=8", "width=6", "hidden=8", "batch=16", "lr=0.01", f"steps={steps}")
    return compose_cfg(f"memory={memory}", *sizes, config="remember", small=False)


@pytest.mark.parametrize("memory", ["ntm", "dnc"])
def test_a_network_learns_to_copy_by_its_memory(compose_cfg: Compose, memory: str, monkeypatch) -> None:
    cfg = small(compose_cfg, memory, steps=800)
    draw = drawer(cfg)
    torch.manual_seed(cfg.seed)
    network, test = network_for(cfg, draw), draw(torch.Generator().manual_seed(1), 500, 3)
    learn(cfg, network, draw)
    with torch.no_grad():
        assert wrong_bits(respond(network, test), test) < 0.05
        remember_nothing = lambda said, state: (torch.zeros(500, network.memory.width), state)  # noqa: E731
        monkeypatch.setattr(network.memory, "forward", remember_nothing)
        assert wrong_bits(respond(network, test), test) > 0.3


@pytest.mark.parametrize("memory", ["lrua", "ntm", "dnc"])
def test_no_memory_stands_in_the_way_of_what_a_controller_can_hold(compose_cfg: Compose, memory: str) -> None:
    sizes = ("bits=3", "longest=2", "slots=8", "width=6", "hidden=32", "batch=16", "lr=0.01", "steps=500")
    assert remember(compose_cfg(f"memory={memory}", *sizes, config="remember", small=False)) < 0.1


def test_sequences_grow_from_the_two_shortest_lengths(compose_cfg: Compose) -> None:
    cfg = compose_cfg("shortest=2", "longest=6", "grow_steps=8", config="remember", small=False)
    assert [longest_at(step, cfg) for step in range(1, 11)] == [3, 3, 4, 4, 4, 5, 5, 5, 6, 6]
    cfg.longest = 2
    assert {longest_at(step, cfg) for step in range(1, 11)} == {2}
    cfg.longest, cfg.grow_steps = 6, 0
    assert longest_at(1, cfg) == 6


def test_the_record_says_what_was_run(compose_cfg: Compose, tmp_path: Path) -> None:
    wrong = remember(small(compose_cfg, "ntm", steps=2))
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["wrong_bits"] == wrong
    assert 0.3 < wrong < 0.7  # two steps teach nothing
    assert record["config"]["memory"] == "ntm"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=sort", "task=sort is not one of copy, recall"),
        ("memory=tape", "memory=tape is not one of lrua, ntm, dnc"),
        ("shortest=0", "task=copy needs shortest=0 to be at least 1 and at most longest=10"),
        ("task=recall", "task=recall needs shortest=1 to be at least 2 and at most longest=10"),
        ("grow_steps=2001", "grow_steps=2001 must be from 0 to steps=2000"),
        ("grad_clip=null", "grad_clip=None must be positive"),
        ("slots=0", "slots=0, width=20 and read_heads=1 must be at least 1"),
    ],
)
def test_refusals(compose_cfg: Compose, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        remember(compose_cfg(override, config="remember", small=False))
