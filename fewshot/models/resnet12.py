"""The residual network of twelve layers, the few-shot field's larger one."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.models.normalization import normalization
from fewshot.models.parts import BodyAndHead
from fewshot.models.pooling import MaxPool2x2

_SLOPE = 0.1  # of the leaky ReLUs


class ResNet12(BodyAndHead):
    """Four residual blocks, each halving the image, then a linear head.

    K. Lee, S. Maji, A. Ravichandran, S. Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019.
    https://arxiv.org/abs/1904.03758. In structure the network of B. Oreshkin, P. Rodríguez López, A. Lacoste: TADAM.
    NeurIPS 2018, which has 64, 128, 256 and 512 channels. Before the head 12,424,320 parameters for colour images, with
    TADAM's widths 7,996,800. Convolutions start by He's normal distribution over the outputs, as in the authors' code.

    Differs from it in that it regularises by nothing: no DropBlock, which would draw masks inside a function that is
    vectorised over tasks and differentiated twice; their weight decay is a setting of the outer optimiser.

    Pooling stands before the last leaky ReLU of a block: the maximum commutes with it, values and gradients are the
    same.

    Args:
        input_shape: (C, H, W) of the images, H = W; given by the data.
        n_out: outputs of the head, one per class; given by the data.
        hidden: channels of each of the four blocks.
        norm: "batch" (statistics of the batch at hand: results are transductive, but by running statistics), "group"
            (groups of 8 channels), "layer" (all channels of an image) or "none" (convolutions have a bias then).
        average: the mean over the last maps is the embedding; False: the maps themselves are.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_out: int,
        *,
        hidden: Sequence[int] = (64, 160, 320, 640),
        norm: str = "batch",
        average: bool = False,
    ) -> None:
        if len(input_shape) != 3:
            raise UserError(
                f"model=resnet12 takes images (C, H, W), not inputs of shape {tuple(input_shape)}: model=mlp"
            )
        if len(hidden) != 4 or min(hidden) < 1:
            raise UserError(f"model.hidden={list(hidden)} must be four numbers of at least 1, one for each block")
        side = input_shape[-1] // 2**4
        if side < 1:
            raise UserError(f"model=resnet12 halves images four times: data.image_size={input_shape[-1]} is below 16")
        blocks = [Residual(i, o, norm) for i, o in itertools.pairwise([input_shape[0], *hidden])]
        end = [nn.AdaptiveAvgPool2d(1)] if average else []
        side = 1 if average else side
        super().__init__(nn.Sequential(*blocks, *end, nn.Flatten()), nn.Linear(hidden[-1] * side * side, n_out))
        self.map_shape = (hidden[-1], side, side)  # of the body's output, before it is flattened


class Residual(nn.Module):
    """Three 3×3 convolutions, each normalised, beside one of 1×1: (M, in, H, W) -> (M, out, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(in_channels, out_channels, 3, norm),
            nn.LeakyReLU(_SLOPE),
            *_convolution(out_channels, out_channels, 3, norm),
            nn.LeakyReLU(_SLOPE),
            *_convolution(out_channels, out_channels, 3, norm),
        )
        self.shortcut = nn.Sequential(*_convolution(in_channels, out_channels, 1, norm))
        self.pool = MaxPool2x2()

    def forward(self, x: Tensor) -> Tensor:
        """(M, in, H, W) -> (M, out, H // 2, W // 2)."""
        return F.leaky_relu(self.pool(self.residual(x) + self.shortcut(x)), _SLOPE)


def _convolution(in_channels: int, out_channels: int, size: int, norm: str) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=norm == "none")
    nn.init.kaiming_normal_(convolution.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return convolution, normalization(norm, out_channels)
