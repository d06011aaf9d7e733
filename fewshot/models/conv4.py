"""The four-block convolutional network that the few-shot field compares on."""

import itertools

from torch import nn

from fewshot.errors import UserError
from fewshot.models.grey_convolution import GreyConv2d
from fewshot.models.norm_pool import BatchNormPoolReLU
from fewshot.models.normalization import normalization
from fewshot.models.parts import BodyAndHead
from fewshot.models.pooling import MaxPool2x2


class Conv4(BodyAndHead):
    """Four blocks of (3×3 convolution, normalisation, ReLU, 2×2 max-pooling), then a linear head.

    The embedding of O. Vinyals et al.: Matching Networks for One Shot Learning, NIPS 2016
    (https://arxiv.org/abs/1606.04080), with the head of MAML. 112,261 parameters for 28×28 grey images,
    64 channels and 5 classes. Weights start as PyTorch's layers start them.

    Pooling stands before the ReLU: the maximum commutes with it, values and gradients are the same, and
    the ReLU works on a quarter of the numbers.

    Args:
        input_shape: (C, H, W) of the images, H = W; given by the data.
        n_out: outputs of the head, one per class; given by the data.
        hidden: channels of every block, or of each of the four.
        norm: "batch" (statistics of the batch at hand, always: results are transductive), "group" (groups
            of 8 channels), "layer" (all channels of an image) or "none".
        pooled: how many blocks halve the image, from the first on; after fewer than four the embedding is larger.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_out: int,
        *,
        hidden: int | list[int] = 64,
        norm: str = "batch",
        pooled: int = 4,
    ) -> None:
        if len(input_shape) != 3:
            raise UserError(f"model=conv4 takes images (C, H, W), not inputs of shape {tuple(input_shape)}: model=mlp")
        channels = [hidden] * 4 if isinstance(hidden, int) else list(hidden)
        if len(channels) != 4 or min(channels) < 1:
            raise UserError(f"model.hidden={hidden} must be one number of at least 1, or four of them")
        if not 0 <= pooled <= 4:
            raise UserError(f"model.pooled={pooled} must be 0 to 4: there are four blocks")
        side = input_shape[-1] // 2**pooled
        if side < 1:
            raise UserError(
                f"model.pooled={pooled} halves images so often: data.image_size={input_shape[-1]} must be at least "
                f"{2**pooled}"
            )
        widths = [input_shape[0], *channels]
        blocks = (block(i, o, norm, pool=number < pooled) for number, (i, o) in enumerate(itertools.pairwise(widths)))
        super().__init__(nn.Sequential(*blocks, nn.Flatten()), nn.Linear(widths[-1] * side * side, n_out))
        self.map_shape = (widths[-1], side, side)  # of the body's output, before it is flattened


def block(in_channels: int, out_channels: int, norm: str, *, pool: bool = True, padding: int = 1) -> nn.Sequential:
    """One block: (M, in_channels, H, W) -> (M, out_channels, H // 2, W // 2), or H and W without pooling.

    Without padding images lose two rows and columns first.
    """
    convolution = (
        GreyConv2d(out_channels, padding=padding)
        if in_channels == 1
        else nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding)
    )
    if norm == "batch" and pool:
        return nn.Sequential(convolution, BatchNormPoolReLU(out_channels))
    return nn.Sequential(
        convolution,
        normalization(norm, out_channels),
        MaxPool2x2() if pool else nn.Identity(),
        nn.ReLU(),
    )
