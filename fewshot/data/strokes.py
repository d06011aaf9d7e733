"""Strokes: a generated script, embedded, so that everything runs without a download.

Alphabets of characters of one to four smooth strokes, each drawn by the alphabet's twenty drawers, who
differ in slant, proportions, size, pen and steadiness of hand. A stand-in for Omniglot in structure and
in difficulty; results on it are results on it alone.

The same seed gives the same bytes on every machine: only +, −, ×, ÷, √ and comparisons are used, element
by element, which IEEE 754 rounds alike everywhere, and uniform draws of a generator whose stream is fixed.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot.data.images import ImageSet, cached
from fewshot.errors import UserError

Floats = NDArray[np.float64]

DRAWERS = 20  # as in Omniglot
POINTS = 22  # samples between two knots; dense enough that the dots of the pen join into a line
_VERSION = 1  # of the generator: another number, other images


def load_strokes(root: str, image_size: int, *, alphabets: int = 50, characters: int = 24, seed: int = 0) -> ImageSet:
    """Draws `alphabets` × `characters` characters × 20 drawers, or reads the packed copy under `root`.

    Args:
        root: folder of the packed copy.
        image_size: H = W in pixels.
        alphabets: number of alphabets; the last fifth (rounded up) is the "evaluation" part.
        characters: characters of each alphabet.
        seed: of the script itself. It is apart from the run's seed: all runs share one data set.

    Returns:
        images (alphabets*characters*20, 1, image_size, image_size), 20 of every class.
    """
    if alphabets < 2 or characters < 1 or image_size < 8:
        raise UserError(
            "data=strokes needs at least 2 alphabets of 1 character at 8 pixels, not "
            f"data.source.alphabets={alphabets}, data.source.characters={characters}, data.image_size={image_size}"
        )
    if seed < 0:
        raise UserError(f"data.source.seed={seed} must not be negative")
    fingerprint = repr((_VERSION, image_size, alphabets, characters, seed))
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
    path = Path(root) / f"strokes-{image_size}-{digest}.npz"
    return cached(path, fingerprint, lambda: _draw(image_size, alphabets, characters, seed))


def _draw(image_size: int, alphabets: int, characters: int, seed: int) -> ImageSet:
    background = alphabets - -(-alphabets // 5)
    images, names, parts = [], [], []
    for alphabet in range(alphabets):
        rng = np.random.default_rng((seed, alphabet))
        style, drawers = _Style(rng), _Drawers(rng)
        for character in range(characters):
            drawn = drawers.draw(rng, style.character(rng))  # (20, points, 2)
            images.append(_render(drawn, drawers.pen, image_size))
            names.append(f"alphabet{alphabet + 1:02d}/character{character + 1:02d}")
            parts.append("background" if alphabet < background else "evaluation")
    return ImageSet(
        torch.from_numpy(np.concatenate(images))[:, None], (DRAWERS,) * len(names), tuple(names), tuple(parts)
    )


class _Style:
    """What the characters of an alphabet have in common: number of strokes, straight or round ones."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.more_strokes = 0.45 + 0.3 * rng.random()  # chance of each further stroke
        self.round = 0.25 + 0.6 * rng.random()  # chance that a stroke is a bow, a hook or a loop
        self.bend = 0.15 + 0.5 * rng.random()  # how much such a stroke turns between knots
        self.grid = 3 + int(2 * rng.random())  # straight strokes start, turn and end on few places

    def character(self, rng: np.random.Generator) -> list[Floats]:
        """The ideal strokes: arrays (knots, 2) in the unit square, y down."""
        strokes: list[Floats] = []
        while not strokes or (len(strokes) < 4 and rng.random() < self.more_strokes):
            stroke = self._bow(rng) if rng.random() < self.round else self._line(rng)
            if strokes and rng.random() < 0.7:  # most strokes start on an earlier one
                other = strokes[int(rng.random() * len(strokes))]
                stroke = stroke + (other[int(rng.random() * len(other))] - stroke[0])
            strokes.append(stroke)
        points = np.concatenate(strokes)
        low, span = points.min(0), points.max(0) - points.min(0)
        span = np.maximum(span, 0.5 * span.max())  # thin characters stay thin
        return [(stroke - low) / span for stroke in strokes]

    def _line(self, rng: np.random.Generator) -> Floats:
        """One to three straight legs between places of a grid, each drawn with a knot halfway."""
        corners = 2 + int(1.7 * rng.random())
        steps = np.floor(rng.random((corners, 2)) * self.grid) / (self.grid - 1)
        steps[1:] += (np.abs(steps[1:] - steps[:-1]).sum(1, keepdims=True) < 0.3) * 0.5  # no leg of length 0
        knots = np.empty((2 * corners - 1, 2))
        knots[0::2], knots[1::2] = steps, (steps[1:] + steps[:-1]) / 2
        return knots

    def _bow(self, rng: np.random.Generator) -> Floats:
        """A stroke that goes on turning, mostly one way: from a slight bow to a closed loop."""
        knots = 4 + int(4 * rng.random())
        place, step = rng.random(2), 0.7 * (rng.random(2) - 0.5)
        step = step + np.where(step < 0, -0.1, 0.1)
        bend = self.bend * (1 if rng.random() < 0.5 else -1)
        turn_back = knots // 2 if rng.random() < 0.3 else knots  # some strokes wind like an s
        path = [place]
        for knot in range(1, knots):
            place = place + step
            path.append(place)
            tangent = (bend if knot < turn_back else -bend) * (0.6 + 0.8 * rng.random())
            step = _turn(step, tangent)
        return np.stack(path)


def _turn(vector: Floats, half: float | Floats) -> Floats:
    """Turns (…, 2) by the angle whose half has this tangent: rotation without sine and cosine."""
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    x, y = vector[..., 0], vector[..., 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)


class _Drawers:
    """Twenty hands: arrays (20,) or (20, 1, 2), the same for all characters of an alphabet."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.slant = 0.65 * _bell(rng, (DRAWERS,))
        self.size = 0.58 + 0.22 * _bell(rng, (DRAWERS, 1, 2))  # width and height
        self.pen = 0.026 + 0.006 * _bell(rng, (DRAWERS,))  # half the line's width
        self.unsteady = 0.08 + 0.04 * _bell(rng, (DRAWERS, 1, 1))

    def draw(self, rng: np.random.Generator, strokes: list[Floats]) -> Floats:
        """One character by every drawer: strokes of (knots, 2) -> points (20, P, 2), P grows with the strokes."""
        lines = []
        for stroke in strokes:
            whole = 0.6 * _bell(rng, (DRAWERS, 1, 2))  # the stroke is misplaced …
            each = _bell(rng, (DRAWERS, len(stroke), 2))  # … and its knots are
            lines.append(_spline(stroke + self.unsteady * (whole + each)))
        size = self.size * (1 + 0.2 * _bell(rng, (DRAWERS, 1, 2)))  # no hand draws twice alike
        points = (np.concatenate(lines, axis=1) - 0.5) * size
        points[..., 0] -= self.slant[:, None] * points[..., 1]
        shift = 0.5 + 0.15 * _bell(rng, (DRAWERS, 1, 2))
        return _turn(points, 0.12 * _bell(rng, (DRAWERS, 1))) + shift


def _bell(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Bell-shaped noise in (−1, 1) with deviation 0.41: the mean of two draws; no logarithm needed."""
    return rng.random(shape) + rng.random(shape) - 1


def _spline(knots: Floats) -> Floats:
    """A smooth curve through the knots (Catmull-Rom): (B, knots, 2) -> (B, (knots-1)*POINTS+1, 2)."""
    first, last = 2 * knots[:, :1] - knots[:, 1:2], 2 * knots[:, -1:] - knots[:, -2:-1]
    padded = np.concatenate([first, knots, last], axis=1)
    at = np.arange((knots.shape[1] - 1) * POINTS + 1) / POINTS
    left = np.minimum(at.astype(np.int64), knots.shape[1] - 2)
    t = (at - left)[:, None]
    a, b, c, d = (padded[:, left + k] for k in range(4))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _render(points: Floats, pen: Floats, image_size: int) -> NDArray[np.uint8]:
    """Antialiased ink: (B, P, 2) in the unit square, half widths (B,) -> (B, image_size, image_size)."""
    centres = ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)
    offset = points.astype(np.float32)[..., None] - centres  # (B, P, 2, image_size)
    squared = offset * offset
    distance = squared[:, :, 1, :, None] + squared[:, :, 0, None, :]  # (B, P, H, W)
    nearest = np.sqrt(distance.min(axis=1)) * np.float32(image_size)  # in pixels
    ink = np.clip(pen.astype(np.float32)[:, None, None] * np.float32(image_size) + np.float32(0.5) - nearest, 0, 1)
    return (ink * np.float32(255) + np.float32(0.5)).astype(np.uint8)
