"""Least-recently-used access: writes go where the last read was, or where nobody has looked for longest."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.errors import UserError
from fewshot.memory.base import Memory, above_one, content_weights

DECAY = 0.95  # γ of the paper: what is left of a slot's usage after a step


class LRUAState(NamedTuple):
    """The memory and how it was used."""

    memory: Tensor  # (B, S, W)
    read: Tensor  # (B, H, S), the latest weights
    usage: Tensor  # (B, S)


class LRUA(Memory):
    """Least Recently Used Access.

    A. Santoro, S. Bartunov, M. Botvinick, D. Wierstra, T. Lillicrap: Meta-Learning with Memory-Augmented Neural
    Networks. ICML 2016. https://proceedings.mlr.press/v48/santoro16.html

    Every head writes its key, before it reads by it: to the slot that it read at the step before, or to one of
    the least used; a gate decides. Usage fades by `DECAY` a step.

    Differs from the paper in that each head has a least used slot of its own, where there all share them; that all
    of these are wiped at every step, where there one is, so that about slots / heads steps can be remembered; and that
    attention by content has a strength, as in the Neural Turing Machine, which starts near 11: cosines alone cannot
    tell slots apart.

    Args:
        slots, width, heads: as in `Memory`; heads write too.
    """

    # Cosines of what has not been learned to be told apart differ by little: at the strengths around 1 that a linear
    # layer starts with every slot is read alike, and nothing points to any.
    first_strength = 10.0

    def __init__(self, slots: int, width: int, heads: int) -> None:
        super().__init__(slots, width, heads)
        if heads > slots:
            raise UserError(f"slots={slots} must be at least read_heads={heads}: each head writes to a slot of its own")

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """A key, its strength and the gate of every head."""
        return {"key": (self.heads, self.width), "strength": (self.heads,), "gate": (self.heads,)}

    def blank(self, like: Tensor) -> LRUAState:
        """Zeros; the first slots are the first to be written."""
        rows = len(like)
        return LRUAState(
            like.new_zeros((rows, self.slots, self.width)),
            like.new_zeros((rows, self.heads, self.slots)),
            torch.linspace(0, 1e-3, self.slots, dtype=like.dtype, device=like.device).expand(rows, -1),
        )

    def forward(self, interface: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """Wipe, write, read."""
        said = self.parts(interface)
        keys, gate = said["key"].tanh(), said["gate"].sigmoid()[..., None]
        order = state.usage.argsort(dim=-1, stable=True)[:, : self.heads]  # (B, H): each head has a slot of its own
        unused = F.one_hot(order, self.slots).to(keys.dtype)  # (B, H, S)
        write = gate * state.read + (1 - gate) * unused
        memory = state.memory * (1 - unused.sum(1)[..., None]) + write.mT @ keys
        read = content_weights(keys, above_one(said["strength"]), memory)
        usage = DECAY * state.usage + read.sum(1) + write.sum(1)
        return (read @ memory).flatten(1), LRUAState(memory, read, usage)
