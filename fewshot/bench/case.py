"""What is timed: one outer step of MAML, on tasks and a network of stated size."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.models.conv4 import block
from fewshot.models.parts import BodyAndHead
from fewshot.tasks import TaskBatch


@dataclass(frozen=True)
class Case:
    """An outer step.

    Args:
        name: in the record.
        tasks, n_way, k_shot, q_query: of the meta-batch.
        inner_steps, inner_lr: of the inner loop.
        create_graph: second order, or first.
        blocks, hidden, padding: of the network, blocks of (convolution, batch normalisation, ReLU, max-pooling).
        image_size: pixels a side, one channel.
    """

    name: str
    tasks: int = 32
    n_way: int = 5
    k_shot: int = 1
    q_query: int = 1
    inner_steps: int = 1
    inner_lr: float = 0.4
    create_graph: bool = True
    blocks: int = 4
    hidden: int = 64
    padding: int = 1
    image_size: int = 28

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(
                f"case {self.name}: after blocks={self.blocks} nothing is left of images with "
                f"image_size={self.image_size}: fewer blocks, or larger images"
            )

    @property
    def side(self) -> int:
        """Of the last feature map, in pixels."""
        side = self.image_size
        for _ in range(self.blocks):
            side = (side - 2 + 2 * self.padding) // 2
        return side

    def network(self) -> BodyAndHead:
        """Ours, with new weights."""
        widths = [1] + [self.hidden] * self.blocks
        layers = [block(i, o, "batch", padding=self.padding) for i, o in itertools.pairwise(widths)]
        body = nn.Sequential(*layers, nn.Flatten())
        return BodyAndHead(body, nn.Linear(self.hidden * self.side**2, self.n_way))

    def batch(self, seed: int) -> TaskBatch:
        """Random images and labels: what is in them does not change the time."""
        draw = torch.Generator().manual_seed(seed)
        tensors = []
        for per_class in (self.k_shot, self.q_query):
            shape = (self.tasks, self.n_way * per_class, 1, self.image_size, self.image_size)
            tensors += [torch.rand(shape, generator=draw), torch.arange(self.n_way).repeat(self.tasks, per_class)]
        return TaskBatch(*tensors)


class PlainNetwork(nn.Module):
    """What anyone writes first: PyTorch's own layers in the usual order, on the parameters of a network of ours."""

    def __init__(self, network: BodyAndHead) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for part in list(network.body.children())[:-1]:
            assert isinstance(part, nn.Sequential)
            convolution, norm = part[0], part[1]
            assert isinstance(norm, nn.BatchNorm2d)
            plain = nn.BatchNorm2d(norm.num_features, track_running_stats=False)
            plain.weight, plain.bias = norm.weight, norm.bias
            layers += [convolution, plain, nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = network.head

    def forward(self, x: Tensor) -> Tensor:
        """Images (M, C, H, W) -> logits (M, n_out)."""
        return self.head(self.body(x))
