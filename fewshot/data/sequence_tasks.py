"""Copy and associative recall: sequences that ask for what was shown before.

A. Graves, G. Wayne, I. Danihelka: Neural Turing Machines. 2014, §4.1 and §4.3. https://arxiv.org/abs/1410.5401
"""

from typing import NamedTuple

import torch
from torch import Tensor

ITEM_LENGTH = 3  # vectors of an item, as in the paper


class Sequences(NamedTuple):
    """B sequences of the same length, time in front; nothing is shown while the answer is due."""

    shown: Tensor  # (time, B, inputs) of 0 and 1
    answers: Tensor  # (due, B, bits) of 0 and 1, for the last `due` steps


def copy(generator: torch.Generator, batch: int, *, bits: int, length: int) -> Sequences:
    """`length` random vectors, an end mark on a channel of its own, then the same vectors are due."""
    vectors = _bits(generator, length, batch, bits)
    shown = torch.zeros(2 * length + 1, batch, bits + 1)
    shown[:length, :, :bits] = vectors
    shown[length, :, bits] = 1
    return Sequences(shown, vectors)


def associative_recall(generator: torch.Generator, batch: int, *, bits: int, items: int) -> Sequences:
    """Two or more items of a few vectors, a mark before each; one of them between query marks; the next one is due."""
    shown = torch.zeros(items * (ITEM_LENGTH + 1) + 2 * (ITEM_LENGTH + 1), batch, bits + 2)
    vectors = _bits(generator, items * ITEM_LENGTH, batch, bits).unflatten(0, (items, ITEM_LENGTH))
    for number, item in enumerate(vectors):
        start = number * (ITEM_LENGTH + 1)
        shown[start, :, bits] = 1
        shown[start + 1 : start + 1 + ITEM_LENGTH, :, :bits] = item
    asked = torch.randint(items - 1, (batch,), generator=generator)
    rows, start = torch.arange(batch), items * (ITEM_LENGTH + 1)
    shown[start, :, bits + 1] = 1
    shown[start + 1 : start + 1 + ITEM_LENGTH, :, :bits] = vectors[asked, :, rows].transpose(0, 1)
    shown[start + 1 + ITEM_LENGTH, :, bits + 1] = 1
    return Sequences(shown, vectors[asked + 1, :, rows].transpose(0, 1))


def _bits(generator: torch.Generator, length: int, batch: int, bits: int) -> Tensor:
    return torch.randint(2, (length, batch, bits), generator=generator).float()
