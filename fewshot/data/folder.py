"""A folder of your own images: one sub-folder a class, any format that Pillow opens, any size and number.

DIR/cat/1.jpg …                          classes are divided by data.split=random_classes
DIR/train/cat/1.jpg … DIR/val/dog/1.png … DIR/test/owl/1.gif …      … by data.split=folders
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot.data.images import MODES, ImageSet, as_shown, cached, centred_square, fingerprint
from fewshot.data.splits import SPLITS
from fewshot.errors import UserError

log = logging.getLogger(__name__)

_VERSION = 1  # of what is done to an image: another number, other pixels
_LAYOUT = "data=folder wants data.root/CLASS/IMAGE, or data.root/train/CLASS/IMAGE with val and test beside train"


def load_folder(root: str, image_size: int, *, channels: int = 3, invert: bool = False) -> ImageSet:
    """The images under `root`, or their packed copy `root/.fewshot-….npz`, which any change of a file makes anew.

    The largest square in the middle of an image is cut out and brought to `image_size`² with Lanczos filtering,
    so nothing is stretched. Orientation noted by a camera is honoured, what is transparent lies on white, 16-bit
    grey keeps its upper 8 bits, and an animation gives its first frame. Files and folders whose names begin with a
    dot are ignored.

    Args:
        root: holds a sub-folder for each class; or exactly train, val and test, and those hold the classes.
        image_size: H = W in pixels.
        channels: 3, or 1 for grey.
        invert: turn dark ink on light paper into ink = 255.

    Returns:
        Classes sorted by name (`train/…`, `val/…`, `test/…` in this order where there are these folders), images
        sorted by file name; parts are "", or train, val and test.

    Raises:
        UserError: no such folder, no class, a class without images or in two of train, val and test, a file that
            is no image or lies in the wrong place; names it.
    """
    if channels not in MODES:
        raise UserError(f"data.source.channels={channels} must be 1 (grey) or 3 (colour)")
    if image_size < 1:
        raise UserError(f"data.image_size={image_size} must be at least 1")
    folder = Path(root)
    path = folder / f".fewshot-{image_size}-{channels}{'-inverted' if invert else ''}.npz"  # hidden: never a class
    try:
        classes = _classes(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}): mend or remove it") from error
    stamp = fingerprint(folder, (file for files in classes.values() for file in files), _VERSION, path.name)
    return cached(path, stamp, lambda: _decode(folder, classes, image_size, channels, invert))


def _classes(root: Path) -> dict[str, list[Path]]:
    """The files of every class by its name, all in order; reads no file."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: name the folder of your images with data.root=DIR")
    tops = _folders(root)
    if {top.name for top in tops} == set(SPLITS):
        folders = [folder for split in SPLITS for folder in _folders(root / split)]
        _check_disjoint(folders)
    else:
        folders = tops
    _check_distinct(folders)
    return {folder.relative_to(root).as_posix(): _files(folder) for folder in folders}


def _folders(parent: Path) -> list[Path]:
    entries = _visible(parent)
    for entry in entries:
        if not entry.is_dir():
            raise UserError(f"{entry} lies beside the classes, not in one of them: {_LAYOUT}; move it away")
    if not entries:
        raise UserError(f"{parent} holds no class: {_LAYOUT}")
    return entries


def _files(folder: Path) -> list[Path]:
    entries = _visible(folder)
    for entry in entries:
        if entry.is_dir():
            raise UserError(f"{entry} is a folder inside a class: {_LAYOUT}")
    if not entries:
        raise UserError(f"class {folder} holds no image: add some, or remove the folder")
    return entries


def _visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)


def _check_disjoint(folders: list[Path]) -> None:
    """A class in two splits would be tested after it was learned: few-shot learning is judged on new classes."""
    seen: dict[str, Path] = {}
    for folder in folders:
        if other := seen.get(folder.name):
            raise UserError(
                f"{other} and {folder} are one class in two splits, but test classes must be new: keep it in one of "
                "them (or rename it, if it is another class)"
            )
        seen[folder.name] = folder


def _check_distinct(folders: list[Path]) -> None:
    """By a link one folder would be two classes, one of them perhaps for training and the other for testing."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if other := seen.get(real := folder.resolve()):
            raise UserError(
                f"{other} and {folder} are one folder, by a link: one class cannot be two; remove one of them"
            )
        seen[real] = folder


def _decode(root: Path, classes: Mapping[str, list[Path]], image_size: int, channels: int, invert: bool) -> ImageSet:
    counts = tuple(len(files) for files in classes.values())
    log.info(
        "decoding %d images of %d classes in %s (once; the result is packed there)", sum(counts), len(counts), root
    )
    images = np.empty((sum(counts), channels, image_size, image_size), dtype=np.uint8)
    for place, file in enumerate(file for files in classes.values() for file in files):
        images[place] = _read(file, image_size, channels)
    if invert:
        np.subtract(255, images, out=images)
    parts = tuple(name.split("/")[0] if "/" in name else "" for name in classes)
    return ImageSet(torch.from_numpy(images), counts, tuple(classes), parts)


def _read(file: Path, image_size: int, channels: int) -> NDArray[np.uint8]:
    """One image: (channels, image_size, image_size)."""
    try:
        with Image.open(file) as opened:
            image = as_shown(opened).convert(MODES[channels])
    except Exception as error:  # Pillow's readers raise whatever comes to them at a broken file
        raise UserError(f"{file} cannot be read as an image ({error}): repair it, or take it away") from error
    square = centred_square(image, image_size)
    return np.asarray(square).reshape(image_size, image_size, channels).transpose(2, 0, 1)
