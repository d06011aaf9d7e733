"""What the hand-written autograd functions of this folder share: their rule for `torch.vmap`."""

from collections.abc import Iterable

from torch import Tensor


def tasks_in_front(tasks: int, in_dims: Iterable[int | None], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Every tensor with the vectorised dimension first, repeated (without a copy) where it has none.

    A function whose formulas take any number of leading dimensions is vectorised by calling it on these:
    no pass over the data, and a tenth of the Python that `generate_vmap_rule` runs at every call.
    """
    return [
        tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(in_dims, tensors, strict=False)
    ]
