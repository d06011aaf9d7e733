"""A data set as one tensor of images, class after class, and its packed cache on disk."""

import contextlib
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fewshot.errors import UserError

log = logging.getLogger(__name__)

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels

_TURN = re.compile(r" (?:0|90|180|270)°$")  # of a class's name, by `quarter_turned`
_LAYOUT = 2  # of packed files; those without a number had no counts


@dataclass(frozen=True)
class ImageSet:
    """All images of a data set, decoded, in memory.

    Attributes:
        images: (total, C, H, W) uint8, all of the first class, then all of the second…; of drawings 255 is ink.
        counts: images of each class.
        names: one "group/class" per class, sorted within each part; a group is an alphabet, or there is none.
        parts: the data set's own division, per class: "background" or "evaluation"; "train", "val" or "test";
            "" where it has none.
    """

    images: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...]
    parts: tuple[str, ...]

    def of_class(self, number: int) -> Tensor:
        """The images of one class: (its count, C, H, W)."""
        start = sum(self.counts[:number])
        return self.images[start : start + self.counts[number]]


def unturned(name: str) -> str:
    """The name of the class that a quarter-turned one was made of."""
    return _TURN.sub("", name)


def grouped(names: Sequence[str]) -> dict[str, list[int]]:
    """The places of the classes of each group; a group's quarter-turn is a group of its own."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        group, turn = name.rpartition("/")[0], _TURN.search(name)
        groups.setdefault(group + (turn[0] if turn else ""), []).append(place)
    return groups


def quarter_turned(image_set: ImageSet) -> ImageSet:
    """Four classes in place of each: its images as they are and turned by 90°, 180° and 270°, in this order."""
    of_class = image_set.images.split(list(image_set.counts))
    turned = [torch.rot90(images, turns, (-2, -1)) for images in of_class for turns in range(4)]
    return ImageSet(
        images=torch.cat(turned),
        counts=tuple(count for count in image_set.counts for _ in range(4)),
        names=tuple(f"{name} {90 * turns}°" for name in image_set.names for turns in range(4)),
        parts=tuple(part for part in image_set.parts for _ in range(4)),
    )


def as_shown(image: Image.Image) -> Image.Image:
    """Turned as the camera noted, what is transparent on white, of 16 bits the upper 8."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def centred_square(image: Image.Image, image_size: int) -> Image.Image:
    """The largest square in the middle, brought to `image_size`² with Lanczos filtering: nothing is stretched."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # first: what is cut off must not shine in at the edges
    return square.resize((image_size, image_size), Image.Resampling.LANCZOS)


def paper_is_white(images: NDArray[np.uint8]) -> bool:
    """Whether most of what lies along the borders of (…, H, W, C) is bright."""
    rows, columns = images[..., [0, -1], :, :], images[..., :, [0, -1], :]
    return bool(np.concatenate([rows.ravel(), columns.ravel()]).mean() > 127.5)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8; Pillow's own conversion cuts off what is above 255, and leaves white alone."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, of unknown range: save it with 8 or 16 bits")
    return image


def fingerprint(root: Path, files: Iterable[Path], *facts: object) -> str:
    """Changes when a file below `root` is added, removed, renamed or written, or what is made of them (`facts`).

    Cheap, so that a warm start takes no time.
    """
    stats = []
    for file in files:
        try:
            stats.append((file.relative_to(root).as_posix(), file.stat().st_size, file.stat().st_mtime_ns))
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): mend or remove it") from error
    return hashlib.sha256(repr((*facts, stats)).encode(errors="surrogateescape")).hexdigest()


def cached(path: Path, fingerprint: str, build: Callable[[], ImageSet]) -> ImageSet:
    """Reads the packed set from `path`, or builds and packs it.

    The file is written under a temporary name and renamed, so it is whole or not there. One that is damaged
    (every member carries a checksum), or was packed from other sources (`fingerprint`) or in another layout, is
    built again.
    Where the folder cannot be written the set is built at every start.
    """
    fingerprint = f"{fingerprint} layout {_LAYOUT}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            if str(packed["fingerprint"]) == fingerprint:
                counts, names, parts = (tuple(packed[key].tolist()) for key in ("counts", "names", "parts"))
                return ImageSet(torch.from_numpy(packed["images"]), counts, names, parts)
        log.info("%s was packed from other sources, or by another version: building it again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as damage:
        log.warning("%s is damaged (%s): building it again", path, damage)
    built = build()
    _pack(path, fingerprint, built)
    return built


def _pack(path: Path, fingerprint: str, image_set: ImageSet) -> None:
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            temporary,
            images=image_set.images.numpy(),
            counts=np.array(image_set.counts),
            names=np.array(image_set.names),
            parts=np.array(image_set.parts),
            fingerprint=np.array(fingerprint),
        )
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("no packed copy kept, every start will decode the data again: %s", error)
