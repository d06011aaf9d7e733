"""A data set as one tensor of classes, and its packed cache on disk."""

import contextlib
import logging
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """All images of a data set, decoded, in memory.

    Attributes:
        images: (classes, drawings, C, H, W) uint8, 255 is ink. Every class has as many drawings.
        names: one "group/class" per class, sorted within each part; a group is an alphabet.
        parts: "background" or "evaluation" per class: the data set's own division, if it has one.
    """

    images: Tensor
    names: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def drawings(self) -> int:
        """Images per class."""
        return self.images.shape[1]


def cached(path: Path, fingerprint: str, build: Callable[[], ImageSet]) -> ImageSet:
    """Reads the packed set from `path`, or builds and packs it.

    The file is written under a temporary name and renamed, so it is whole or not there. One that is damaged
    (every member carries a checksum), or was packed from other sources (`fingerprint`), is built again.
    Where the folder cannot be written the set is built at every start.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            if str(packed["fingerprint"]) == fingerprint:
                names, parts = packed["names"].tolist(), packed["parts"].tolist()
                return ImageSet(torch.from_numpy(packed["images"]), tuple(names), tuple(parts))
        log.info("%s was packed from other sources: building it again", path)
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
            names=np.array(image_set.names),
            parts=np.array(image_set.parts),
            fingerprint=np.array(fingerprint),
        )
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("no packed copy kept, every start will decode the data again: %s", error)
