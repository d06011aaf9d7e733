"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, divided for few-shot learning. 600 colour images each, 32×32.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, 2009.
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import gzip
import logging
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.data.assembly import Assembly
from fewshot.data.download import download as fetch
from fewshot.data.images import ImageSet, cached, fingerprint
from fewshot.data.pickles import read_arrays
from fewshot.data.published import CIFAR100, CIFAR_FS, FC100, SUPERCLASSES, Lists
from fewshot.errors import UserError

log = logging.getLogger(__name__)

IMAGES = 600  # of a class: 500 in `train`, 100 in `test`
SIDE = 32
_FOLDER = "cifar-100-python"
_ARCHIVE = f"{_FOLDER}.tar.gz"
_FILES = ("train", "test")  # of pictures, not of classes: all classes are in both
_VERSION = 1  # of what is done to the images


def load_cifar_fs(root: str, image_size: int, *, download: bool = True) -> ImageSet:
    """CIFAR-FS: 64 classes to train, 16 to validate, 20 to test, of all superclasses.

    L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR
    2019. https://arxiv.org/abs/1805.08136

    Looks in `root` for torchvision's folder `cifar-100-python` with the files `train` and `test`, or for
    `cifar-100-python.tar.gz`, which is read in place: nothing is unpacked. They are pickles, and nothing in them is
    run (`fewshot.data.pickles`). The set is packed beside them for the next start, 184 MB at 32×32; reading takes
    0.4 GB of memory.

    Args:
        root: the folder; created when downloading.
        image_size: H = W; images have 32×32 and are brought to other sizes with Lanczos filtering.
        download: fetch the archive with torchvision, which checks its md5, where nothing is there.

    Returns:
        Classes "superclass/class" in the order of the splits, parts train, val and test; of a class first the images
        of the file `train`.

    Raises:
        UserError: nothing found and nothing fetched; a damaged file, or one that names code; other classes or counts.
    """
    return _load("cifar_fs", CIFAR_FS, root, image_size, download)


def load_fc100(root: str, image_size: int, *, download: bool = True) -> ImageSet:
    """FC100: 12 superclasses (60 classes) to train, 4 (20) to validate, 4 (20) to test.

    B. Oreshkin, P. Rodríguez López, A. Lacoste: TADAM: Task dependent adaptive metric for improved few-shot learning.
    NeurIPS 2018. https://arxiv.org/abs/1805.10123

    Args and errors as of `load_cifar_fs`.
    """
    return _load("fc100", FC100, root, image_size, download)


def _load(name: str, lists: Lists, root: str, image_size: int, download: bool) -> ImageSet:
    place = _find(Path(root))
    if place is None and download:
        from torchvision.datasets import CIFAR100 as Source

        fetch(Source.url, Path(root) / _ARCHIVE, Source.tgz_md5, _where_to_get(root))
        place = _find(Path(root))
    if place is None:
        raise UserError(_where_to_get(root))
    sources = [place / file for file in _FILES] if place.is_dir() else [place]
    path = Path(root) / f"{name}-{image_size}.npz"
    stamp = fingerprint(Path(root), sources, _VERSION, name, image_size)
    return cached(path, stamp, partial(_decode, place, lists, image_size))


def _find(root: Path) -> Path | None:
    if all((root / _FOLDER / file).is_file() for file in _FILES):
        return root / _FOLDER
    return root / _ARCHIVE if (root / _ARCHIVE).is_file() else None


def _where_to_get(root: str) -> str:
    return (
        f"no CIFAR-100 in {root}: put {_ARCHIVE} (from www.cs.toronto.edu/~kriz/cifar.html, the python version) there, "
        "or name its folder with data.root=DIR; data=strokes needs no download"
    )


def _decode(place: Path, lists: Lists, image_size: int) -> ImageSet:
    assembly = Assembly(lists, IMAGES, image_size, str(place))
    log.info("decoding %s (once; the result is packed beside it)", place)
    for file, content in _files(place):
        images, labels = _checked(content, file)
        for number, name in enumerate(CIFAR100):
            assembly.add(name, images[labels == number])
    return assembly.finish()


def _files(place: Path) -> Iterator[tuple[str, Any]]:
    """What the two files hold, with their names for messages."""
    if place.is_dir():
        for name in _FILES:
            with (place / name).open("rb") as file:
                yield str(place / name), read_arrays(file, str(place / name))
        return
    try:
        with gzip.open(place) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as archive:
            for name in _FILES:
                member = archive.extractfile(f"{_FOLDER}/{name}")
                if member is None:
                    raise ValueError(f"{_FOLDER}/{name} is no file")
                with member:
                    yield f"{place}, {name},", read_arrays(member, f"{place}, {name},")
            while unzipped.read(1 << 20):  # the checksum stands at the end
                pass
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{place} is damaged ({error}): delete it and fetch it again") from error


def _checked(content: Any, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and numbers of their classes (N,), which agree with those of the superclasses."""
    try:
        images, labels, groups = (np.asarray(content[key]) for key in ("data", "fine_labels", "coarse_labels"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no file of CIFAR-100: it has no {error}") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3 * SIDE * SIDE):
        raise UserError(
            f"{file} has images of shape {images.shape} and type {images.dtype} with {len(labels)} labels, CIFAR-100's "
            f"are rows of {3 * SIDE * SIDE} bytes, one a label: fetch it again"
        )
    group_of = np.array([list(SUPERCLASSES).index(name.split("/")[0]) for name in CIFAR100])
    known = len(labels) > 0 and labels.min() >= 0 and labels.max() < len(CIFAR100)
    if not known or labels.shape != groups.shape or (group_of[labels] != groups).any():
        raise UserError(f"{file} has labels that are not those of CIFAR-100's classes and superclasses: fetch it again")
    return images.reshape(-1, 3, SIDE, SIDE), labels
