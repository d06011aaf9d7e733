"""A published data set put together: one array, filled class by class from whatever the images are read from."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot.data.images import ImageSet
from fewshot.data.published import Lists
from fewshot.errors import UserError

Pixels = NDArray[np.uint8]


class Assembly:
    """Takes a published set's images in any order; the only copy of them is the array that they end in.

    Args:
        lists: the classes of every split; their images will lie in this order.
        per_class: images that the published set has of every class.
        image_size: H = W; images of another size are brought to it with Lanczos filtering.
        place: what is read, for errors.
    """

    def __init__(self, lists: Lists, per_class: int, image_size: int, place: str) -> None:
        if image_size < 1:
            raise UserError(f"data.image_size={image_size} must be at least 1")
        self.lists, self.per_class, self.place = lists, per_class, place
        self.counts = {name: 0 for names in lists.values() for name in names}
        self._start = {name: number * per_class for number, name in enumerate(self.counts)}
        self._images = np.empty((len(self.counts) * per_class, 3, image_size, image_size), dtype=np.uint8)

    def add(self, name: str, images: Pixels) -> None:
        """More images of a class, after those that are there: (n, 3, H, W)."""
        first, size = self.counts[name], self._images.shape[-1]
        self.counts[name] += len(images)
        if self.counts[name] > self.per_class:
            refuse_other_counts(self.counts, self.per_class, self.place, at_most=True)
        target = self._images[self._start[name] + first :][: len(images)]
        if images.shape[2:] == (size, size):
            target[:] = images
            return
        for place, image in zip(target, images, strict=True):
            resized = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            place[:] = np.asarray(resized.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)

    def finish(self) -> ImageSet:
        """The data set.

        Raises:
            UserError: a class has fewer images than the published set, or none.
        """
        refuse_other_counts(self.counts, self.per_class, self.place)
        parts = tuple(split for split, names in self.lists.items() for _ in names)
        return ImageSet(torch.from_numpy(self._images), tuple(self.counts.values()), tuple(self.counts), parts)


def refuse_other_counts(counts: Mapping[str, int], per_class: int, place: str, *, at_most: bool = False) -> None:
    """Scores are comparable on the published images alone: every class has as many as there.

    Args:
        at_most: fewer are no mistake yet.
    """
    wrong = [name for name, n in counts.items() if n > per_class or (n < per_class and not at_most)]
    if wrong:
        raise UserError(
            f"{place} has {counts[wrong[0]]} images of class {wrong[0]} where the published data set has {per_class} "
            f"of each of {len(counts)} classes ({len(wrong)} have another number): fetch it again"
        )
