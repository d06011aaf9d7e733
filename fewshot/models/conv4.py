"""The four-block convolutional network that the few-shot field compares on."""

import itertools

from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.models.normalization import normalization
from fewshot.models.pooling import MaxPool2x2


class Conv4(nn.Module):
    """Four blocks of (3×3 convolution, normalisation, ReLU, 2×2 max-pooling), then a linear head.

    The embedding of O. Vinyals et al.: Matching Networks for One Shot Learning, NIPS 2016
    (https://arxiv.org/abs/1606.04080), with the head of MAML. 112,261 parameters for 28×28 grey images,
    64 channels and 5 classes. Weights start as PyTorch's layers start them.

    Pooling stands before the ReLU: the maximum commutes with it, values and gradients are the same, and
    the ReLU works on a quarter of the numbers.

    Args:
        in_channels, image_size: C, and H = W, of the images; given by the data.
        n_out: outputs of the head, one per class.
        hidden: channels of every block.
        norm: "batch" (statistics of the batch at hand, always: results are transductive), "group" (groups
            of 8 channels), "layer" (all channels of an image) or "none".
    """

    def __init__(self, in_channels: int, image_size: int, n_out: int, *, hidden: int = 64, norm: str = "batch") -> None:
        super().__init__()
        side = image_size // 16
        if side < 1:
            raise UserError(f"model=conv4 halves images four times: data.image_size={image_size} must be at least 16")
        widths = [in_channels, hidden, hidden, hidden, hidden]
        self.blocks = nn.Sequential(*(_block(i, o, norm) for i, o in itertools.pairwise(widths)))
        self.head = nn.Linear(hidden * side * side, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Images (M, C, H, W) -> logits (M, n_out)."""
        return self.head(self.blocks(x).flatten(1))


def _block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        normalization(norm, out_channels),
        MaxPool2x2(),
        nn.ReLU(),
    )
