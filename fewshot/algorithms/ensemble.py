"""Several answers to one query, averaged: of several trained learners, of several distorted copies of every image."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fewshot.algorithms.base import Algorithm, Fitted, last
from fewshot.augment import Augmentation, maps_tensor, warp
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.tasks import Stage


class Views:
    """Distorted copies of every image, by which a task is learned and answered several times.

    The first copy is the image as it is. Of each other one all support images are distorted alike, and all queries
    alike in another way, so that no class has an advantage; the ways are the same in every task.

    Args:
        count: of copies.
        augmentation: draws the distortions.
        seed: of the draw.
    """

    def __init__(self, *, count: int, augmentation: Augmentation, seed: int = 0) -> None:
        if count < 1:
            raise UserError(f"views.count={count} must be at least 1")
        labels = np.zeros((count - 1, 2), dtype=np.int64)
        drawn = maps_tensor(augmentation.draw(np.random.default_rng(seed), labels)) if count > 1 else None
        if drawn is None and count > 1:
            raise UserError(f"views.count={count}, but views.augmentation distorts nothing: count=1")
        self.maps: Sequence[Tensor | None] = [None, *(() if drawn is None else drawn)]  # of each (2, 2, 3)


Members = tuple[tuple[Fitted, ...], ...]  # what a task leaves: of every learner, for every copy, its fitted state


class Ensemble(Algorithm):
    """Learners that answer together: the mean of their probabilities.

    As several checkpoints of one run are averaged by A. Antoniou, H. Edwards, A. Storkey: How to Train Your MAML, ICLR
    2019 (authors' code: the five best by validation, their logits), or several runs; and, with `views`, several
    distorted copies of the images (K. Simonyan, A. Zisserman: Very Deep Convolutional Networks, 2015, for one image).
    Nothing is trained.

    Args:
        members: trained, for tasks of one kind.
        views: copies of every image; None: the image alone.
    """

    needs_classes = True

    def __init__(self, members: Sequence[Algorithm], views: Views | None = None) -> None:
        super().__init__()
        first = members[0]
        for other in members:
            if not other.probabilistic:
                raise UserError(f"{type(other).__name__} gives no probabilities that could be averaged")
        self.members = nn.ModuleList(members)
        self.kind = first.kind
        self.any_way = all(member.any_way for member in members)
        self.fixed_labels = any(member.fixed_labels for member in members)
        self.ordered = any(member.ordered for member in members)
        self.task_chunk = first.task_chunk
        self.maps = [None] if views is None else views.maps

    def fit(self, params: Params, support_x: Tensor, support_y: Tensor, *, stage: Stage = "test") -> Iterator[Members]:
        """Every learner learns every copy of the support set."""
        copies = [self._seen(support_x, maps, 0) for maps in self.maps]
        yield tuple(
            tuple(last(member.fit(self._own(params, place), copy, support_y, stage=stage)) for copy in copies)
            for place, member in enumerate(self._algorithms())
        )

    def predict(self, fitted: Members, query_x: Tensor) -> Tensor:
        """Logarithms of the mean probabilities: (M, …) -> (M, N)."""
        copies = [self._seen(query_x, maps, 1) for maps in self.maps]
        answers = [
            member.predict(state, copy).log_softmax(-1)
            for member, states in zip(self._algorithms(), fitted, strict=True)
            for state, copy in zip(states, copies, strict=True)
        ]
        return torch.stack(answers).logsumexp(0) - np.log(len(answers))

    @property
    def transductive(self) -> bool:
        """Where one of them is."""
        return any(member.transductive for member in self._algorithms())

    def _algorithms(self) -> list[Algorithm]:
        return list(self.members)  # type: ignore[arg-type]

    def _own(self, params: Params, place: int) -> Params:
        prefix = f"members.{place}."
        return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}

    def _seen(self, x: Tensor, maps: Tensor | None, part: int) -> Tensor:
        return x if maps is None else warp(x, maps[part].expand(len(x), 2, 3))
