"""miniImageNet: 100 classes of ImageNet, 600 colour images each, at 84×84.

O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra: Matching Networks for One Shot Learning. NIPS 2016.
https://arxiv.org/abs/1606.04080. The classes and their division are those of S. Ravi, H. Larochelle: Optimization as a
Model for Few-Shot Learning. ICLR 2017, whose list most papers take.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewshot.data.assembly import Assembly, refuse_other_counts
from fewshot.data.images import ImageSet, as_shown, cached, fingerprint
from fewshot.data.pickles import read_arrays
from fewshot.data.published import MINIIMAGENET
from fewshot.errors import UserError

log = logging.getLogger(__name__)

IMAGES = 600  # of a class
SIDE = 84
_PLACES = (".", "miniimagenet", "mini-imagenet")  # below data.root
_PICKLES = (  # of M. Ren et al. (2018) and of S. Gidaris and N. Komodakis (2018), by split
    {split: f"mini-imagenet-cache-{split}.pkl" for split in MINIIMAGENET},
    {
        "train": "miniImageNet_category_split_train_phase_train.pickle",
        "val": "miniImageNet_category_split_val.pickle",
        "test": "miniImageNet_category_split_test.pickle",
    },
)
_SPLIT_OF = {name: split for split, names in MINIIMAGENET.items() for name in names}
_VERSION = 1  # of what is done to the images


def load_miniimagenet(root: str, image_size: int) -> ImageSet:
    """miniImageNet from pickles or image files below `root`; it may not be passed on, so nothing is downloaded.

    Looks in `root`, `root/miniimagenet` and `root/mini-imagenet` for `mini-imagenet-cache-{train,val,test}.pkl`, for
    `miniImageNet_category_split_{train_phase_train,val,test}.pickle`, and for images: in folders
    named by class (`n01532829/…`), these perhaps inside train, val and test, or in one folder `images`, by file names
    that begin with the class (`images/n0153282900000005.jpg`). Pickles are read without running anything in them
    (`fewshot.data.pickles`).

    At 84×84 the set is 1.27 GB, as is the packed copy beside it. Images go into it straight away, so that image files
    take no more memory than that, and pickles 1.6 GB, while the largest of them is read.

    Args:
        root: the folder.
        image_size: H = W; images of another size are brought to it with Lanczos filtering, stretched where they are
            not square, as MAML's code does.

    Returns:
        Classes by their ImageNet names in the order of the splits, parts train, val and test; of a class the images in
        the order of the pickle, or of the file names.

    Raises:
        UserError: nothing found; a damaged file, or one that names code; a class that is missing, incomplete or among
            those of another split.
    """
    if image_size < 1:
        raise UserError(f"data.image_size={image_size} must be at least 1")
    for folder in (Path(root) / place for place in _PLACES):
        if pickles := _pickles(folder):
            files, build = list(pickles.values()), partial(_from_pickles, pickles, image_size)
        elif classes := _image_files(folder):
            refuse_other_counts({name: len(classes[name]) for name in _SPLIT_OF}, IMAGES, str(folder))
            files = [file for name in _SPLIT_OF for file in classes[name]]
            build = partial(_from_files, folder, classes, image_size)
        else:
            continue
        return cached(
            folder / f"miniimagenet-{image_size}.npz", fingerprint(folder, files, _VERSION, image_size), build
        )
    raise UserError(
        f"no miniImageNet in {root}: put mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl there "
        "(github.com/renmengye/few-shot-ssl-public says where they are), or its images by class (n01532829/…), or name "
        "their folder with data.root=DIR; it is not downloaded, since ImageNet's images may not be passed on"
    )


def _pickles(folder: Path) -> dict[str, Path]:
    """The pickle of every split; empty where one of them is missing."""
    choices = ({split: folder / name for split, name in names.items()} for names in _PICKLES)
    return next((files for files in choices if all(file.is_file() for file in files.values())), {})


def _from_pickles(pickles: Mapping[str, Path], image_size: int) -> ImageSet:
    folder = str(pickles["train"].parent)
    assembly = Assembly(MINIIMAGENET, IMAGES, image_size, folder)
    for split, path in pickles.items():
        log.info("decoding %s (once; the result is packed beside it)", path)
        with path.open("rb") as file:
            images, places = _checked(read_arrays(file, str(path)), str(path))
        for name, numbers in places.items():
            _refuse_other_split(name, split, str(path))
            for start in range(0, len(numbers), IMAGES):  # a copy of no more than a class
                assembly.add(name, images[numbers[start : start + IMAGES]].transpose(0, 3, 1, 2))
        del images
    return assembly.finish()


def _checked(content: Any, path: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images (N, 84, 84, 3), and of every class where its images are."""
    try:
        if "image_data" in content:
            images = np.asarray(content["image_data"])
            places = {name: np.asarray(numbers, dtype=np.intp) for name, numbers in content["class_dict"].items()}
        else:
            images, labels = np.asarray(content["data"]), np.asarray(content["labels"])
            places = {name: np.flatnonzero(labels == label) for name, label in content["catname2label"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has neither image_data with class_dict nor data with labels and catname2label ({error}): fetch it "
            "again"
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
        raise UserError(
            f"{path} has images of shape {images.shape} and type {images.dtype}, miniImageNet's are of shape "
            f"(N, {SIDE}, {SIDE}, 3) and type uint8: fetch it again"
        )
    for name, numbers in places.items():
        if numbers.ndim != 1 or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(images)):
            raise UserError(f"{path} says that class {name} has images beyond its {len(images)}: fetch it again")
    return images, places


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """The images of every listed class, in order; empty where there is no class at all."""
    found: dict[str, list[Path]] = defaultdict(list)
    for parent in (folder, *(folder / split for split in MINIIMAGENET)):
        for name in sorted(entry.name for entry in _entries(parent) if entry.name in _SPLIT_OF and entry.is_dir()):
            if parent != folder:
                _refuse_other_split(name, parent.name, str(folder))
            found[name] += _entries(parent / name)
    if not found:
        for file in _entries(folder / "images"):
            if file.name[:9] in _SPLIT_OF:
                found[file.name[:9]].append(file)
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder by name, but for what is hidden; nothing where there is no folder."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".")) if folder.is_dir() else []


def _refuse_other_split(name: str, split: str, place: str) -> None:
    """Training on a class that others test on would not be noticed in any score."""
    if _SPLIT_OF.get(name) != split:
        where = f"is in {_SPLIT_OF[name]}" if name in _SPLIT_OF else "is not"
        raise UserError(
            f"{place} has class {name} for {split}, which {where} by the lists of Ravi and Larochelle (2017): fetch it "
            "again, or use it by data=folder"
        )


def _from_files(folder: Path, files: Mapping[str, list[Path]], image_size: int) -> ImageSet:
    assembly = Assembly(MINIIMAGENET, IMAGES, image_size, str(folder))
    log.info("decoding the images in %s (once; the result is packed there)", folder)
    for name in _SPLIT_OF:
        for file in files[name]:
            assembly.add(name, _read(file))
    return assembly.finish()


def _read(file: Path) -> np.ndarray:
    """One image: (1, 3, H, W)."""
    try:
        with Image.open(file) as opened:
            return np.asarray(as_shown(opened).convert("RGB")).transpose(2, 0, 1)[None]
    except Exception as error:  # Pillow's readers raise whatever comes to them at a broken file
        raise UserError(f"{file} cannot be read as an image ({error}): fetch it again") from error
