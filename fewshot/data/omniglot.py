"""Omniglot: 1,623 characters of 50 alphabets, each drawn once by 20 people.

B. Lake, R. Salakhutdinov, J. Tenenbaum: Human-level concept learning through probabilistic program
induction. Science 350, 2015. https://github.com/brendenlake/omniglot
"""

import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewshot.data.download import download as fetch
from fewshot.data.images import ImageSet, cached, fingerprint
from fewshot.errors import UserError

log = logging.getLogger(__name__)

CHARACTERS = {"background": 964, "evaluation": 659}
DRAWINGS = 20
SIDE = 105  # pixels, as scanned
_MEMBER = re.compile(r"(?:^|/)images_(?:background|evaluation)/([^/]+)/(character\d\d)/[^/]+\.png$")


def load_omniglot(root: str, image_size: int, *, download: bool = True) -> ImageSet:
    """Omniglot at `image_size`², ink = 255, from archives or folders under `root`, or from the net.

    Looks in `root` and `root/omniglot-py` (torchvision's folder) for `images_background` and
    `images_evaluation`, as `.zip` or unpacked. Archives are read in place: nothing is unpacked, so no
    member can leave the folder. The decoded set is packed beside the data for the next start.

    Args:
        root: the folder; created when downloading.
        image_size: H = W; scans are 105×105 and are reduced with Lanczos filtering, as MAML's code does.
        download: fetch what is missing with torchvision, which checks its md5.

    Raises:
        UserError: nothing found and nothing fetched; a damaged archive; characters or drawings missing.
    """
    if image_size < 1:
        raise UserError(f"data.image_size={image_size} must be at least 1")
    found = {part: _find(Path(root), part) for part in CHARACTERS}
    if None in found.values() and download:
        _download(Path(root), [part for part, place in found.items() if place is None])
        found = {part: _find(Path(root), part) for part in CHARACTERS}
    places = {part: place for part, place in found.items() if place is not None}
    if len(places) < len(CHARACTERS):
        raise UserError(_where_to_get(root))
    path = places["background"].parent / f"omniglot-{image_size}.npz"
    return cached(path, fingerprint(Path(root), places.values(), 1, image_size), lambda: _decode(places, image_size))


def _find(root: Path, part: str) -> Path | None:
    for folder in (root, root / "omniglot-py"):
        for place in (folder / f"images_{part}", folder / f"images_{part}.zip"):
            if place.exists():
                return place
    return None


def _where_to_get(root: str) -> str:
    return (
        f"no Omniglot in {root}: put images_background.zip and images_evaluation.zip "
        "(from github.com/brendenlake/omniglot, folder python) there, or name their folder with data.root=DIR; "
        "data=strokes needs no download"
    )


def _download(root: Path, parts: list[str]) -> None:
    from torchvision.datasets import Omniglot

    for part in parts:
        name = f"images_{part}"
        url = f"{Omniglot.download_url_prefix}/{name}.zip"
        fetch(url, root / f"{name}.zip", Omniglot.zips_md5[name], _where_to_get(str(root)))


def _decode(places: dict[str, Path], image_size: int) -> ImageSet:
    images, names, parts = [], [], []
    for part, place in places.items():
        log.info("decoding %s (once; the result is packed beside it)", place)
        drawings = defaultdict(list)
        for name, image in _members(place):
            drawings[name].append(shrink(image, image_size, place))
        uneven = [f"{name} has {len(d)}" for name, d in drawings.items() if len(d) != DRAWINGS]
        if len(drawings) != CHARACTERS[part] or uneven:
            raise UserError(
                f"{place} has {len(drawings)} characters where Omniglot's {part} set has {CHARACTERS[part]} of "
                f"{DRAWINGS} drawings each{'; ' + uneven[0] if uneven else ''}: fetch it again"
            )
        for name in sorted(drawings):
            images.extend(drawings[name])
            names.append(name)
            parts.append(part)
    return ImageSet(torch.from_numpy(np.stack(images))[:, None], (DRAWINGS,) * len(names), tuple(names), tuple(parts))


def _members(place: Path) -> Iterator[tuple[str, Image.Image]]:
    """("alphabet/character", drawing) in the order of the file names, from an archive or a folder."""
    try:
        if place.is_dir():
            for path in sorted(place.glob("*/character*/*.png")):
                with Image.open(path) as image:
                    yield f"{path.parent.parent.name}/{path.parent.name}", image
            return
        with zipfile.ZipFile(place) as archive:
            for member in sorted(archive.namelist()):
                if match := _MEMBER.search(member):
                    with archive.open(member) as file, Image.open(file) as image:
                        yield f"{match[1]}/{match[2]}", image
    except Exception as error:  # readers of archives and images raise whatever comes to them at a broken file
        raise _damaged(place, error) from error


def shrink(image: Image.Image, image_size: int, place: Path) -> np.ndarray:
    if image.size != (SIDE, SIDE):
        raise UserError(
            f"{place} holds an image of {image.size[0]}×{image.size[1]} pixels, Omniglot's have {SIDE}×{SIDE}"
        )
    try:
        grey = image.convert("L")  # it is read only now
    except Exception as error:
        raise _damaged(getattr(image, "filename", "") or place, error) from error  # the drawing, where it is a file
    grey = grey.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return 255 - np.asarray(grey)  # ink is black on paper; here ink is 1, so that padding with 0 adds paper


def _damaged(place: str | Path, error: Exception) -> UserError:
    return UserError(f"{place} is damaged ({error}): delete it and fetch it again")
