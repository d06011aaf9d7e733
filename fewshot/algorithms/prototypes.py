"""The mean embedding of every class."""

from torch import Tensor


def prototypes(embeddings: Tensor, classes: Tensor) -> Tensor:
    """(M, D) and one-hot labels (M, N) -> the mean of each class (N, D). Every class must occur."""
    of_class = classes.to(embeddings.dtype)
    return of_class.mT @ embeddings / of_class.sum(0)[:, None]
