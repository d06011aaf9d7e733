"""External memories of memory-augmented networks: matrices of slots that a controller reads and writes by attention.

All are functions of (interface, state) with a batch in front, B rows that know nothing of each other; what a
controller has to say at a step is one vector, `interface` numbers long, which the memory takes apart.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.errors import UserError

State = Any  # a named tuple of tensors, B in front of each


class Memory(nn.Module, ABC):
    """A memory of `slots` rows of `width` numbers, with `heads` heads that read it.

    Args:
        slots, width: of the matrix.
        heads: that read; what writes is the memory's own affair.
    """

    first_strength: float = 0.0  # what a controller says of strengths before it has learned, on average

    def __init__(self, slots: int, width: int, heads: int) -> None:
        super().__init__()
        if min(slots, width, heads) < 1:
            raise UserError(f"a memory's slots={slots}, width={width} and read_heads={heads} must be at least 1")
        self.slots, self.width, self.heads = slots, width, heads

    @property
    @abstractmethod
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The parts of what a controller says, by name, and their shapes."""

    @property
    def interface(self) -> int:
        """Numbers that a controller says at a step."""
        return sum(math.prod(shape) for shape in self.sizes.values())

    def parts(self, interface: Tensor) -> dict[str, Tensor]:
        """(B, interface) -> name -> (B, *shape)."""
        pieces = interface.split([math.prod(shape) for shape in self.sizes.values()], dim=-1)
        return {
            name: piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for (name, shape), piece in zip(self.sizes.items(), pieces, strict=True)
        }

    @abstractmethod
    def blank(self, like: Tensor) -> State:
        """What nothing has been written to: for B rows, as many as `like` (B, …) has, of its type and device."""

    @abstractmethod
    def forward(self, interface: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: (B, interface) -> what was read (B, heads * width), and the state after it."""


def similarity(keys: Tensor, memory: Tensor) -> Tensor:
    """Cosine of every key and every slot: (B, H, W), (B, S, W) -> (B, H, S).

    Rows of less than a thousandth in length count as blank, with cosines near 0: a trace has no direction.
    """
    return _directions(keys) @ _directions(memory).mT


def _directions(rows: Tensor) -> Tensor:
    return rows * (rows.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def content_weights(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    """Attention by content, sharper for greater strengths: (B, H, W), (B, H), (B, S, W) -> (B, H, S)."""
    return (strengths[..., None] * similarity(keys, memory)).softmax(-1)


def above_one(x: Tensor) -> Tensor:
    """Any number -> one of at least 1."""
    return 1 + F.softplus(x)
