"""Means and variances over training, by which batch normalisation can go in place of those of the batch."""

import torch
from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.models.normalization import BatchNorm

_NAMES = ("mean", "variance")  # of a layer, in the order that `observed` tells them


class RunningStatistics(nn.Module):
    """What the batch-normalisation layers of a network have seen on average; several rows where it goes through states.

    S. Ioffe, C. Szegedy: Batch Normalization, ICML 2015. The layers themselves keep nothing: what they are to go by
    is handed to them along with the parameters, so that all of it can be vectorised and differentiated.

    Differs from PyTorch's in that the variance is that of the batch, not of the population that it was drawn from.

    Args:
        network: whose layers; the names are those of `network.named_modules()`.
        momentum: how much of the average a meta-batch replaces, above 0 and at most 1; None: nothing is kept.
        rows: states of the network that have averages of their own, as after each inner step.
    """

    def __init__(self, network: nn.Module, momentum: float | None, rows: int = 1) -> None:
        super().__init__()
        if momentum is not None and not 0 < momentum <= 1:
            raise UserError(
                f"algo.running_momentum={momentum} must be above 0 and at most 1, or null for no running statistics"
            )
        self.momentum = momentum
        self.muted = False  # True: as if nothing were kept; evaluation asks for it, to tell both numbers
        self._buffer_of: dict[str, str] = {}  # mean or variance of a layer, by its name -> buffer (rows, C)
        if momentum is None:
            return
        for place, layer in network.named_modules():
            if isinstance(layer, BatchNorm):
                for name, start in zip(_NAMES, (torch.zeros, torch.ones), strict=True):
                    buffer = f"{place}.{name}".replace(".", "/")
                    self._buffer_of[f"{place}.{name}"] = buffer
                    self.register_buffer(buffer, start(rows, layer.num_features))

    def __len__(self) -> int:
        """Averages that are gone by; 0 for a network without such layers."""
        return 0 if self.muted else len(self._buffer_of)

    def row(self, number: int) -> Params:
        """What a state's layers go by, each (C,): put it beside the parameters of `torch.func.functional_call`."""
        if self.muted:
            return {}
        return {name: self.get_buffer(buffer)[number] for name, buffer in self._buffer_of.items()}

    def table(self, seen: list[dict[str, tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
        """What `observed` found in every state, as `absorb` takes it: name -> (rows, C)."""
        named = [
            {f"{place}.{name}": value for place, pair in row.items() for name, value in zip(_NAMES, pair, strict=True)}
            for row in seen
        ]
        return {name: torch.stack([row[name] for row in named]).detach() for name in self._buffer_of}

    def absorb(self, table: dict[str, Tensor]) -> None:
        """Moves the averages towards those of a meta-batch."""
        for name, value in table.items():
            assert self.momentum is not None  # or the table is empty
            buffer = self.get_buffer(self._buffer_of[name])
            buffer.lerp_(value.to(buffer), self.momentum)
