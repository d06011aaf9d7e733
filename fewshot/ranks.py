"""What the processes of a run tell each other; a process alone has nothing to ask."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.aggregation import CatMetric


def alone() -> bool:
    """Whether no other process takes part."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def gathered(values: Tensor) -> Tensor:
    """Everybody's values, one process after the other: (n,) of the same length in each -> (processes * n,)."""
    if alone():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def mean_over_tasks(means: Sequence[Tensor], tasks: int) -> list[Tensor]:
    """The means over the tasks of all processes, in one message; nan where there are none.

    Args:
        means: of this process, over its own tasks; of the same shapes in every process.
        tasks: how many those are; where there are none the means are not looked at.
    """
    if alone():
        return list(means)
    count = torch.tensor([tasks], dtype=means[0].dtype, device=means[0].device)
    sums = [mean.detach().flatten() * tasks if tasks else torch.zeros_like(mean).flatten() for mean in means]
    message = torch.cat([*sums, count])
    dist.all_reduce(message)
    parts = (message[:-1] / message[-1]).split([mean.numel() for mean in means])
    return [part.view_as(mean).to(mean.dtype) for part, mean in zip(parts, means, strict=True)]


def in_order(metric: CatMetric, width: int) -> Tensor:
    """The rows that all processes have added, by their first number: (rows, width) float64; the metric is emptied."""
    metric.update(torch.empty(0))  # a process may have had no task
    rows = metric.compute().view(-1, width).double()
    metric.reset()
    return rows[rows[:, 0].argsort()]
