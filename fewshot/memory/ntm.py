"""The Neural Turing Machine's addressing: by content, then from where the head stood, shifted and sharpened."""

from typing import NamedTuple

from torch import Tensor

from fewshot.memory.base import Memory, above_one, content_weights


class NTMState(NamedTuple):
    """The memory and where the heads stand."""

    memory: Tensor  # (B, S, W)
    weights: Tensor  # (B, H + 1, S): of the heads that read, then of the one that writes
    read: Tensor  # (B, H, W), what was read last


class NTM(Memory):
    """Neural Turing Machine.

    A. Graves, G. Wayne, I. Danihelka: Neural Turing Machines. 2014. https://arxiv.org/abs/1410.5401

    A head's place is interpolated between where its key points and where it stood, shifted by −1, 0 or 1 slots, and
    sharpened. One head writes (erases, then adds); the others read what it leaves, at places chosen before.

    The paper learns what a blank memory holds and where heads stand; here it is zero, and they at the first slot.
    """

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Of every head a key, its strength, the gate, three shifts and the sharpness; of the last what it writes."""
        heads = self.heads + 1
        return {
            "key": (heads, self.width),
            "strength": (heads,),
            "gate": (heads,),
            "shift": (heads, 3),
            "sharpness": (heads,),
            "erase": (self.width,),
            "add": (self.width,),
        }

    def blank(self, like: Tensor) -> NTMState:
        """Zeros, heads at the first slot."""
        rows = len(like)
        weights = like.new_zeros((rows, self.heads + 1, self.slots))
        weights[..., 0] = 1
        read = like.new_zeros((rows, self.heads, self.width))
        return NTMState(like.new_zeros((rows, self.slots, self.width)), weights, read)

    def forward(self, interface: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """Address, write, read."""
        said = self.parts(interface)
        weights = self._address(said, state)
        write = weights[:, -1, :, None]  # (B, S, 1)
        kept = state.memory * (1 - write * said["erase"].sigmoid()[:, None])
        memory = kept + write * said["add"].tanh()[:, None]
        read = weights[:, :-1] @ memory
        return read.flatten(1), NTMState(memory, weights, read)

    def _address(self, said: dict[str, Tensor], state: NTMState) -> Tensor:
        """The places of all heads: (B, H + 1, S)."""
        content = content_weights(said["key"].tanh(), above_one(said["strength"]) - 1, state.memory)
        gate = said["gate"].sigmoid()[..., None]
        gated = gate * content + (1 - gate) * state.weights
        back, stay, forth = said["shift"].softmax(-1).unsqueeze(-2).unbind(-1)  # (B, H + 1, 1) each
        shifted = back * gated.roll(-1, -1) + stay * gated + forth * gated.roll(1, -1)
        # Powers, divided by their sum; by way of logarithms, since the power of a share of 128 slots underflows.
        return (above_one(said["sharpness"])[..., None] * (shifted + 1e-12).log()).softmax(-1)
