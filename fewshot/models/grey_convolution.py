"""The convolution that sees the images, of one channel, as a product of matrices."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 3  # of the kernel


class GreyConv2d(nn.Conv2d):
    """(M, 1, H, W) -> (M, out_channels, H', W'): a 3×3 `nn.Conv2d` of one input channel, values and parameters alike.

    With one channel there is little to multiply and much to write, and PyTorch's convolution spends several times what
    writing takes, above all where every task has weights of its own. Here the nine pixels under the kernel are columns
    of a matrix, and a row of ones takes the bias along: one product each for the value and for the gradient of the
    weights, tasks in front as the next layer wants them. Under autocast what comes out has 32 bits all the same, which
    saves the normalisation that follows a cast. On a GPU, and where weights have half precision, it is a convolution.

    Args:
        out_channels: channels of what comes out; weights start as those of `nn.Conv2d`.
        padding: rows and columns of zeros on each side.
    """

    def __init__(self, out_channels: int, *, padding: int) -> None:
        super().__init__(1, out_channels, kernel_size=_SIDE, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(M, 1, H, W) -> (M, out_channels, H', W')."""
        if x.is_cuda or x.dtype.itemsize < torch.float32.itemsize:
            return super().forward(x)
        assert self.bias is not None
        assert isinstance(self.padding, tuple)
        margin = self.padding[0]
        patches = F.pad(F.unfold(x, _SIDE, padding=margin), (0, 0, 0, 1), value=1.0)  # (M, 9 + 1, H' W')
        weight = torch.cat([self.weight.flatten(1), self.bias[:, None]], dim=1)  # (out_channels, 9 + 1)
        with torch.autocast(x.device.type, enabled=False):
            y = torch.bmm(weight.expand(len(x), -1, -1), patches)
        return y.unflatten(-1, [length + 2 * margin - _SIDE + 1 for length in x.shape[-2:]])
