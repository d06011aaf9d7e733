"""External memories: addressing does what the papers say, rows and tasks know nothing of each other."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Compose, one_task, random_tasks
from torch import Tensor

from fewshot.algorithms.mann import MANN
from fewshot.algorithms.zero import Zero
from fewshot.build import build_learner
from fewshot.errors import UserError
from fewshot.memory.base import Memory
from fewshot.memory.dnc import DNC, allocate
from fewshot.memory.lrua import DECAY, LRUA
from fewshot.memory.network import MEMORIES, MemoryNetwork
from fewshot.memory.ntm import NTM
from fewshot.models.conv4 import Conv4
from fewshot.order_effect import order_effect
from fewshot.runs import train
from fewshot.tasks import Classification

ONE = torch.zeros(1, 1)  # what asks for one row
KINDS = pytest.mark.parametrize("kind", MEMORIES)
SURE = 50.0  # before a sigmoid or a softmax: yes


def say(memory: Memory, **parts: Tensor | float) -> Tensor:
    """What a controller would have to say: parts by name, zero where nothing is given."""
    pieces = []
    for name, shape in memory.sizes.items():
        pieces.append(torch.as_tensor(parts.get(name, 0.0)).expand(shape).reshape(-1))
    return torch.cat(pieces)[None]


@KINDS
def test_rows_know_nothing_of_each_other(kind: str) -> None:
    torch.manual_seed(0)
    network = MemoryNetwork(3, 2, memory=MEMORIES[kind](5, 4, 2), hidden=6)
    inputs = torch.randn(4, 3, 3)  # steps, rows, numbers
    together, alone = network.blank(inputs[0]), network.blank(inputs[0, 1:2])
    for x in inputs:
        both, together = network(x, together)
        own, alone = network(x[1:2], alone)
    torch.testing.assert_close(both[1:2], own)


@KINDS
def test_weights_are_shares_of_slots(kind: str) -> None:
    torch.manual_seed(0)
    memory = MEMORIES[kind](5, 4, 2)
    state = memory.blank(torch.zeros(3, 1))
    for _ in range(6):
        _, state = memory(3 * torch.randn(3, memory.interface), state)
        weights = state.weights if kind == "ntm" else state.read
        assert (weights >= 0).all()
        assert (weights.sum(-1) <= 1 + 1e-5).all()


def test_ntm_finds_by_content_what_it_wrote_slot_after_slot() -> None:
    memory, keys = NTM(6, 3, 1), torch.atanh(0.9 * torch.eye(3))
    state = memory.blank(ONE)
    move = {"gate": -SURE, "shift": torch.tensor([0.0, 0.0, SURE]), "sharpness": SURE}
    for key in keys:
        _, state = memory(say(memory, add=key, erase=SURE, **move), state)
    find = {"gate": SURE, "shift": torch.tensor([0.0, SURE, 0.0]), "strength": SURE, "erase": -SURE}
    read, _ = memory(say(memory, key=keys[1], **find), state)
    torch.testing.assert_close(read, torch.tensor([[0.0, 0.9, 0.0]]), atol=1e-3, rtol=0)


def test_lrua_finds_by_content_what_it_wrote() -> None:
    memory, keys = LRUA(6, 3, 1), torch.atanh(0.9 * torch.eye(3))
    state = memory.blank(ONE)
    for key in keys:
        _, state = memory(say(memory, key=key, gate=-SURE, strength=SURE), state)
    _, state = memory(say(memory, key=keys[1], gate=-SURE, strength=SURE), state)  # asking writes, too
    torch.testing.assert_close(state.read[0, 0, [1, 3]], torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)


def test_lrua_writes_where_nobody_looked_for_longest() -> None:
    memory, keys = LRUA(5, 3, 1), torch.atanh(0.9 * torch.eye(3))
    state = memory.blank(ONE)
    for slot, key in enumerate(keys):
        _, state = memory(say(memory, key=key, gate=-SURE, strength=SURE), state)
        torch.testing.assert_close(state.memory[0, slot], key.tanh())
    before = state
    _, state = memory(say(memory, key=keys[0], gate=SURE, strength=SURE), state)  # writes to slot 2, reads slot 0
    torch.testing.assert_close(state.usage, DECAY * before.usage + state.read.sum(1) + before.read.sum(1))
    for slot, key in ((3, -keys[0]), (4, -keys[1]), (1, -keys[2])):  # the free ones; then the longest left alone
        _, state = memory(say(memory, key=key, gate=-SURE, strength=SURE), state)
        torch.testing.assert_close(state.memory[0, slot], key.tanh())


def test_lrua_can_write_again_where_it_has_just_read() -> None:
    memory = LRUA(3, 2, 1)
    _, state = memory(say(memory, key=torch.tensor([1.0, 1.0]), gate=-SURE, strength=SURE), memory.blank(ONE))
    assert state.read[0, 0].argmax() == 0
    _, state = memory(say(memory, key=torch.tensor([1.0, 1.0]), gate=SURE, strength=SURE), state)
    torch.testing.assert_close(state.memory[0, 0], 2 * torch.tensor([1.0, 1.0]).tanh(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("shift", "place"), [(0, 4), (1, 0), (2, 1)])
def test_ntm_moves_its_heads_around_the_ring(shift: int, place: int) -> None:
    memory = NTM(5, 2, 1)
    shifts = torch.zeros(3)
    shifts[shift] = SURE
    _, state = memory(say(memory, gate=-SURE, shift=shifts), memory.blank(ONE))
    assert state.weights[0, 0].argmax() == place
    assert state.weights[0, 0, place] > 0.999


def test_ntm_sharpens_what_a_shift_has_spread() -> None:
    memory = NTM(5, 2, 1)
    shifts = torch.tensor([0.0, 1.0, 0.0])
    blunt, sharp = (
        memory(say(memory, gate=-SURE, shift=shifts, sharpness=value), memory.blank(ONE))[1].weights[0, 0, 0]
        for value in (-SURE, 5.0)
    )
    assert blunt < 0.6 < 0.99 < sharp


def test_ntm_stays_finite_however_sharp() -> None:
    memory = NTM(128, 2, 1)
    _, state = memory(say(memory, gate=SURE, sharpness=1000.0), memory.blank(ONE))
    torch.testing.assert_close(state.weights.sum(-1), torch.ones(1, 2))


def test_dnc_allocates_the_least_used_slots_first() -> None:
    found = allocate(torch.tensor([[0.9, 0.0, 0.5, 1.0]]))
    assert found.argmax() == 1
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), atol=1e-4, rtol=0)
    shared = allocate(torch.tensor([[0.5, 0.5, 1.0]]))
    torch.testing.assert_close(shared, torch.tensor([[0.5, 0.25, 0.0]]), atol=1e-4, rtol=0)


def test_dnc_reads_in_the_order_of_writing_and_back() -> None:
    memory = DNC(6, 2, 1)
    state = memory.blank(ONE)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    for vector in vectors:
        _, state = memory(say(memory, add=vector, erase=SURE, write=SURE, allocation=SURE, free=-SURE), state)
    quiet = {"write": -SURE, "free": -SURE, "erase": -SURE}
    first = {"read_key": vectors[0], "read_strength": SURE, "modes": torch.tensor([0.0, SURE, 0.0])}
    read, state = memory(say(memory, **quiet, **first), state)
    torch.testing.assert_close(read, vectors[:1], atol=1e-2, rtol=0)
    for direction, expected in ((2, 1), (2, 2), (0, 1), (0, 0)):
        modes = torch.zeros(3)
        modes[direction] = SURE
        read, state = memory(say(memory, modes=modes, **quiet), state)
        torch.testing.assert_close(read, vectors[expected : expected + 1], atol=1e-2, rtol=0)


def test_dnc_frees_what_it_has_read_and_needs_no_more() -> None:
    memory = DNC(4, 2, 1)
    vector = torch.tensor([1.0, 1.0])
    _, state = memory(say(memory, add=vector, write=SURE, allocation=SURE, free=-SURE), memory.blank(ONE))
    found = {"read_key": vector, "read_strength": SURE, "modes": torch.tensor([0.0, SURE, 0.0]), "write": -SURE}
    _, state = memory(say(memory, free=-SURE, **found), state)
    assert state.usage[0, 0] > 0.99
    _, state = memory(say(memory, free=SURE, **found), state)
    assert state.usage[0, 0] < 0.01


def mann(kind: str) -> MANN:
    torch.manual_seed(0)
    model = Conv4((1, 16, 16), 3, hidden=8, norm="group")
    return MANN(model, Classification(3), memory=kind, slots=6, width=5, read_heads=2, hidden=7).double()


@KINDS
def test_nothing_is_remembered_from_task_to_task(kind: str) -> None:
    algorithm, batch = mann(kind), random_tasks(2)
    params = dict(algorithm.named_parameters())
    first, second = one_task(batch, 0), one_task(batch, 1)
    (fresh,) = algorithm.fit(params, second.support_x, second.support_y)
    expected = algorithm.predict(fresh, second.query_x)
    (other,) = algorithm.fit(params, first.support_x, first.support_y)
    algorithm.predict(other, first.query_x)
    (again,) = algorithm.fit(params, second.support_x, second.support_y)
    assert torch.equal(algorithm.predict(again, second.query_x), expected)


@KINDS
def test_labels_are_what_it_remembers(kind: str) -> None:
    """Other labels on the same images: other answers."""
    algorithm, task = mann(kind), one_task(random_tasks())
    params = dict(algorithm.named_parameters())
    (one,) = algorithm.fit(params, task.support_x, task.support_y)
    (other,) = algorithm.fit(params, task.support_x, (task.support_y + 1) % 3)
    assert not torch.allclose(algorithm.predict(one, task.query_x), algorithm.predict(other, task.query_x))


def test_the_effect_of_the_order_is_reported(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("algo=mann", "trainer.max_steps=3", "episodes=40", folder=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())["order_effect"]
    assert found["episodes"] == 40
    assert abs(found["as_drawn"] - found["reversed"]) <= found["changed"] + 1e-6 <= 1


class First(Zero):
    """Answers every query with the label that was shown first."""

    ordered = True

    def fit(self, params, support_x, support_y, *, stage="test"):
        yield self.kind.encode(support_y[:1], stage)

    def predict(self, fitted, query_x):
        return fitted.expand(len(query_x), -1)


def test_the_effect_of_the_order_is_that_of_turning_it_around(compose_cfg: Compose) -> None:
    data, _ = build_learner(compose_cfg("episodes=20", "data.k_shot=2"))
    algorithm = First(torch.nn.Identity(), data.kind)
    batch = data.task_batch("test", 0)
    found = order_effect(algorithm, data)["order_effect"]
    changed = (batch.support_y[:, 0] != batch.support_y[:, -1]).double().mean().item()
    assert found == {
        "as_drawn": pytest.approx(0.2),
        "reversed": pytest.approx(0.2),
        "changed": pytest.approx(changed),
        "episodes": 20,
    }
    algorithm.ordered = False
    assert order_effect(algorithm, data) == {}


def test_refusals() -> None:
    model = Conv4((1, 28, 28), 5)
    with pytest.raises(UserError, match="algo.memory=tape is not one of lrua, ntm, dnc"):
        MANN(model, Classification(5), memory="tape", slots=1, width=1, read_heads=1, hidden=1)
    with pytest.raises(UserError, match="slots=2 must be at least read_heads=3"):
        LRUA(2, 4, 3)
    with pytest.raises(UserError, match="slots=0, width=4 and read_heads=1 must be at least 1"):
        NTM(0, 4, 1)
    with pytest.raises(UserError, match="algo.hidden=0 must be at least 1"):
        MANN(model, Classification(5), memory="ntm", slots=1, width=1, read_heads=1, hidden=0)
