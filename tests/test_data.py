"""Sources and splits: the right images, divided the right way, from archives that may be broken."""

import hashlib
import itertools
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED_SPLITS, Compose
from PIL import Image

from fewshot.build import build
from fewshot.data.images import ImageSet
from fewshot.data.omniglot import load_omniglot
from fewshot.data.splits import class_lists, split_classes
from fewshot.data.strokes import load_strokes
from fewshot.errors import UserError


def pixel_accuracy(image_set: ImageSet, tasks: int = 600) -> float:
    """5-way 1-shot accuracy of the nearest image by cosine, 15 queries a class."""
    draw = np.random.default_rng(0)
    pixels = torch.nn.functional.normalize(image_set.images.flatten(1).float(), dim=-1).unflatten(0, (-1, 20))
    scores = []
    for _ in range(tasks):
        classes = draw.choice(len(pixels), 5, replace=False)
        order = [draw.permutation(20)[:16] for _ in classes]
        support = torch.stack([pixels[c, o[0]] for c, o in zip(classes, order, strict=True)])
        queries = torch.cat([pixels[c, o[1:]] for c, o in zip(classes, order, strict=True)])
        scores.append(((queries @ support.T).argmax(1) == torch.arange(5).repeat_interleave(15)).float().mean())
    return torch.stack(scores).mean().item()


@pytest.fixture(scope="module")
def strokes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return load_strokes(str(tmp_path_factory.mktemp("strokes")), 28)


def test_strokes_is_large_and_as_hard_for_pixels_as_a_script(strokes: ImageSet) -> None:
    assert len(strokes.names) >= 1000
    assert strokes.counts == (20,) * len(strokes.names)
    assert strokes.images.shape == (20 * len(strokes.names), 1, 28, 28)
    assert 0.35 < pixel_accuracy(strokes) < 0.60
    assert 0.04 < strokes.images.float().mean() / 255 < 0.15
    assert len({image.tobytes() for image in strokes.images[::20].numpy()}) == len(strokes.names)


def test_strokes_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """The digest is pinned: another libm, processor or numpy that rounds differently shows here."""
    small = load_strokes(str(tmp_path), 28, alphabets=3, characters=4)
    assert hashlib.sha256(small.images.numpy().tobytes()).hexdigest()[:16] == PINNED_STROKES
    other = load_strokes(str(tmp_path), 28, alphabets=3, characters=4, seed=1)
    assert not torch.equal(small.images, other.images)
    larger = load_strokes(str(tmp_path), 28, alphabets=4, characters=4)
    assert torch.equal(larger.images[:240], small.images), "more alphabets leave the first ones as they are"


PINNED_STROKES = "52591122654d5254"


def test_strokes_at_another_size_and_bad_sizes(tmp_path: Path) -> None:
    assert load_strokes(str(tmp_path), 20, alphabets=2, characters=1).images.shape[-2:] == (20, 20)
    with pytest.raises(UserError, match="data.source.alphabets=1"):
        load_strokes(str(tmp_path), 28, alphabets=1)


def test_packed_copy_is_read_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    made = load_strokes(str(tmp_path), 28, alphabets=2, characters=2)
    (packed,) = tmp_path.glob("*.npz")
    before = packed.stat().st_mtime_ns
    assert torch.equal(load_strokes(str(tmp_path), 28, alphabets=2, characters=2).images, made.images)
    assert packed.stat().st_mtime_ns == before, "read, not written"
    whole = packed.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:2000] + b"\xff" * 50 + whole[2050:], b"", b"not a zip"):
        packed.write_bytes(damaged)
        assert torch.equal(load_strokes(str(tmp_path), 28, alphabets=2, characters=2).images, made.images)
        assert packed.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [packed.name], "no temporary file is left"


def test_a_folder_that_cannot_be_written_costs_the_copy_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    made = load_strokes(str(tmp_path / "file"), 28, alphabets=2, characters=1)
    assert made.counts == (20, 20)


def test_omniglot_from_archives_or_folders(fake_omniglot: Path) -> None:
    packed = load_omniglot(str(fake_omniglot), 28, download=False)
    assert packed.images.shape == (240, 1, 28, 28)
    assert packed.counts == (20,) * 12
    assert packed.names[0] == "background_Alpha/character01"
    assert packed.parts == ("background",) * 6 + ("evaluation",) * 6
    assert packed.images.float().mean() / 255 < 0.2, "ink is 1"
    for part in ("background", "evaluation"):
        archive = fake_omniglot / f"images_{part}.zip"
        zipfile.ZipFile(archive).extractall(fake_omniglot / "omniglot-py")
        archive.unlink()
    unpacked = load_omniglot(str(fake_omniglot), 28, download=False)
    assert torch.equal(unpacked.images, packed.images)
    assert unpacked.names == packed.names


def test_a_replaced_archive_is_decoded_again(fake_omniglot: Path) -> None:
    before = load_omniglot(str(fake_omniglot), 28)
    archive = fake_omniglot / "images_background.zip"
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    white = fake_omniglot / "white.png"
    Image.new("1", (105, 105), 1).save(white)
    with zipfile.ZipFile(archive, "w") as new:
        for number, name in enumerate(members):
            new.writestr(name, white.read_bytes() if number == 0 else members[name])
    after = load_omniglot(str(fake_omniglot), 28)
    assert after.images[0].max() == 0
    assert torch.equal(after.images[1:], before.images[1:])


def test_no_data_and_no_network_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_network)
    with pytest.raises(UserError, match=r"images_background.zip .* data=strokes needs no download .*Network is unrea"):
        load_omniglot(str(tmp_path / "nothing"), 28)
    with pytest.raises(UserError, match="no Omniglot in"):
        load_omniglot(str(tmp_path / "nothing"), 28, download=False)


def test_broken_archives_are_named(fake_omniglot: Path) -> None:
    archive = fake_omniglot / "images_evaluation.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"images_evaluation.zip is damaged .*delete it and fetch it again"):
        load_omniglot(str(fake_omniglot), 28)
    archive.write_bytes(whole[:3000] + bytes(200) + whole[3200:])
    with pytest.raises(UserError, match=r"images_evaluation.zip is damaged"):
        load_omniglot(str(fake_omniglot), 28)
    assert not list(fake_omniglot.glob("*.npz")), "nothing half-decoded is kept"


def test_missing_drawings_and_wrong_sizes_are_refused(fake_omniglot: Path) -> None:
    archive = fake_omniglot / "images_background.zip"
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name in list(members)[1:]:
            new.writestr(name, members[name])
    with pytest.raises(UserError, match="background_Alpha/character01 has 19"):
        load_omniglot(str(fake_omniglot), 28)
    small = fake_omniglot / "small.png"
    Image.new("1", (28, 28)).save(small)
    with zipfile.ZipFile(archive, "w") as new:
        for name in members:
            new.writestr(name, small.read_bytes())
    with pytest.raises(UserError, match="28×28 pixels, Omniglot's have 105×105"):
        load_omniglot(str(fake_omniglot), 28)


def test_no_member_of_an_archive_leaves_the_folder(fake_omniglot: Path) -> None:
    with zipfile.ZipFile(fake_omniglot / "images_background.zip", "a") as archive:
        archive.writestr("../escaped.png", b"out")
        archive.writestr("/tmp/fewshot-escaped.png", b"out")
        archive.writestr("../images_background/../../x/character01/0001_01.txt", b"out")
    outside = set(fake_omniglot.parent.iterdir())
    load_omniglot(str(fake_omniglot), 28)
    assert set(fake_omniglot.parent.iterdir()) == outside
    assert not Path("/tmp/fewshot-escaped.png").exists()


def test_real_omniglot(omniglot_root: str) -> None:
    omniglot = load_omniglot(omniglot_root, 28, download=False)
    assert omniglot.images.shape == (1623 * 20, 1, 28, 28)
    assert omniglot.counts == (20,) * 1623
    assert omniglot.parts.count("background") == 964
    assert len({name.split("/")[0] for name in omniglot.names}) == 50
    assert 0.04 < omniglot.images.float().mean() / 255 < 0.15
    assert 0.35 < pixel_accuracy(omniglot) < 0.60


def test_omniglot_tasks_are_those_of_the_first_version(omniglot_root: str, compose_cfg: Compose) -> None:
    """The 1000 test tasks of the README's results, recorded before classes could be uneven."""
    data = build(compose_cfg("data=omniglot", f"data.root={omniglot_root}", small=False).data)
    assert data.episodes_sha256("test") == "bd05021894f0a4bfc5e7e1e2966a4f392333c21586e1211b7494440ebf35d270"


COUNTS = {
    "official": None,  # the alphabets drawn for validation decide
    "background_characters": (771, 193, 659),
    "random_characters": (1100, 100, 423),
    "vinyals": (1028, 172, 423),
}


@pytest.mark.parametrize("name", COUNTS)
def test_splits_of_omniglot(omniglot_root: str, name: str) -> None:
    omniglot = load_omniglot(omniglot_root, 28, download=False)
    split = split_classes(omniglot, name, seed=0)
    for a, b in itertools.combinations(split.values(), 2):
        assert not set(a) & set(b)
    assert sum(len(classes) for classes in split.values()) == 1623
    assert all(classes == sorted(classes) for classes in split.values())
    alphabets = {part: {omniglot.names[i].split("/")[0] for i in classes} for part, classes in split.items()}
    if name == "official":
        assert [len(alphabets[part]) for part in ("train", "val", "test")] == [25, 5, 20]
        assert len(split["test"]) == 659
    else:
        assert tuple(len(split[part]) for part in ("train", "val", "test")) == COUNTS[name]
    if name == "background_characters":
        assert alphabets["train"] & alphabets["val"], "the homework's split shares alphabets"
    if name == "vinyals":
        assert split_classes(omniglot, name, seed=9) == split
        for part in split:
            path = SHARED_SPLITS / "vinyals" / f"{part}.txt"
            if path.exists():
                assert sorted(omniglot.names[i] for i in split[part]) == sorted(path.read_text().split())
    else:
        assert split_classes(omniglot, name, seed=0) == split
        assert split_classes(omniglot, name, seed=1) != split


def test_class_lists_carry_the_sha_of_the_list(strokes: ImageSet) -> None:
    split = split_classes(strokes, "official", 0)
    listed = class_lists(strokes, split)
    train = listed["train"]
    assert len(train["classes"]) == len(split["train"])
    assert train["sha256"] == hashlib.sha256("\n".join(train["classes"]).encode()).hexdigest()


def test_split_refusals(strokes: ImageSet) -> None:
    with pytest.raises(UserError, match="data.split=vinyals lists characters of Omniglot"):
        split_classes(strokes, "vinyals", 0)
    with pytest.raises(UserError, match="data.split=oficial is not one of official"):
        split_classes(strokes, "oficial", 0)
    with pytest.raises(UserError, match="data.split=folders takes the folders train, val and test"):
        split_classes(strokes, "folders", 0)
    for rule in ("official", "background_characters"):
        with pytest.raises(UserError, match=f"data.split={rule} divides the background .* data.split=random_classes"):
            split_classes(nameless(9), rule, 0)


def nameless(classes: int) -> ImageSet:
    """One pixel a class, no groups and no parts."""
    names = tuple(f"{number:03d}" for number in range(classes))
    return ImageSet(torch.zeros(classes, 1, 1, 1, dtype=torch.uint8), (1,) * classes, names, ("",) * classes)


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(3, (1, 1, 1)), (8, (4, 2, 2)), (15, (5, 5, 5)), (24, (14, 5, 5)), (100, (64, 16, 20)), (1000, (640, 160, 200))],
)
def test_random_classes_are_divided_as_miniimagenet(classes: int, sizes: tuple[int, ...]) -> None:
    """Few classes are divided so that validation and test have five, or a third."""
    image_set = nameless(classes)
    split = split_classes(image_set, "random_classes", 0)
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == sizes
    assert sorted(itertools.chain(*split.values())) == list(range(classes))
    assert split_classes(image_set, "random_classes", 0) == split
    assert len({str(split_classes(image_set, "random_classes", seed)) for seed in range(9)}) > 3


def test_random_classes_need_three() -> None:
    with pytest.raises(UserError, match="data.split=random_classes needs 3 classes or more.* but 2 are there"):
        split_classes(nameless(2), "random_classes", 0)


def test_a_deleted_packed_copy_is_made_again(tmp_path: Path) -> None:
    """A packed copy may be deleted at any time."""
    load_strokes(str(tmp_path / "deep" / "er"), 28, alphabets=2, characters=1)
    shutil.rmtree(tmp_path / "deep")
    assert load_strokes(str(tmp_path / "deep" / "er"), 28, alphabets=2, characters=1).counts == (20, 20)


def test_a_copy_packed_in_the_old_layout_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before classes could be uneven, images were packed as (classes, drawings, C, H, W), without counts."""
    made = load_strokes(str(tmp_path), 28, alphabets=2, characters=2)
    (packed,) = tmp_path.glob("*.npz")
    with np.load(packed) as new:
        old = {key: new[key] for key in ("names", "parts", "fingerprint")}
        old["images"] = new["images"].reshape(4, 20, 1, 28, 28)
    assert str(old["fingerprint"]).endswith(" layout 2"), "nor does the version before read ours as its own"
    old["fingerprint"] = np.array(str(old["fingerprint"]).removesuffix(" layout 2"))
    np.savez(packed, **old)
    with caplog.at_level("INFO"):
        again = load_strokes(str(tmp_path), 28, alphabets=2, characters=2)
    assert again.counts == made.counts
    assert torch.equal(again.images, made.images)
    assert "packed from other sources, or by another version" in caplog.text, "it is not called damaged"


def test_images_of_a_class_in_uneven_classes() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    uneven = ImageSet(images, (1, 3, 2), ("a", "b", "c"), ("", "", ""))
    assert [uneven.of_class(number).flatten().tolist() for number in range(3)] == [[0], [1, 2, 3], [4, 5]]
