"""Tasks that were drawn beforehand, as a folder of images: read them, write them, hand in the answers.

    DIR/support/0000/image_0.png …   image i is of class i modulo N: the first N are one image of each class
    DIR/query/0000/image_0.png …     in any order

The layout of the test set of homework 15 of H.-Y. Lee's Machine Learning course, 2022, for any number of
tasks, ways and shots.
"""

import csv
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.data.images import MODES, as_shown, centred_square, paper_is_white
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch

_NUMBER = re.compile(r"(\d+)\.\w+$")


class TaskFolder(NamedTuple):
    """All tasks of a folder; labels of the queries are unknown and stand as 0."""

    tasks: TaskBatch
    background: str | None  # of the files: "white", which was turned to 0, or "black"; None for colours


def read_tasks(folder: Path, *, n_way: int, channels: int, image_size: int) -> TaskFolder:
    """Reads every task, as the model wants its images: ink 1, `channels`, `image_size`².

    The largest square in the middle of an image is taken. Of grey images, paper is what lies along the borders: where
    most of it is bright, the images are inverted. Colours stay as they are; what is transparent lies on white, 16-bit
    grey keeps its upper 8 bits.

    Raises:
        UserError: a part or a file missing, uneven, unreadable or of another size; names the file.
    """
    if n_way < 1 or image_size < 1:
        raise UserError(f"data.n_way={n_way} and data.image_size={image_size} must be at least 1")
    names = {part: _task_names(folder / part) for part in ("support", "query")}
    if names["support"] != names["query"]:
        odd = sorted(set(names["support"]) ^ set(names["query"]))[0]
        raise UserError(f"{folder} has task {odd} in only one of support/ and query/: every task needs both")
    support, query = (_read_part(folder / part, names[part], channels, image_size) for part in names)
    if support.shape[1] % n_way:
        raise UserError(
            f"{folder}/support holds {support.shape[1]} images a task, no multiple of data.n_way={n_way}: "
            "take a model that was trained at the folder's own number of classes"
        )
    white = channels == 1 and paper_is_white(support)
    support_x, query_x = (
        torch.from_numpy(255 - images if white else images).movedim(-1, -3).to(torch.float32).div_(255)
        for images in (support, query)
    )
    support_y = torch.arange(support.shape[1]).remainder(n_way).repeat(len(support), 1)
    query_y = torch.zeros(query.shape[:2], dtype=torch.int64)
    background = None if channels == 3 else "white" if white else "black"
    return TaskFolder(TaskBatch(support_x, support_y, query_x, query_y), background)


def write_tasks(folder: Path, batch: TaskBatch, *, n_way: int, first: int = 0) -> None:
    """Writes T tasks as numbers `first`, …: grey on white paper; the support set in the order of the labels."""
    for task, (support_x, support_y, query_x, _) in enumerate(zip(*batch, strict=True)):
        shots = len(support_y) // n_way
        order = support_y.argsort(stable=True).view(n_way, shots).T.flatten()  # one of each class, then the next
        for part, images in (("support", support_x[order]), ("query", query_x)):
            place = folder / part / f"{first + task:04d}"
            place.mkdir(parents=True)
            for number, image in enumerate(images):
                pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                grey_or_colour = 255 - pixels[..., 0] if pixels.shape[-1] == 1 else pixels
                Image.fromarray(grey_or_colour).save(place / f"image_{number}.png")


def write_answers(path: Path, classes: Tensor) -> None:
    """Writes `id,class`: tasks in order, queries in order; (T, M). The whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "class"])
        writer.writerows(enumerate(classes.flatten().tolist()))
    temporary.replace(path)


def read_answers(path: Path, tasks: int, queries: int, n_way: int) -> Tensor:
    """Reads what `write_answers` wrote: (tasks, queries) int64."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
            found = csv.DictReader(file, restkey="class")  # a row with more fields than columns names no one class
            rows = [(int(row["id"]), int(row["class"])) for row in found]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a file of answers with columns id,class ({error})") from error
    if [identity for identity, _ in rows] != list(range(tasks * queries)):
        raise UserError(f"{path} has {len(rows)} rows, wanted are ids 0 to {tasks * queries - 1} in order")
    classes = [label for _, label in rows]
    if strange := sorted(set(classes) - set(range(n_way))):
        raise UserError(f"{path} names class {strange[0]}, but tasks have classes 0 to {n_way - 1}")
    return torch.tensor(classes).view(tasks, queries)


def _task_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: tasks lie in support/0000, query/0000 and so on")
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=lambda name: (len(name), name))
    if not names:
        raise UserError(f"{folder} holds no tasks: they are folders 0000, 0001 and so on")
    return names


def _files(folder: Path) -> list[Path]:
    """image_0 … image_(M-1), by number; a gap is a missing image."""
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            match = _NUMBER.search(path.name)
            if match is None:
                raise UserError(f"{path} is no image of a task: they are called image_0.png, image_1.png and so on")
            if other := numbered.get(number := int(match[1])):
                raise UserError(f"{other} and {path} are both image {number} of the task: remove one of them")
            numbered[number] = path
    missing = next((number for number in range(len(numbered)) if number not in numbered), None)
    if missing is not None or not numbered:
        raise UserError(f"{folder}/image_{missing or 0}.png is missing")
    return [numbered[number] for number in range(len(numbered))]


def _read_part(folder: Path, names: Sequence[str], channels: int, image_size: int) -> NDArray[np.uint8]:
    """All tasks of support/ or query/: (T, M, image_size, image_size, channels)."""
    files = [_files(folder / name) for name in names]
    counts = [len(paths) for paths in files]
    usual = max(set(counts), key=counts.count)
    for name, count in zip(names, counts, strict=True):
        if count != usual:
            raise UserError(f"{folder / name} holds {count} images, other tasks {usual}: every task needs as many")
    size: tuple[int, int] | None = None
    images = []
    for path in itertools.chain.from_iterable(files):
        image = _read_image(path, MODES[channels])
        size = size or image.size
        if image.size != size:
            raise UserError(
                f"{path} has {image.size[0]}×{image.size[1]} pixels, the images before it {size[0]}×{size[1]}"
            )
        square = centred_square(image, image_size)
        images.append(np.asarray(square).reshape(image_size, image_size, channels))
    return np.stack(images).reshape(len(names), usual, *images[0].shape)


def _read_image(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return as_shown(image).convert(mode)
    except Exception as error:  # Pillow's readers raise whatever comes to them at a broken file
        raise UserError(f"{path} cannot be read as an image ({error})") from error
