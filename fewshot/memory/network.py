"""A recurrent controller and an external memory."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot.memory.base import Memory, State
from fewshot.memory.dnc import DNC
from fewshot.memory.lrua import LRUA
from fewshot.memory.ntm import NTM
from fewshot.models.recurrent import LSTMCell

MEMORIES: dict[str, type[Memory]] = {"lrua": LRUA, "ntm": NTM, "dnc": DNC}


class NetworkState(NamedTuple):
    """What is carried from step to step."""

    hidden: Tensor  # (B, hidden)
    cell: Tensor  # (B, hidden)
    read: Tensor  # (B, heads * width), what the memory gave last
    memory: State


class MemoryNetwork(nn.Module):
    """An LSTM that reads and writes an external memory at every step.

    The controller sees the input and what was read at the step before; the answer is linear in its state and in what
    is read now (A. Graves et al.: Neural Turing Machines, 2014; Hybrid computing …, 2016).

    Args:
        inputs, outputs: numbers in and out at a step.
        memory: what it writes to and reads from.
        hidden: units of the controller.
    """

    def __init__(self, inputs: int, outputs: int, *, memory: Memory, hidden: int) -> None:
        super().__init__()
        found = memory.heads * memory.width
        self.memory = memory
        self.controller = LSTMCell(inputs + found, hidden)
        self.say = nn.Linear(hidden, memory.interface)
        self.answer = nn.Linear(hidden + found, outputs)
        with torch.no_grad():
            for name, bias in memory.parts(self.say.bias[None]).items():
                if name.endswith("strength"):
                    bias += memory.first_strength

    def blank(self, like: Tensor) -> NetworkState:
        """Before the first step, with nothing remembered: for the rows of `like` (B, …), of its type and device."""
        hidden = like.new_zeros((len(like), self.controller.hidden_size))
        read = like.new_zeros((len(like), self.memory.heads * self.memory.width))
        return NetworkState(hidden, hidden, read, self.memory.blank(like))

    def forward(self, x: Tensor, state: NetworkState) -> tuple[Tensor, NetworkState]:
        """One step: (B, inputs) -> (B, outputs), and the state after it."""
        hidden, cell = self.controller(torch.cat([x, state.read], dim=-1), (state.hidden, state.cell))
        read, memory = self.memory(self.say(hidden), state.memory)
        return self.answer(torch.cat([hidden, read], dim=-1)), NetworkState(hidden, cell, read, memory)
