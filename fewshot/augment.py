"""Task augmentation: every image of a meta-batch is warped by an affine map, all in one call.

An augmentation only says how the maps are drawn, on the CPU and from the step's own random stream; one
function applies them, on the device that holds the images. In training only.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import UserError

Floats = NDArray[np.float64]


class Augmentation(ABC):
    """Draws one affine map per image."""

    turns_classes: bool = False  # True: makes classes of their own of what a class looks like when turned

    @abstractmethod
    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> Floats | None:
        """The maps for images with these labels, support then queries: (T, M) -> (T, M, 2, 3), or None.

        A map takes a place in the new image to the place in the old one where its ink comes from, in
        coordinates from −1 to 1, x right and y down (as `torch.nn.functional.affine_grid`).
        """


class Identity(Augmentation):
    """No augmentation."""

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> None:
        """No map at all."""
        return None


class RotateTask(Augmentation):
    """Turns a whole task, support and queries alike, by one angle; most tasks, not all.

    Args:
        degrees: the angle is uniform in ±degrees.
        probability: of a task being turned.
    """

    def __init__(self, *, degrees: float, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"aug.probability={probability} must be between 0 and 1")
        self.degrees = degrees
        self.probability = probability

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> Floats:
        """One map per task, repeated for its images."""
        tasks = len(labels)
        angle = np.radians(self.degrees) * (2 * rng.random(tasks) - 1)
        angle = np.where(rng.random(tasks) < self.probability, angle, 0.0)
        return _rotations(np.broadcast_to(angle[:, None], labels.shape))


class RotateClasses(Augmentation):
    """Turns each class of a task by a quarter-turn of its own: every quarter-turn of a character is a class.

    As in MAML's Omniglot experiments, a task never holds two turns of one character, which for symmetric
    characters could not be told apart.
    """

    turns_classes = True

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> Floats:
        """One quarter-turn per task and class."""
        turns = np.floor(4 * rng.random((len(labels), labels.max() + 1)))  # (T, N)
        return _rotations(np.take_along_axis(turns, labels, axis=1) * np.pi / 2)


class Affine(Augmentation):
    """Turns, scales, shears and shifts every image a little, each by its own draw.

    After the affine distortions of G. Koch, R. Zemel, R. Salakhutdinov: Siamese Neural Networks for One-shot
    Image Recognition, 2015 (§4.2), where each of them is present with probability one half.

    Args:
        degrees: turn, uniform in ±degrees.
        scale: each axis is scaled by a factor in 1 ± scale.
        shear: horizontal shear, uniform in ±shear (tangent).
        shift: shift along each axis, uniform in ±shift (fraction of the image's side).
        probability: of each of the four, per image.
    """

    def __init__(self, *, degrees: float, scale: float, shear: float, shift: float, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"aug.probability={probability} must be between 0 and 1")
        if not 0 <= scale < 1:
            raise UserError(f"aug.scale={scale} must be at least 0 and below 1")
        self.degrees = degrees
        self.scale = scale
        self.shear = shear
        self.shift = shift
        self.probability = probability

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> Floats:
        """One map per image."""
        maps = _rotations(np.radians(self.degrees) * self._some(rng, labels.shape, 1)[..., 0])
        sheared = np.zeros((*labels.shape, 2, 2))
        sheared[..., 0, 0] = sheared[..., 1, 1] = 1
        sheared[..., 0, 1] = self.shear * self._some(rng, labels.shape, 1)[..., 0]
        scales = 1 / (1 + self.scale * self._some(rng, labels.shape, 2))
        maps[..., :2] = maps[..., :2] @ sheared * scales[..., None, :]
        maps[..., 2] = 2 * self.shift * self._some(rng, labels.shape, 2)  # the image is 2 wide
        return maps

    def _some(self, rng: np.random.Generator, shape: tuple[int, ...], count: int) -> Floats:
        """`count` numbers in ±1 per image, or zeros where this distortion is absent: (*shape, count)."""
        present = rng.random((*shape, 1)) < self.probability
        return np.where(present, 2 * rng.random((*shape, count)) - 1, 0.0)


class InTurn(Augmentation):
    """Two augmentations, one after the other, in one warp.

    Args:
        first, second: may be such pairs themselves.
    """

    def __init__(self, *, first: Augmentation, second: Augmentation) -> None:
        self.first = first
        self.second = second
        self.turns_classes = first.turns_classes or second.turns_classes

    def draw(self, rng: np.random.Generator, labels: NDArray[np.int64]) -> Floats | None:
        """A place in the last image leads to one in the image between, and that to one in the first."""
        first, second = self.first.draw(rng, labels), self.second.draw(rng, labels)
        if first is None or second is None:
            return first if second is None else second
        both = first[..., :2] @ second
        both[..., 2] += first[..., 2]
        return both


def _rotations(angle: Floats) -> Floats:
    """Angles in radians (…) -> maps (…, 2, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    maps = np.zeros((*angle.shape, 2, 3))
    maps[..., 0, 0] = maps[..., 1, 1] = cosine
    maps[..., 0, 1], maps[..., 1, 0] = -sine, sine
    return maps


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Warps images (…, C, H, W) by maps (…, 2, 3), bilinearly; what comes from outside is paper, 0."""
    flat = images.flatten(end_dim=-4)
    grid = F.affine_grid(maps.flatten(end_dim=-3).to(images), list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False).view_as(images)


def maps_tensor(maps: Floats | None) -> Tensor | None:
    """The drawn maps as a float32 tensor that a DataLoader can carry."""
    return None if maps is None else torch.from_numpy(maps.astype(np.float32))
