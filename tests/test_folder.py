"""A folder of one's own images: every format read right, every mistake named, no image where it is not due."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image

from fewshot.build import build
from fewshot.data import folder as folder_module
from fewshot.data.datamodule import EpisodeData
from fewshot.data.folder import load_folder
from fewshot.data.images import ImageSet
from fewshot.data.splits import split_classes
from fewshot.data.task_folder import read_tasks, write_tasks
from fewshot.errors import UserError
from fewshot.tasks import TaskBatch

RED = (200, 40, 20)


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def plain(path: Path, color: tuple[int, ...] = RED, size: tuple[int, int] = (12, 10)) -> None:
    save(path, Image.new("RGB", size, color))


def only_image(root: Path, image: Image.Image, *, channels: int = 3, invert: bool = False) -> torch.Tensor:
    """What is read of an image that is alone in its folder, at 8×8: (channels, 8, 8)."""
    save(root / "class" / "image.png", image)
    (read,) = load_folder(str(root), 8, channels=channels, invert=invert).images
    return read


def make_three(root: Path) -> Path:
    """train/ with two classes, val/ and test/ with one; of one, two, three and four images."""
    for number, name in enumerate(("train/cat", "train/ant", "val/bee", "test/ape"), 1):
        for image in range(number):
            plain(root / name / f"{image}.png", (10 * number, 0, image))
    return root


def test_formats_sizes_and_modes_of_uneven_classes(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 30), RED)
    for name, image in {
        "b/1.png": red,
        "b/2.jpg": red.resize((9, 50)),
        "b/3.bmp": red.resize((8, 8)),
        "b/4.gif": red.quantize(4),
        "b/5.webp": red,
        "b/6.TIFF": red,
        "b/7.png": red.convert("RGBA"),
        "b/8.png": red.convert("P", palette=Image.Palette.ADAPTIVE),
        "b/9.jpg": red.convert("CMYK"),
        "a/grey.png": Image.new("L", (20, 20), 90),
        "a/bits.png": Image.new("1", (20, 20), 1),
    }.items():
        save(tmp_path / name, image)
    found = load_folder(str(tmp_path), 8)
    assert found.names == ("a", "b")
    assert found.counts == (2, 9)
    assert found.parts == ("", "")
    assert found.images.shape == (11, 3, 8, 8)
    assert found.images.dtype == torch.uint8
    assert (found.of_class(1).int() - torch.tensor(RED).view(3, 1, 1)).abs().max() < 12  # jpg, webp: lossy
    assert found.of_class(0)[:, 0, 0, 0].tolist() == [255, 90], "by name: bits.png, grey.png"
    grey = load_folder(str(tmp_path), 8, channels=1)
    assert grey.images.shape == (11, 1, 8, 8)
    assert (grey.of_class(1).int() - red.convert("L").getpixel((0, 0))).abs().max() < 12


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_square_is_taken_and_nothing_stretched(tmp_path: Path, wide: bool) -> None:
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[:, 30:60, 1] = 255
    image = Image.fromarray(pixels if wide else np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    read = only_image(tmp_path, image)
    assert (read[1] == 255).all(), "the square in the middle is green"
    assert (read[[0, 2]] == 0).all()


def test_orientation_of_a_camera_is_honoured(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20), dtype=np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    (tmp_path / "class").mkdir()
    Image.fromarray(pixels).save(tmp_path / "class" / "image.jpg", exif=exif)
    (read,) = load_folder(str(tmp_path), 8, channels=1).images
    assert read[0, 0].max() < 20
    assert read[0, -1].min() > 235


def test_what_is_transparent_lies_on_white_and_inverts_to_paper(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)  # black, transparent
    pixels[:4, :, 3] = 255  # ink above
    drawing = Image.fromarray(pixels)
    assert only_image(tmp_path / "a", drawing, channels=1)[0, :, 0].tolist() == [0] * 4 + [255] * 4
    assert only_image(tmp_path / "b", drawing, channels=1, invert=True)[0, :, 0].tolist() == [255] * 4 + [0] * 4
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert only_image(tmp_path / "c", palette).min() == 255


def test_grey_of_16_bits_keeps_its_upper_8(tmp_path: Path) -> None:
    ramp = np.array([[0, 1 << 8, 100 << 8, 255 << 8]], dtype=np.uint16)
    read = only_image(tmp_path, Image.fromarray(np.repeat(ramp, 4, 0).repeat(2, 1).repeat(2, 0)), channels=1)
    assert read[0, 0].tolist() == [0, 0, 1, 1, 100, 100, 255, 255]


def test_hidden_files_and_the_packed_copy_are_no_classes(tmp_path: Path) -> None:
    plain(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    for _ in range(2):
        assert load_folder(str(tmp_path), 8).names == ("cat",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fewshot-8-3.npz", ".git", "cat"]


def test_train_val_and_test_are_the_splits(tmp_path: Path) -> None:
    found = load_folder(str(make_three(tmp_path)), 8)
    assert found.names == ("train/ant", "train/cat", "val/bee", "test/ape")
    assert found.parts == ("train", "train", "val", "test")
    assert found.counts == (2, 1, 3, 4)
    assert [found.of_class(number)[0, 0, 0, 0].item() for number in range(4)] == [20, 10, 30, 40]
    assert split_classes(found, "folders", 0) == {"train": [0, 1], "val": [2], "test": [3]}
    assert split_classes(found, "published", 0) == split_classes(found, "folders", 0)
    with pytest.raises(UserError, match="data.split=random_classes divides the classes anew.* data.split=folders"):
        split_classes(found, "random_classes", 0)


def test_split_folders_needs_the_three(tmp_path: Path) -> None:
    plain(tmp_path / "cat" / "1.png")
    with pytest.raises(UserError, match="data.split=folders takes the folders train, val and test"):
        split_classes(load_folder(str(tmp_path), 8), "folders", 0)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (lambda d: (d / "train" / "cat" / "notes.txt").write_text("x"), "cat/notes.txt cannot be read as an"),
    "cut short": (
        lambda d: (d / "train" / "cat" / "0.png").write_bytes((d / "train" / "cat" / "0.png").read_bytes()[:45]),
        "cat/0.png cannot be read as an image .*: repair it",
    ),
    "unknown range": (
        lambda d: Image.new("F", (8, 8)).save(d / "train" / "cat" / "1.tiff"),
        "cat/1.tiff cannot be read .*mode F, of unknown range: save it with 8 or 16 bits",
    ),
    "dangling link": (lambda d: (d / "train" / "cat" / "1.png").symlink_to(d / "gone"), "cat/1.png cannot be read"),
    "empty class": (lambda d: (d / "val" / "dog").mkdir(), "class .*/val/dog holds no image"),
    "empty split": (lambda d: (d / "val" / "bee").rename(d / "test" / "bee"), "/val holds no class"),
    "folder in a class": (lambda d: (d / "val" / "bee" / "more").mkdir(), "bee/more is a folder inside a class"),
    "only two splits": (lambda d: (d / "val").rename(d / "dog"), "is a folder inside a class: .*data.root/CLASS/IMAGE"),
    "file beside classes": (lambda d: plain(d / "val" / "1.png"), "val/1.png lies beside the classes"),
    "class in two splits": (
        lambda d: plain(d / "test" / "cat" / "1.png"),
        "train/cat and .*/test/cat are one class in two splits",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_packed(tmp_path: Path, name: str) -> None:
    root = make_three(tmp_path / "images")
    spoil, message = WRONG[name]
    spoil(root)
    with pytest.raises(UserError, match=message) as refused:
        load_folder(str(root), 8)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(root.glob(".*"))


def test_missing_and_empty_roots_and_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder .*/none: name the folder of your images with data.root"):
        load_folder(str(tmp_path / "none"), 8)
    with pytest.raises(UserError, match="holds no class"):
        load_folder(str(tmp_path), 8)
    plain(tmp_path / "cat.png")
    with pytest.raises(UserError, match="cat.png lies beside the classes"):
        load_folder(str(tmp_path), 8)
    with pytest.raises(UserError, match="data.source.channels=4 must be 1 .* or 3"):
        load_folder(str(tmp_path), 8, channels=4)
    with pytest.raises(UserError, match="data.image_size=0"):
        load_folder(str(tmp_path), 0)


def test_the_packed_copy_is_used_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = folder_module._decode

    def counted(*given) -> ImageSet:
        decoded.append(1)
        return decode(*given)

    def load(channels: int = 3, invert: bool = False) -> tuple[ImageSet, int]:
        decoded.clear()
        return load_folder(str(tmp_path), 8, channels=channels, invert=invert), len(decoded)

    monkeypatch.setattr(folder_module, "_decode", counted)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        plain(tmp_path / name)
    first, built = load()
    assert built == 1
    again, built = load()
    assert built == 0
    assert torch.equal(again.images, first.images)
    assert again.counts == first.counts == (2, 1)
    plain(tmp_path / "cat" / "2.png", (1, 2, 3))  # written
    found, built = load()
    assert built == 1
    assert found.images[1, :, 0, 0].tolist() == [1, 2, 3]
    (tmp_path / "cat" / "2.png").rename(tmp_path / "dog" / "2.png")  # moved
    found, built = load()
    assert built == 1
    assert found.counts == (1, 2)
    (tmp_path / "dog" / "2.png").unlink()
    assert load()[0].counts == (1, 1)
    for channels, invert in ((1, False), (1, True), (3, True)):  # each has a copy of its own
        assert [load(channels, invert)[1] for _ in range(2)] == [1, 0]
    assert load()[1] == 0


def folder_data(compose_cfg: Compose, root: Path, *overrides: str) -> EpisodeData:
    small = ("data.image_size=8", "data.meta_batch_size=16", "data.val_episodes=40", "episodes=40")
    data = build(compose_cfg("data=folder", f"data.root={root}", *small, *overrides, small=False).data)
    data.setup()
    return data


def test_tasks_hold_every_image_under_its_own_class_and_once(compose_cfg: Compose, image_folder: Path) -> None:
    """Red tells the class and blue the image, in what the learner is handed."""
    data = folder_data(compose_cfg, image_folder)
    assert data.input_shape == (3, 8, 8)
    seen: dict[str, set[int]] = {}
    for split in ("train", "val", "test"):
        batch = data.task_batch(split, 0)
        x, y = torch.cat([batch.support_x, batch.query_x], 1), torch.cat([batch.support_y, batch.query_y], 1)
        colors = x[..., 0, 0].mul(255).round().long()  # (T, M, 3)
        classes, images = colors[..., 0] // 10, colors[..., 2] // 10
        seen[split] = set(classes.flatten().tolist())
        assert seen[split] == set(data.classes[split])
        for labels, theirs, numbers in zip(y, classes, images, strict=True):
            assert len(set(zip(labels.tolist(), theirs.tolist(), strict=True))) == 5, "a label is a class"
            pairs = list(zip(theirs.tolist(), numbers.tolist(), strict=True))
            assert len(set(pairs)) == len(pairs), "support and queries share no image"
        assert int((images - 16 - classes % 3).max()) < 0
    assert not seen["train"] & seen["val"] | seen["train"] & seen["test"] | seen["val"] & seen["test"]


def test_folders_reach_the_tasks(compose_cfg: Compose, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for number, name in enumerate(("train/b", "train/c", "val/d", "val/e", "test/a", "test/f")):
        for image in range(2 + number):
            plain(root / name / f"{image}.png", (10 * number, 0, image))
    data = folder_data(compose_cfg, root, "data.split=folders", "data.n_way=2", "data.eval_q_query=1")
    for split, expected in (("train", {0, 1}), ("val", {2, 3}), ("test", {4, 5})):
        reds = data.task_batch(split, 0).query_x[..., 0, 0, 0].mul(25.5).round()
        assert set(reds.flatten().long().tolist()) == expected
    assert data.record()["split"] == "folders"


def test_a_class_with_too_few_images_is_refused(compose_cfg: Compose, image_folder: Path) -> None:
    name = folder_data(compose_cfg, image_folder).class_lists()["val"]["classes"][2]
    for image in sorted((image_folder / name).iterdir())[9:]:
        image.unlink()
    with pytest.raises(UserError, match=rf"q_query=15 = 16 images of a class, but class {name} has 9 \(1 of the 5"):
        folder_data(compose_cfg, image_folder)


def test_drawn_tasks_keep_their_colours(tmp_path: Path) -> None:
    """Ink and paper are of grey images alone: a bright photograph is not taken for a drawing on white."""
    labels = torch.arange(2)[None]
    bright = torch.full((1, 2, 3, 8, 8), 0.8)
    write_tasks(tmp_path / "tasks", TaskBatch(bright, labels, bright, labels), n_way=2)
    read = read_tasks(tmp_path / "tasks", n_way=2, channels=3, image_size=8)
    assert read.background is None
    torch.testing.assert_close(read.tasks.query_x, bright)
