"""Draws tasks as indices, a whole meta-batch at a time, from (seed, split, step) alone.

Whoever asks for step 17 of a split gets the same tasks: any number of workers, devices or restarts, in any
order. Nothing here touches an image, so a draw costs a fraction of a millisecond per task.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import UserError
from fewshot.tasks import BLOCK

_STREAMS = {"train": 1, "val": 2, "test": 3}


class TaskIndex(NamedTuple):
    """T tasks as indices into the list of all images, class after class."""

    support_i: Tensor  # (T, N*K) int64
    support_y: Tensor  # (T, N*K) int64
    query_i: Tensor  # (T, N*Q) int64
    query_y: Tensor  # (T, N*Q) int64


class TaskShape(NamedTuple):
    """N ways, K shots, Q queries per class."""

    n_way: int
    k_shot: int
    q_query: int


def check_shape(shape: TaskShape, split: str, counts: Mapping[str, int], keys: Sequence[str] | None = None) -> None:
    """Refuses tasks that the split cannot fill.

    Args:
        counts: the images of each of its classes, by name.
        keys: the three of the configuration that say the shape; None: those of the split.
    """
    n_way, k_shot, q_query = shape
    train = ("data.train_n_way", "data.train_k_shot", "data.q_query")
    ways, shots, queries = keys or (train if split == "train" else ("data.n_way", "data.k_shot", "data.eval_q_query"))
    if n_way < 2 or k_shot < 1 or q_query < 1:
        raise UserError(
            f"a task needs {ways} >= 2, {shots} >= 1 and {queries} >= 1, not {n_way}, {k_shot} and {q_query}"
        )
    if n_way > len(counts):
        raise UserError(f"{ways}={n_way} but split '{split}' has {len(counts)} classes: lower {ways}")
    smallest = min(counts, key=lambda name: counts[name])
    if k_shot + q_query > counts[smallest]:
        wanted = f"{shots}={k_shot} + {queries}={q_query} = {k_shot + q_query} images of a class"
        if len(set(counts.values())) == 1:
            raise UserError(f"{wanted}, but every class has {counts[smallest]}: lower one of them")
        few = sum(count < k_shot + q_query for count in counts.values())
        raise UserError(
            f"{wanted}, but class {smallest} has {counts[smallest]} ({few} of the {len(counts)} classes of split "
            f"'{split}' have too few): lower one of them, add images, or take those classes away"
        )


def check_groups(shape: TaskShape, split: str, groups: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    """The groups of classes that can fill a task; refuses a split without any. `groups` has the classes of each."""
    if len(groups) == 1:
        raise UserError(
            f"data.within_alphabet=true, but all classes of split '{split}' are of one group: there is nothing to keep "
            "apart, data.within_alphabet=false"
        )
    enough = [members for members in groups.values() if len(members) >= shape.n_way]
    if not enough:
        largest = max(groups, key=lambda name: len(groups[name]))
        ways = "train_n_way" if split == "train" else "n_way"
        raise UserError(
            f"data.within_alphabet=true, data.{ways}={shape.n_way}, but the largest group of split '{split}', "
            f"{largest}, has {len(groups[largest])} classes: lower data.{ways}, or set data.within_alphabet=false"
        )
    return enough


def generator(seed: int, split: str, step: int, purpose: int = 0) -> np.random.Generator:
    """The random stream of one step of one split; `purpose` 0 draws tasks, 1 their augmentation."""
    return np.random.default_rng((seed, _STREAMS[split], step, purpose))


def draw_tasks(
    rng: np.random.Generator,
    tasks: int,
    classes: Sequence[int],
    counts: Sequence[int],
    shape: TaskShape,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    fixed_labels: bool = False,
) -> TaskIndex:
    """Draws tasks: distinct classes in random order, then distinct images of each.

    A class's label is its place in that order, so labels say nothing about classes; with `fixed_labels` it
    is its place among `classes`, the same in every task. Within the support set and within the queries the
    images are shuffled, so places say nothing about labels.

    Args:
        tasks: T.
        classes: numbers of the classes to draw from.
        counts: images of every class of the data set; those of `classes` have k_shot + q_query or more.
        groups: places among `classes`, n_way or more in each: a task's classes are of one group, and every group is
            as likely as any other. None: they are of all.
    """
    n_way, k_shot, q_query = shape
    if groups is None:
        places = _distinct(rng, np.full(tasks, len(classes)), n_way)  # (T, N)
    else:
        members = np.array(list(itertools.zip_longest(*groups, fillvalue=-1))).T  # (groups, the largest's classes)
        group = rng.integers(len(groups), size=tasks)
        within = _distinct(rng, np.array([len(each) for each in groups])[group], n_way)
        places = members[group[:, None], within]
    own, sizes = np.asarray(classes), np.asarray(counts)
    chosen = own[places]
    keys = rng.random((tasks, n_way, sizes[own].max()))
    keys[np.arange(keys.shape[-1]) >= sizes[chosen][..., None]] = np.inf  # there is no such image in this class
    order = keys.argsort(-1, kind="stable")[..., : k_shot + q_query]
    images = (np.cumsum(sizes) - sizes)[chosen][..., None] + order  # (T, N, K+Q)
    labels = np.broadcast_to((places if fixed_labels else np.arange(n_way))[..., None], images.shape)
    support_i, support_y = _shuffled(rng, images[..., :k_shot], labels[..., :k_shot])
    query_i, query_y = _shuffled(rng, images[..., k_shot:], labels[..., k_shot:])
    return TaskIndex(*(torch.from_numpy(array) for array in (support_i, support_y, query_i, query_y)))


def evaluation_block(
    seed: int,
    split: str,
    block: int,
    classes: Sequence[int],
    counts: Sequence[int],
    shape: TaskShape,
    groups: Sequence[Sequence[int]] | None = None,
) -> TaskIndex:
    """The fixed evaluation tasks `block * BLOCK` … of a split."""
    return draw_tasks(generator(seed, split, block), BLOCK, classes, counts, shape, groups=groups)


def episodes_sha256(images: Tensor, names: Sequence[str], tasks: Sequence[TaskIndex]) -> str:
    """A fingerprint of evaluation tasks: equal only if the data set, every draw from it and every label are."""
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))
    digest.update(images.numpy().reshape(-1).data)  # without a second copy: it may be large
    for part in tasks:
        for tensor in part:
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _distinct(rng: np.random.Generator, totals: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` distinct numbers below a task's total, in random order: (T,) -> (T, count). Floyd's algorithm."""
    tasks = len(totals)
    chosen = np.empty((tasks, count), dtype=np.int64)
    for place in range(count):
        top = totals - count + place
        draw = (rng.random(tasks) * (top + 1)).astype(np.int64)
        taken = (chosen[:, :place] == draw[:, None]).any(1)
        chosen[:, place] = np.where(taken, top, draw)
    order = rng.random((tasks, count)).argsort(-1, kind="stable")  # Floyd's set is fair, its order is not
    return np.take_along_axis(chosen, order, axis=1)


def _shuffled(
    rng: np.random.Generator, images: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shuffles each task's images along with their labels: (T, N, M) twice -> (T, N*M) twice."""
    flat, flat_labels = (array.reshape(len(images), -1) for array in (images, labels))
    order = rng.random(flat.shape).argsort(-1, kind="stable")
    return np.take_along_axis(flat, order, axis=1), np.take_along_axis(flat_labels, order, axis=1)
