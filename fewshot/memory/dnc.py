"""The Differentiable Neural Computer's memory: free slots are found by usage, and what followed what is kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.memory.base import Memory, above_one, content_weights


class DNCState(NamedTuple):
    """The memory, how it was used and in which order it was written."""

    memory: Tensor  # (B, S, W)
    usage: Tensor  # (B, S)
    precedence: Tensor  # (B, S), how much each slot was the last one written
    links: Tensor  # (B, S, S), [i, j]: how much i was written right after j
    read: Tensor  # (B, H, S), the latest weights of the heads that read
    write: Tensor  # (B, S), and of the one that writes


class DNC(Memory):
    """Differentiable Neural Computer.

    A. Graves et al.: Hybrid computing using a neural network with dynamic external memory. Nature 538, 2016.
    https://doi.org/10.1038/nature20101

    The head that writes goes by content or to free slots; those that read go by content, or to what was written before
    or after what they read last.

    All of the paper's memory; its controller is `MemoryNetwork`'s, of one layer.
    """

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The paper's interface vector ξ."""
        return {
            "read_key": (self.heads, self.width),
            "read_strength": (self.heads,),
            "write_key": (1, self.width),
            "write_strength": (1,),
            "erase": (self.width,),
            "add": (self.width,),
            "free": (self.heads,),
            "allocation": (),
            "write": (),
            "modes": (self.heads, 3),
        }

    def blank(self, like: Tensor) -> DNCState:
        """Zeros, unused, unlinked."""
        flat = (len(like), self.slots)
        return DNCState(
            memory=like.new_zeros((*flat, self.width)),
            usage=like.new_zeros(flat),
            precedence=like.new_zeros(flat),
            links=like.new_zeros((*flat, self.slots)),
            read=like.new_zeros((len(like), self.heads, self.slots)),
            write=like.new_zeros(flat),
        )

    def forward(self, interface: Tensor, state: DNCState) -> tuple[Tensor, DNCState]:
        """Free, write, link, read."""
        said = self.parts(interface)
        kept = (1 - said["free"].sigmoid()[..., None] * state.read).prod(1)  # (B, S)
        usage = (state.usage + state.write - state.usage * state.write) * kept
        write = self._write_weights(said, state.memory, usage)
        memory = state.memory * (1 - write[..., None] * said["erase"].sigmoid()[:, None])
        memory = memory + write[..., None] * said["add"][:, None]
        links, precedence = _link(state, write)
        read = self._read_weights(said, memory, links, state.read)
        return (read @ memory).flatten(1), DNCState(memory, usage, precedence, links, read, write)

    def _write_weights(self, said: dict[str, Tensor], memory: Tensor, usage: Tensor) -> Tensor:
        content = content_weights(said["write_key"], above_one(said["write_strength"]), memory)[:, 0]
        allocation = said["allocation"].sigmoid()[:, None]
        return said["write"].sigmoid()[:, None] * (allocation * allocate(usage) + (1 - allocation) * content)

    def _read_weights(self, said: dict[str, Tensor], memory: Tensor, links: Tensor, before: Tensor) -> Tensor:
        content = content_weights(said["read_key"], above_one(said["read_strength"]), memory)
        back, by_content, forth = said["modes"].softmax(-1).unsqueeze(-2).unbind(-1)  # (B, H, 1) each
        return back * (before @ links) + by_content * content + forth * (before @ links.mT)


def allocate(usage: Tensor) -> Tensor:
    """Where a free slot is: the least used first, others as far as those are used up: (B, S) -> (B, S)."""
    usage = 1e-6 + (1 - 1e-6) * usage
    ordered, order = usage.sort(dim=-1, stable=True)
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1].cumprod(-1)], dim=-1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ordered) * before)


def _link(state: DNCState, write: Tensor) -> tuple[Tensor, Tensor]:
    """Links and precedence after a write."""
    into, out_of = write[:, :, None], write[:, None, :]
    links = (1 - into - out_of) * state.links + into * state.precedence[:, None, :]
    links = links * (1 - torch.eye(write.shape[-1], dtype=write.dtype, device=write.device))
    precedence = (1 - write.sum(-1, keepdim=True)) * state.precedence + write
    return links, precedence
