"""Whatever is drawn, read or configured comes out right or is refused in one line: examples made up by Hypothesis.

FEWSHOT_FUZZ=20 python -m pytest tests/test_fuzz.py   takes twenty times as many, others every time.
"""

# ruff: noqa: PT017 - being refused is one of two right answers, and says something

import csv
import io
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Compose
from hydra.errors import ConfigCompositionException
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from fewshot import engine
from fewshot.build import build
from fewshot.data.episodes import (
    TaskIndex,
    TaskShape,
    _distinct,
    _shuffled,
    check_shape,
    draw_tasks,
    evaluation_block,
    generator,
)
from fewshot.data.task_folder import read_answers, read_tasks, write_answers, write_tasks
from fewshot.draw_tasks import draw
from fewshot.errors import UserError
from fewshot.runs import train
from fewshot.tasks import BLOCK, TaskBatch

TIMES = int(os.environ.get("FEWSHOT_FUZZ", "1"))
EXAMPLES = 100 * TIMES


def fuzz(examples: int = EXAMPLES) -> settings:
    """The same examples at every run of the suite; no clock, since machines differ; nothing kept on disk."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def in_one_line(error: UserError) -> bool:
    return len(str(error).splitlines()) == 1


# --- Tasks as indices ---

SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(0, 2**31)
SPLITS = st.sampled_from(["train", "val", "test"])
Fillable = tuple[list[int], list[int], TaskShape]


@st.composite
def fillable(draw: st.DrawFn) -> Fillable:
    """Classes of a split, in any order; images of every class of the data set; tasks that the split can fill."""
    shape = TaskShape(draw(st.integers(2, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    least = shape.k_shot + shape.q_query
    own = draw(st.lists(st.integers(least, least + 9), min_size=shape.n_way, max_size=10))
    others = draw(st.lists(st.integers(0, 30), max_size=5))
    order = draw(st.permutations(range(len(own) + len(others))))
    counts = [count for _, count in sorted(zip(order, own + others, strict=True))]
    return order[: len(own)], counts, shape


def owners(counts: Sequence[int]) -> torch.Tensor:
    """The class of every image."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@fuzz()
@given(fillable(), st.integers(1, 5), SEEDS, SPLITS, STEPS, st.booleans())
def test_a_task_is_what_it_says(given: Fillable, tasks: int, seed: int, split: str, step: int, fixed: bool) -> None:
    classes, counts, shape = given
    index = draw_tasks(generator(seed, split, step), tasks, classes, counts, shape, fixed_labels=fixed)
    assert {(tensor.dtype, len(tensor)) for tensor in index} == {(torch.int64, tasks)}
    for s_i, s_y, q_i, q_y in zip(*index, strict=True):
        images, labels = torch.cat([s_i, q_i]), torch.cat([s_y, q_y])
        assert len(images.unique()) == len(images), "no image twice, in support, queries or both"
        pairs = set(zip(owners(counts)[images].tolist(), labels.tolist(), strict=True))
        drawn, named = {c for c, _ in pairs}, {y for _, y in pairs}
        assert len(pairs) == len(drawn) == len(named) == shape.n_way, "each class has one label, each label one class"
        assert drawn <= set(classes)
        assert all(classes[y] == c for c, y in pairs) if fixed else named == set(range(shape.n_way))
        assert Counter(s_y.tolist()) == dict.fromkeys(named, shape.k_shot)
        assert Counter(q_y.tolist()) == dict.fromkeys(named, shape.q_query)


@fuzz()
@given(fillable(), st.tuples(SEEDS, SPLITS, STEPS), st.tuples(SEEDS, SPLITS, STEPS))
def test_seed_split_and_step_decide_alone(given: Fillable, first: tuple, second: tuple) -> None:
    """32 tasks of two classes of two images can be drawn in 2¹⁶⁰ ways: two of them are not alike by chance."""

    def block(at: tuple) -> TaskIndex:
        return evaluation_block(*at, *given)

    places = [second, (first[0] + 1, *first[1:]), (*first[:2], first[2] + 1)]
    places += [(first[0], split, first[2]) for split in ("train", "val", "test")]
    for place in places:
        same = [torch.equal(a, b) for a, b in zip(block(first), block(place), strict=True)]
        assert all(same) if place == first else not any(same[::2])
    assert len(block(first).support_i) == BLOCK
    assert generator(*first, 1).random() != generator(*first, 0).random(), "augmentation has a stream of its own"


@fuzz()
@given(fillable(), st.lists(st.integers(0, 40), min_size=15, max_size=15), SEEDS)
def test_classes_of_other_splits_do_not_matter(given: Fillable, sizes: list[int], seed: int) -> None:
    """What is drawn of a class, counted from its first image, is the same whatever the others hold."""
    classes, counts, shape = given
    other = [count if c in classes else sizes[c] for c, count in enumerate(counts)]
    places = []
    for each in (counts, other):
        index = draw_tasks(generator(seed, "val", 0), 8, classes, each, shape)
        starts = torch.tensor([0, *each]).cumsum(0)
        places.append([owned := owners(each)[index.query_i], index.query_i - starts[owned], index.query_y])
    assert all(torch.equal(a, b) for a, b in zip(*places, strict=True))


@fuzz(max(10, EXAMPLES // 4))
@given(fillable(), SEEDS)
def test_labels_classes_images_and_places_are_fair(given: Fillable, seed: int) -> None:
    """Every count stays within six deviations of its expectation, by which one in 500 million would not."""
    classes, counts, shape = given
    tasks, ways = 2000, shape.n_way
    index = draw_tasks(generator(seed, "train", 0), tasks, classes, counts, shape)
    sizes, places = torch.tensor(counts)[classes], torch.tensor([0, *counts]).cumsum(0)[:-1]

    def refuse_unfair(seen: torch.Tensor, share: torch.Tensor | float) -> None:
        share = torch.as_tensor(share, dtype=torch.float64)
        assert ((seen - tasks * share).abs() <= 6 * (tasks * share * (1 - share)).sqrt() + 1e-6).all()

    for images, labels, each in ((*index[:2], shape.k_shot), (*index[2:], shape.q_query)):
        seen = images.flatten().bincount(minlength=sum(counts))
        for c, size in zip(classes, sizes.tolist(), strict=True):
            refuse_unfair(seen[places[c] : places[c] + size], ways / len(classes) * each / size)
        pairs = torch.zeros(len(counts), ways).index_put_(
            (owners(counts)[images], labels), torch.tensor(1 / each), accumulate=True
        )
        refuse_unfair(pairs[classes], 1 / len(classes))
        refuse_unfair(torch.stack([column.bincount(minlength=ways) for column in labels.T]), 1 / ways)


@fuzz()
@given(st.data(), st.lists(st.integers(1, 60), min_size=1, max_size=50), SEEDS)
def test_distinct_numbers_are_distinct_and_in_range(data: st.DataObject, totals: list[int], seed: int) -> None:
    """Also where each task has another number of classes to choose from, as within alphabets."""
    count = data.draw(st.integers(1, min(totals)))
    chosen = _distinct(np.random.default_rng(seed), np.array(totals), count)
    assert chosen.shape == (len(totals), count)
    assert chosen.min() >= 0
    assert (chosen < np.array(totals)[:, None]).all()
    assert all(len(set(row)) == count for row in chosen.tolist())


@fuzz()
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), SEEDS)
def test_a_shuffled_image_keeps_its_label(shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 9, shape), rng.integers(0, 3, shape)
    found = _shuffled(rng, images, labels)
    for task in range(shape[0]):
        before, after = (zip(i[task].ravel(), y[task].ravel(), strict=True) for i, y in ((images, labels), found))
        assert Counter(before) == Counter(after)


@st.composite
def classes_and_shape(draw: st.DrawFn) -> tuple[TaskShape, dict[str, int]]:
    """Classes with their numbers of images, and tasks that they may just fill, or just not."""
    shape = TaskShape(draw(st.integers(-1, 6)), draw(st.integers(-1, 6)), draw(st.integers(-1, 6)))
    classes = max(0, shape.n_way + draw(st.integers(-1, 1)))
    least = max(1, shape.k_shot + shape.q_query)
    counts = st.sampled_from([least - 1, least, least, least, least + 1, 20])
    names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1)
    return shape, draw(st.dictionaries(names, counts, min_size=classes, max_size=classes))


@fuzz()
@given(classes_and_shape(), SPLITS)
def test_refused_is_exactly_what_cannot_be_drawn(given: tuple[TaskShape, dict[str, int]], split: str) -> None:
    shape, counts = given
    n_way, k_shot, q_query = shape
    few = [name for name, count in counts.items() if count < k_shot + q_query]
    possible = n_way >= 2 and k_shot >= 1 and q_query >= 1 and n_way <= len(counts) and not few
    try:
        check_shape(shape, split, counts)
    except UserError as error:
        assert not possible
        assert in_one_line(error)
        if n_way < 2 or min(k_shot, q_query) < 1:
            told = shape
        else:
            told = (n_way, len(counts)) if n_way > len(counts) else (k_shot + q_query, min(counts.values()))
        assert all(str(number) in str(error) for number in told)
    else:
        assert possible
        draw_tasks(generator(0, split, 0), 2, range(len(counts)), list(counts.values()), shape)


# --- Tasks as folders of images, answers as a file ---


class Written:
    """Tasks, and a folder that they were written to."""

    def __init__(self, folder: Path, data: st.DataObject) -> None:
        number = data.draw(st.tuples(*(st.integers(1, most) for most in (3, 4, 2, 4))), "tasks, ways, shots, queries")
        self.tasks, self.ways, self.shots, queries = number
        self.channels, self.size = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(3, 7), "pixels")
        rng = np.random.default_rng(data.draw(SEEDS, "pixels' seed"))
        shape = (self.tasks, self.ways * self.shots + queries, self.channels, self.size, self.size)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        if self.channels == 1:  # ink 255; the borders of a drawing are paper
            pixels[..., [0, -1], :] = pixels[..., [0, -1]] = 0
        support, query = torch.from_numpy(pixels).float().div(255).split([self.ways * self.shots, queries], dim=1)
        labels = rng.permuted(np.tile(np.arange(self.ways), (self.tasks, self.shots)), axis=1)
        self.batch = TaskBatch(support, torch.from_numpy(labels), query, torch.zeros(query.shape[:2]).long())
        self.folder = folder
        first = data.draw(st.sampled_from([0, 7, 9998]), "first")
        write_tasks(folder, self.batch, n_way=self.ways, first=first)

    def read(self, **other: int) -> TaskBatch:
        given = {"n_way": self.ways, "channels": self.channels, "image_size": self.size} | other
        return read_tasks(self.folder, **given).tasks

    def refuse_another(self, found: TaskBatch) -> None:
        """Support images are read as one of each class, then the next of each, in the order that they had."""
        for task in range(self.tasks):
            x, y = self.batch.support_x[task], self.batch.support_y[task]
            expected = [x[y == label][shot] for shot in range(self.shots) for label in range(self.ways)]
            assert torch.equal(found.support_x[task], torch.stack(expected))
        assert found.support_y.tolist() == [list(range(self.ways)) * self.shots] * self.tasks
        assert torch.equal(found.query_x, self.batch.query_x)
        assert torch.equal(found.query_y, self.batch.query_y)


def on_white(ink: Image.Image) -> Image.Image:
    """Grey as black ink of so much cover on nothing."""
    return Image.merge("LA", [Image.new("L", ink.size), Image.eval(ink, lambda value: 255 - value)])


KEPT: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {  # how a file holds the same pixels, its ending
    "as it is": (lambda image: image, "png"),
    "bmp": (lambda image: image, "bmp"),
    "tiff": (lambda image: image, "TIFF"),
    "ppm": (lambda image: image, "ppm"),
    "opaque": (lambda image: image.convert("RGBA"), "png"),
    "colour": (lambda image: image.convert("RGB"), "png"),
    "palette": (lambda image: image.convert("P") if image.mode == "L" else image, "png"),
    "16 bits": (lambda image: sixteen_bits(image) if image.mode == "L" else image, "png"),
    "transparent": (lambda image: on_nothing(image) if image.mode == "L" else image, "png"),
}
TASK_NAMES = st.from_regex(r"[a-cX-Z0-9_ä-][a-cX-Z0-9_ .ä-]{0,5}", fullmatch=True)
PREFIXES = st.from_regex(r"|[a-cX-Z0-9_-][a-cX-Z0-9_ .ä-]{0,5}[a-cX-Z_ .ä-]", fullmatch=True)


@pytest.mark.parametrize("kept", KEPT)
@fuzz(max(10, EXAMPLES // 5))
@given(st.data())
def test_what_is_written_is_read_back(kept: str, data: st.DataObject) -> None:
    """Under any names, in any format: the reader goes by the number at a name's end."""
    with tempfile.TemporaryDirectory() as temporary:
        written = Written(Path(temporary), data)
        written.refuse_another(written.read())
        names = data.draw(st.lists(TASK_NAMES, min_size=written.tasks, max_size=written.tasks, unique=True), "tasks")
        names.sort(key=lambda name: (len(name), name))
        prefix, digits = data.draw(PREFIXES, "prefix"), data.draw(st.integers(1, 4), "digits")
        keep, ending = KEPT[kept]
        for part in ("support", "query"):
            tasks = sorted((written.folder / part).iterdir(), key=lambda path: (len(path.name), path.name))
            for task, name in zip(tasks, names, strict=True):
                renamed = Path(temporary) / f"{part} renamed" / name
                renamed.mkdir(parents=True)
                for file in task.iterdir():
                    number = int(file.stem.removeprefix("image_"))
                    with Image.open(file) as image:
                        keep(image).save(renamed / f"{prefix}{number:0{digits}d}.{ending}")
                (renamed / ".DS_Store").write_bytes(b"no image")
            shutil.rmtree(written.folder / part)
            renamed.parent.rename(written.folder / part)
            (written.folder / part / "notes.txt").write_text("beside the tasks")
        written.refuse_another(written.read())


def sixteen_bits(grey: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99)


def on_nothing(grey: Image.Image) -> Image.Image:
    """Black where there is ink, transparent where there is none."""
    return Image.merge("LA", [Image.new("L", grey.size), Image.fromarray(255 - np.asarray(grey))])


NAMES = st.sampled_from(
    ["image_0.png", "image_1.png", "image_01.png", "image_5.png", "other_1.png", "1.png", "image_1.PNG", "image_1"]
    + ["notes.txt", ".hidden", "0000", "0001", "1", "x", "support", "query", "image_٣.png", "image_9.png.tmp", "a b"]
    + [os.fsdecode(b"\xff_1.png"), "ü" * 100 + "1.png", "9" * 200 + ".png"]
)
FORMATS = [
    "PNG",
    "BMP",
    "GIF",
    "TIFF",
    "JPEG",
    "PPM",
    "WEBP",
    "ICO",
    "TGA",
    "PCX",
    "SGI",
    "JPEG2000",
    "DDS",
    "IM",
    "XBM",
]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]


def some_image(data: st.DataObject, size: int) -> bytes:
    """An image of any mode and format, of any size; as bytes."""
    mode, kind = data.draw(st.sampled_from(MODES), "mode"), data.draw(st.sampled_from(FORMATS), "format")
    image, buffer = Image.new(mode, (data.draw(st.sampled_from([size, 1, 40]), "width"), size)), io.BytesIO()
    try:
        image.save(buffer, kind)
    except Exception:  # a format that has no such mode
        return b""
    return buffer.getvalue()


def damage(folder: Path, data: st.DataObject, size: int) -> None:
    """Does something to something in the folder."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    if not paths:
        return
    path, name = data.draw(st.sampled_from(paths), "what"), data.draw(NAMES, "name")
    other = path.with_name(name)
    while os.path.lexists(other):
        other = other.with_name(f"{other.name}_")
    content = path.read_bytes() if path.is_file() else b""
    kinds = ["delete", "rename", "copy", "nest", "link", "loop", "add", "empty"]
    match data.draw(st.sampled_from(kinds + 2 * ["cut", "spoil", "image", "spoilt image"] * path.is_file()), "how"):
        case "delete":
            path.unlink() if path.is_file() else shutil.rmtree(path)
        case "rename":
            path.rename(other)
        case "copy":
            shutil.copy(path, other) if path.is_file() else shutil.copytree(path, other, symlinks=True)
        case "nest":
            path.rename(other)
            path.mkdir()
            other.rename(path / name)
        case "link":
            other.symlink_to("nowhere")
        case "loop":
            other.symlink_to(other.name)
        case "add":
            other.write_bytes(some_image(data, size))
        case "empty":
            other.mkdir()
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content)), "bytes")])
        case "image":
            path.write_bytes(some_image(data, size))
        case "spoil":
            path.write_bytes(spoilt(content, data))
        case "spoilt image":
            path.write_bytes(spoilt(some_image(data, size), data))


def spoilt(content: bytes, data: st.DataObject) -> bytes:
    """Other bytes in place of some, or between them."""
    at, new = data.draw(st.integers(0, len(content)), "at"), data.draw(st.binary(max_size=6), "new")
    return content[:at] + new + content[at + len(new) * data.draw(st.booleans(), "in place") :]


def refuse_wrong_reading(folder: Path, found: TaskBatch, channels: int, size: int) -> None:
    """All tasks and all of their files, each under its number; pixels as Pillow says, where these are plain."""
    names = [{path.name for path in (folder / part).iterdir() if path.is_dir()} for part in ("support", "query")]
    assert names[0] == names[1], "what was learned from is of the task that is asked"
    for part, read in (("support", found.support_x), ("query", found.query_x)):
        tasks = sorted((p for p in (folder / part).iterdir() if p.is_dir()), key=lambda p: (len(p.name), p.name))
        assert len(read) == len(tasks)
        assert read.shape[2:] == (channels, size, size)
        assert torch.isfinite(read).all()
        for task, images in zip(tasks, read.movedim(2, -1), strict=True):
            files = [file for file in task.iterdir() if not file.name.startswith(".")]
            numbers = [int(re.search(r"(\d+)\.\w+$", file.name)[1]) for file in files]
            assert sorted(numbers) == list(range(len(images))), "every file is one image, and the other way round"
            for number, file in zip(numbers, files, strict=True):
                with Image.open(file) as image:
                    plain = image.mode in ("1", "L", "RGB") and not image.has_transparency_data and not image.getexif()
                    if plain and image.size == (size, size):
                        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(
                            images[number].shape
                        )
                        ours = images[number].mul(255).round().numpy()
                        assert (ours == pixels).all() or (channels == 1 and (ours == 255 - pixels).all())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@fuzz(3 * EXAMPLES)
@given(st.data())
def test_a_damaged_folder_is_read_right_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        written = Written(Path(temporary) / "tasks", data)
        for _ in range(data.draw(st.integers(1, 3), "damages")):
            damage(written.folder, data, written.size)
        asked = {"channels": data.draw(st.sampled_from([written.channels, 1, 3]), "channels")}
        asked |= {"n_way": data.draw(st.sampled_from([written.ways, written.ways, 1, 2, 0, -1]), "ways")}
        asked |= {"image_size": data.draw(st.sampled_from([written.size, written.size, 1, 9, 0]), "image_size")}
        try:
            found = written.read(**asked)
        except UserError as error:
            assert in_one_line(error)
            assert str(written.folder) in str(error) or min(asked.values()) < 1
            return
        assert found.support_x.shape[1] % asked["n_way"] == 0
        assert found.support_y.tolist() == [
            [i % asked["n_way"] for i in range(found.support_x.shape[1])] for _ in found.support_x
        ]
        refuse_wrong_reading(written.folder, found, asked["channels"], asked["image_size"])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:IM image format is deprecated")
@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "GIF", "DDS", "IM"])
@fuzz()
@given(st.data())
def test_a_spoilt_image_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Pillow's readers raise whatever comes to them, and promise sizes that no memory holds."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        for part in ("support", "query"):
            path = Path(temporary) / part / "0000" / "image_0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path, kind)
        content = path.read_bytes()
        for _ in range(data.draw(st.integers(1, 3), "times")):
            content = spoilt(content, data)
        path.write_bytes(content)
        try:
            found = read_tasks(Path(temporary), n_way=1, channels=1, image_size=9).tasks
        except UserError as error:
            assert in_one_line(error)
            assert str(path) in str(error)
            return
        refuse_wrong_reading(Path(temporary), found, 1, 9)


TABLES = st.lists(
    st.lists(
        st.sampled_from(["id", "class", "0", "1", "2", "-1", " 1", "", "x", '"', "1.0", "9" * 30, "9" * 5000]),
        max_size=4,
    ),
    max_size=5,
)


@fuzz(3 * EXAMPLES)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_answers_are_read_right_or_refused(data: st.DataObject, tasks: int, queries: int, ways: int, seed: int) -> None:
    classes = torch.from_numpy(np.random.default_rng(seed).integers(0, ways, (tasks, queries)))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "answers.csv"
        write_answers(path, classes)
        assert torch.equal(read_answers(path, tasks, queries, ways), classes)
        content = path.read_bytes()
        match data.draw(st.sampled_from(["spoil", "field", "field", "between", "row", "table", "bytes"]), "how"):
            case "spoil":
                content = spoilt(content, data)
            case "field" | "between" as kind:
                pieces = re.split(rb"([,\n])", content)
                at = data.draw(st.integers(0, len(pieces) // 2 - 1), "which")
                field = [b"", b"0", b"1", b"-1", b"%d" % ways, b"class", b'"', b"9" * 25, b"9" * 200_000]
                between = [b"", b",", b"\n", b"\r\n", b"\n\n", b"\r", b"\0", b" "]
                new = data.draw(st.sampled_from(field if kind == "field" else between), "new")
                pieces[2 * at + (kind == "between")] = new
                content = b"".join(pieces)
            case "row":
                rows = content.splitlines(keepends=True)
                at, to = (data.draw(st.integers(0, len(rows) - 1), word) for word in ("which", "where"))
                rows[to:to] = [rows.pop(at)] * data.draw(st.integers(0, 2), "times")
                content = b"".join(rows)
            case "table":
                content = "\n".join(",".join(row) for row in data.draw(TABLES, "table")).encode()
            case "bytes":
                content = data.draw(st.binary(max_size=50), "content")
        path.write_bytes(content)
        others = [(1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        other = data.draw(st.sampled_from([(0, 0, 0)] * 2 * len(others) + others), "asked for other numbers")
        tasks, queries, ways = (max(1, a + b) for a, b in zip((tasks, queries, ways), other, strict=True))
        try:
            found = read_answers(path, tasks, queries, ways)
        except UserError as error:
            assert in_one_line(error)
            assert str(path) in str(error)
            return
        header, *rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
        assert max(map(len, rows)) <= len(header)
        by_name = [dict(zip(header, row, strict=False)) for row in rows]
        assert [int(row["id"]) for row in by_name] == list(range(tasks * queries))
        assert [int(row["class"]) for row in by_name] == found.flatten().tolist()
        assert found.shape == (tasks, queries)
        assert set(found.flatten().tolist()) <= set(range(ways))


@fuzz(max(5, EXAMPLES // 20))
@given(
    st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), SEEDS, st.sampled_from(["val", "test"])
)
def test_drawn_folders_are_the_tasks_of_an_evaluation(
    compose_cfg: Compose, ways: int, shots: int, queries: int, episodes: int, seed: int, split: str
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "tasks"
        shape = (f"data.n_way={ways}", f"data.k_shot={shots}", f"data.eval_q_query={queries}", "data.image_size=9")
        number = (f"episodes={episodes}", f"data.val_episodes={episodes}", f"data.eval_seed={seed}")
        cfg = compose_cfg(f"out={out}", f"split={split}", *shape, *number, config="draw_tasks")
        draw(cfg)
        data = build(cfg.data)
        blocks = [data.task_batch(split, block) for block in data.blocks(split)]
        drawn = TaskBatch(*(torch.cat(tensors) for tensors in zip(*blocks, strict=True)))
        found = read_tasks(out, n_way=ways, channels=1, image_size=9).tasks
        answers = read_answers(out.with_name("tasks.labels.csv"), episodes, ways * queries, ways)
    assert torch.equal(found.query_x, drawn.query_x)
    assert torch.equal(answers, drawn.query_y)
    for x, y, x_drawn, y_drawn in zip(found.support_x, found.support_y, drawn.support_x, drawn.support_y, strict=True):
        assert torch.equal(x[y.argsort(stable=True)], x_drawn[y_drawn.argsort(stable=True)])


# --- Configurations ---

CONF = ROOT / "conf"
CHOICES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("algo", "aug", "model")}
OPTIMIZERS = [None, None, None, *sorted(path.stem for path in (CONF / "algo" / "inner_optimizer").glob("*.yaml"))]

# Values by the type of what stands in the YAML; what nobody means; what is large and costs nothing, where it may be.
SOUND = {
    bool: ["true", "false"],
    int: ["1", "2", "3"],
    float: ["0.01", "0.5", "1", "3.0"],
    str: ["auto", "none", "dnc"],
    list: ["[8]", "[8,8,8]"],
}
ODD = [
    "-1",
    "0",
    "-0.5",
    "0.5",
    "1",
    "abc",
    "''",
    "null",
    "true",
    "nan",
    "inf",
    "-inf",
    "[]",
    "[0]",
    "{a:1}",
    "1e30",
    "1e-30",
]
HUGE = ["1000000000", "99999999999999999999999"]
FREE = {
    *("algo.task_chunk", "algo.inner_batch", "algo.eval_inner_batch", "algo.multi_step_until", "seed", "episodes"),
    *("algo.second_order_from", "outer.curve_episodes", "outer.grad_clip", "data.steps_per_epoch", "data.eval_seed"),
    *("data.n_way", "data.k_shot", "data.q_query", "data.num_classes", "trainer.log_every_n_steps", "data.source.seed"),
    *("data.train_n_way", "data.train_k_shot", "data.eval_q_query"),
}
KEYS = {  # what is set without a look at its YAML
    "data.n_way": ["2", "3", "5", "6"],
    "data.train_n_way": ["2", "5", "7"],
    "data.k_shot": ["1", "2", "19"],
    "data.train_k_shot": ["1", "2"],
    "data.q_query": ["1", "2", "19"],
    "data.eval_q_query": ["1", "3"],
    "data.meta_batch_size": ["1", "2", "3"],
    "data.num_classes": ["5", "7", "null"],
    "data.image_size": ["8", "15", "16", "28"],
    "data.split": ["official", "background_characters", "random_characters", "random_classes", "vinyals", "published"],
    "data.quarter_turns": ["true"],
    "data.fixed_labels": ["true", "false"],
    "data.steps_per_epoch": ["1", "5"],
    "data.val_episodes": ["1", "2", "33"],
    "data.eval_seed": ["5"],
    "data.num_workers": ["0"],
    "data.source.alphabets": ["2", "6"],
    "data.source.characters": ["3", "10"],
    "data.source.seed": ["1"],
    "model.hidden": ["1", "8", "12", "[4]"],
    "model.norm": ["batch", "group", "layer", "none"],
    "model.pooled": ["0", "2", "3"],
    "outer.schedule": ["constant", "linear", "cosine"],
    "outer.grad_clip": ["0.1", "10"],
    "outer.recompute": ["true"],
    "outer.compile": ["true"],
    "outer.curve_episodes": ["1", "2"],
    "outer.optimizer.lr": ["0.1", "10"],
    "outer.optimizer._target_": ["torch.optim.SGD", "torch.optim.NoSuch", "torch.optim"],
    "trainer.max_steps": ["1", "2"],
    "trainer.log_every_n_steps": ["1", "2"],
    "trainer.precision": ["bf16-mixed", "bf16-true", "64-true", "16-mixed"],
    "seed": ["1"],
    "episodes": ["1"],
    "optimized_metric": ["val/loss", "val/mse"],
}
CHEAP = ["test=false", "trainer.max_steps=1", "data.val_episodes=2", "data.image_size=16", "data.eval_q_query=2"]
CHEAP += ["data.meta_batch_size=2", "outer.curve_episodes=1"]


def values(group: str, name: str) -> dict[str, object]:
    """The keys of a choice with what stands there, and with those of the choice that it starts from."""
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    place = group.split("/")[0]
    found = {}
    for other in node.get("defaults", []):
        if isinstance(other, str) and other != "_self_" and "@" not in other:
            found |= values(group, other)
    own = OmegaConf.to_container(node.get(place, node), resolve=False)
    return found | {key: value for key, value in own.items() if key not in ("_target_", "defaults")}


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """An algorithm, an augmentation and a model, and values of theirs and of everything else, sound and odd."""
    algo = draw(st.sampled_from(CHOICES["algo"]))
    aug, model = (draw(st.sampled_from([None, None, *CHOICES[group]])) for group in ("aug", "model"))
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    groups = {"algo": algo, "aug": aug, "model": model, "algo/inner_optimizer": optimizer}
    sound = KEYS | {
        f"{group.replace('/', '.')}.{key}": SOUND.get(type(value), ["null"])
        for group, name in groups.items()
        if name is not None
        for key, value in values(group, name).items()
    }
    few = [f"{key}=1" for key in ("algo.inner_steps", "algo.eval_inner_steps", "algo.cg_steps") if key in sound]
    changed = draw(st.lists(st.sampled_from(sorted(sound)), max_size=6, unique=True))
    mostly = st.sampled_from([True, True, True, False])
    chosen = [
        f"{key}={draw(st.sampled_from(sound[key] if draw(mostly) else ODD + HUGE * (key in FREE)))}" for key in changed
    ]
    return [f"{group}={name}" for group, name in groups.items() if name is not None] + CHEAP + few + chosen


@fuzz(EXAMPLES // 2)
@given(overrides())
def test_a_configuration_trains_or_is_refused_before_it_trains(
    compose_cfg: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    steps, gradient = [], engine.meta_backward

    def counted(*args, **options):
        steps.append(1)
        return gradient(*args, **options)

    with tempfile.TemporaryDirectory() as temporary, monkeypatch.context() as patch:
        patch.setattr(engine, "meta_backward", counted)
        try:
            cfg = compose_cfg(*overrides, folder=Path(temporary))
            train(cfg)
        except (ConfigCompositionException, OmegaConfBaseException):  # of which `fewshot.errors` makes a line
            event("refused by Hydra")
            return
        except UserError as error:
            event("refused")
            assert in_one_line(error)
            assert not steps
            return
        event("trained")
        last = torch.load(Path(temporary) / "checkpoints" / "last.ckpt", weights_only=True)
        assert len(steps) >= last["global_step"] == cfg.trainer.max_steps
        assert all(torch.isfinite(weight).all() for weight in last["state_dict"].values())
