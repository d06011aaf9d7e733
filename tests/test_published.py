"""CIFAR-FS, FC100 and miniImageNet: the published lists, files in their true format, every mistake named."""

import gzip
import hashlib
import itertools
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PER_CLASS, SHARED_SPLITS, Compose, by_python2, cifar_file, mini_pickle
from PIL import Image

from fewshot.build import build
from fewshot.data import cifar
from fewshot.data.cifar import load_cifar_fs, load_fc100
from fewshot.data.images import ImageSet
from fewshot.data.miniimagenet import load_miniimagenet
from fewshot.data.published import CIFAR100, CIFAR_FS, FC100, MINIIMAGENET, SUPERCLASSES
from fewshot.data.splits import split_classes
from fewshot.errors import UserError
from fewshot.runs import evaluate, train

SPLITS = ("train", "val", "test")
LISTS = {"cifar-fs": CIFAR_FS, "fc100": FC100, "miniimagenet": MINIIMAGENET}


@pytest.mark.parametrize(
    ("name", "sizes", "digest"),
    [
        ("cifar-fs", (64, 16, 20), "63c7b40c468c81a9"),
        ("fc100", (60, 20, 20), "bce51227890c4282"),
        ("miniimagenet", (64, 16, 20), "ede6333c6bd8f133"),
    ],
)
def test_the_lists_are_disjoint_and_complete(name: str, sizes: tuple[int, ...], digest: str) -> None:
    """The digests are of the lists as `test_the_lists_are_those_that_others_share` found them."""
    lists = LISTS[name]
    listed = repr(sorted((split, *names) for split, names in lists.items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == digest
    assert tuple(lists) == SPLITS
    assert tuple(len(lists[split]) for split in SPLITS) == sizes
    assert len(set(itertools.chain(*lists.values()))) == 100
    assert all(list(names) == sorted(names) for names in lists.values())
    if name != "miniimagenet":
        assert set(itertools.chain(*lists.values())) == set(CIFAR100)


def test_superclasses_of_fc100_are_in_one_split() -> None:
    groups = {split: {name.split("/")[0] for name in names} for split, names in FC100.items()}
    assert [len(groups[split]) for split in SPLITS] == [12, 4, 4]
    assert len(set.union(*groups.values())) == 20


def test_cifar_100_numbers_classes_and_superclasses_by_the_alphabet() -> None:
    names = [name.split("/")[1] for name in CIFAR100]
    assert names == sorted(names)
    assert (names[0], names[99]) == ("apple", "worm")
    assert list(SUPERCLASSES) == sorted(SUPERCLASSES)
    assert all(len(classes.split()) == 5 for classes in SUPERCLASSES.values())


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_are_those_that_others_share(name: str) -> None:
    folder = SHARED_SPLITS / name
    if not folder.exists():
        pytest.skip("no lists beside the checkout")
    for split, names in LISTS[name].items():
        if name == "miniimagenet":
            assert sorted(names) == sorted((folder / f"{split}.txt").read_text().split())
            continue
        listed = json.loads((folder / f"{split}.json").read_text())
        whole = {"/".join(each) for each in listed if isinstance(each, list)}
        assert set(names) == whole | {each for each in CIFAR100 if each.split("/")[0] in listed}


def holds(image_set: ImageSet, shape: tuple[int, int]) -> None:
    """Every class has its colour, its images in order."""
    assert image_set.images.shape == (100 * PER_CLASS, 3, *shape)
    assert image_set.counts == (PER_CLASS,) * 100
    assert split_classes(image_set, "published", 0) == {
        split: [i for i, part in enumerate(image_set.parts) if part == split] for split in SPLITS
    }
    assert list(image_set.parts) == sorted(image_set.parts, key=SPLITS.index)


def test_cifar_of_a_folder_and_of_an_archive(fake_cifar: Path) -> None:
    for load, lists in ((load_cifar_fs, CIFAR_FS), (load_fc100, FC100)):
        found = load(str(fake_cifar), 32, download=False)
        holds(found, (32, 32))
        assert found.names == tuple(itertools.chain(*lists.values()))
        assert found.parts == tuple(split for split in SPLITS for _ in lists[split])
        for number, name in enumerate(found.names):
            red, green, blue = found.of_class(number)[:, :, 5, 7].T.tolist()
            assert set(red) == {CIFAR100.index(name)}, name
            assert green == [0] * 14 + [1] * 6, "first the file train, then test"
            assert blue == [*range(14), *range(6)]
    with tarfile.open(fake_cifar / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(fake_cifar / "cifar-100-python", "cifar-100-python")
    shutil.rmtree(fake_cifar / "cifar-100-python")
    packed = load_fc100(str(fake_cifar), 32, download=False)
    assert torch.equal(packed.images, found.images)
    assert sorted(path.name for path in fake_cifar.iterdir()) == [
        "cifar-100-python.tar.gz",
        "cifar_fs-32.npz",
        "fc100-32.npz",
    ], "nothing is unpacked"


def test_cifar_at_another_size_and_from_rows_and_columns(fake_cifar: Path) -> None:
    """A pixel's place: rows of a channel follow each other."""
    content = cifar_file(0, 14)
    ramp = np.zeros((1400, 3, 32, 32), dtype=np.uint8)
    ramp[:, 0] = np.arange(32)[:, None]  # red by row
    ramp[:, 1] = np.arange(32)  # green by column
    (fake_cifar / "cifar-100-python" / "train").write_bytes(
        by_python2(content | {"data": ramp.reshape(1400, 3072)}),
    )
    image = load_cifar_fs(str(fake_cifar), 32).of_class(3)[0]
    assert image[0, :, 9].tolist() == list(range(32))
    assert image[1, 9].tolist() == list(range(32))
    assert load_cifar_fs(str(fake_cifar), 16).of_class(3)[0].shape == (3, 16, 16)
    reduced = load_cifar_fs(str(fake_cifar), 16).of_class(3)[0]
    assert reduced[0, 2:-2, 8].tolist() == pytest.approx([2 * row + 0.5 for row in range(2, 14)], abs=1)
    assert reduced[1, 8, 2:-2].tolist() == pytest.approx([2 * column + 0.5 for column in range(2, 14)], abs=1)


def test_what_is_downloaded_is_the_archive_by_its_checksum(fake_cifar: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def served(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url.split("/")[-1], md5))
        Path(root).mkdir(parents=True, exist_ok=True)
        with tarfile.open(Path(root) / filename, "w:gz") as archive:
            archive.add(fake_cifar / "cifar-100-python", "cifar-100-python")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", served)
    root = tmp_path / "empty"
    for _ in range(2):
        assert load_cifar_fs(str(root), 32).counts == (PER_CLASS,) * 100
    assert asked == [("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")]
    assert sorted(path.name for path in root.iterdir()) == ["cifar-100-python.tar.gz", "cifar_fs-32.npz"]


Spoil = Callable[[Path], object]


def changed(**content) -> Spoil:
    return lambda d: (d / "cifar-100-python" / "train").write_bytes(by_python2(cifar_file(0, 14) | content))


def archived(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(root: Path) -> None:
        with tarfile.open(root / "made.tar", "w") as archive:
            archive.add(root / "cifar-100-python", "cifar-100-python")
        shutil.rmtree(root / "cifar-100-python")
        (root / "cifar-100-python.tar.gz").write_bytes(change((root / "made.tar").read_bytes()))
        (root / "made.tar").unlink()

    return spoil


def without_test(root: Path) -> None:
    (root / "cifar-100-python" / "test").rename(root / "other")
    archived(gzip.compress)(root)
    (root / "other").unlink()


def swapped(labels: list[int]) -> list[int]:
    return [{3: 4, 4: 3}.get(label, label) for label in labels]


CIFAR: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda d: shutil.rmtree(d / "cifar-100-python"), "no CIFAR-100 in .*: put cifar-100-python.tar.gz"),
    "half a folder": (lambda d: (d / "cifar-100-python" / "test").unlink(), "no CIFAR-100 in "),
    "half an archive": (archived(lambda b: gzip.compress(b)[:3000]), "tar.gz.* is damaged.*fetch it again"),
    "a wrong checksum": (
        archived(lambda b: gzip.compress(b)[:-8] + bytes(8)),
        "tar.gz is damaged .CRC check failed.*: delete it and fetch it again",
    ),
    "no archive": (archived(lambda b: b"hello"), "tar.gz is damaged .*: delete it and fetch it again"),
    "no tar": (archived(lambda b: gzip.compress(b"hello" * 999)), "tar.gz is damaged .*: delete it and fetch it"),
    "an archive without a file": (without_test, "tar.gz is damaged .*cifar-100-python/test.*not found"),
    "a file cut short": (
        lambda d: (d / "cifar-100-python" / "train").write_bytes(b"\x80\x02}"),
        "python/train is damaged, or no pickle of arrays .*: delete it and fetch it again",
    ),
    "code": (
        lambda d: (d / "cifar-100-python" / "train").write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R."),
        "python/train would run os.system, .* nothing of it was run",
    ),
    "CIFAR-10": (
        lambda d: (d / "cifar-100-python" / "train").write_bytes(by_python2({"labels": [1]})),
        "python/train is no file of CIFAR-100: it has no 'data'",
    ),
    "a list": (
        lambda d: (d / "cifar-100-python" / "train").write_bytes(by_python2([1])),  # type: ignore[arg-type]
        "python/train is no file of CIFAR-100",
    ),
    "other pixels": (
        changed(data=np.zeros((1400, 1024), np.uint8)),
        r"images of shape \(1400, 1024\) and type uint8 with 1400 labels, CIFAR-100's are rows of 3072 bytes",
    ),
    "other labels": (changed(fine_labels=[100] * 1400), "labels that are not those of CIFAR-100's classes"),
    "other superclasses": (
        changed(fine_labels=swapped(cifar_file(0, 14)["fine_labels"])),
        "labels that are not those of CIFAR-100's classes and superclasses",
    ),
    "an image less": (
        lambda d: changed(**{k: v[1:] for k, v in cifar_file(0, 14).items() if k != "batch_label"})(d),
        r"cifar-100-python has 19 images of class \S+/apple where the published .* 20 of each of 100 classes \(1 have",
    ),
    "a file twice": (
        lambda d: shutil.copy(d / "cifar-100-python" / "train", d / "cifar-100-python" / "test"),
        "has 28 images of class .* where the published data set has 20",
    ),
}


@pytest.mark.parametrize("name", CIFAR)
def test_what_is_wrong_with_cifar_is_named_and_nothing_packed(fake_cifar: Path, name: str) -> None:
    spoil, message = CIFAR[name]
    spoil(fake_cifar)
    with pytest.raises(UserError, match=message) as refused:
        load_fc100(str(fake_cifar), 32, download=False)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(fake_cifar.glob("*.npz"))


def test_no_network_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_network)
    with pytest.raises(UserError, match=r"no CIFAR-100 in .*data=strokes needs no .*the download failed: Network is"):
        load_cifar_fs(str(tmp_path / "nothing"), 32)
    with pytest.raises(UserError, match="data.image_size=0 must be at least 1"):
        load_miniimagenet(str(tmp_path), 0)


def test_image_size_of_cifar_is_checked(fake_cifar: Path) -> None:
    with pytest.raises(UserError, match="data.image_size=0 must be at least 1"):
        load_cifar_fs(str(fake_cifar), 0)


# --- miniImageNet ---


def check_mini(found: ImageSet) -> None:
    holds(found, (84, 84))
    assert found.names == tuple(itertools.chain(*MINIIMAGENET.values()))
    for number, (name, part) in enumerate(zip(found.names, found.parts, strict=True)):
        red, green, blue = found.of_class(number)[:, :, 5, 7].T.tolist()
        assert set(red) == {MINIIMAGENET[part].index(name)}
        assert set(green) == {SPLITS.index(part)}
        assert blue == list(range(PER_CLASS))


def test_miniimagenet_of_its_pickles(fake_miniimagenet: Path) -> None:
    check_mini(load_miniimagenet(str(fake_miniimagenet), 84))
    assert (fake_miniimagenet / "miniimagenet-84.npz").exists()


def test_miniimagenet_of_the_other_pickles_written_by_python_2(fake_miniimagenet: Path) -> None:
    below = fake_miniimagenet / "mini-imagenet"
    below.mkdir()
    for split, first in (("train", 0), ("val", 64), ("test", 80)):
        (fake_miniimagenet / f"mini-imagenet-cache-{split}.pkl").unlink()
        content = mini_pickle(split)
        numbers = {name: first + i for i, name in enumerate(content["class_dict"])}
        labels = np.tile(np.arange(first, first + len(numbers)), PER_CLASS)
        name = f"miniImageNet_category_split_{'train_phase_train' if split == 'train' else split}.pickle"
        by_label = {"data": content["image_data"], "labels": labels.tolist(), "catname2label": numbers}
        (below / name).write_bytes(by_python2(by_label))
    check_mini(load_miniimagenet(str(fake_miniimagenet), 84))
    assert (below / "miniimagenet-84.npz").exists()


def images_of(root: Path, place: str, side: tuple[int, int] = (84, 84)) -> None:
    for split in SPLITS:
        content = mini_pickle(split, 1)
        for number, name in enumerate(MINIIMAGENET[split]):
            for image in range(PER_CLASS):
                file = root / place.format(split=split, name=name, image=image)
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = content["image_data"][number].copy()
                pixels[..., 2] = image
                Image.fromarray(pixels).resize(side).save(file)


@pytest.mark.parametrize(
    "place", ["{name}/{image:03d}.png", "{split}/{name}/{image:03d}.png", "images/{name}{image:08d}.png"]
)
def test_miniimagenet_of_image_files(fake_miniimagenet: Path, place: str) -> None:
    root = fake_miniimagenet / "files"
    images_of(root, place, (12, 9) if place.startswith("{name}") else (84, 84))
    (root / "beside" / "x").mkdir(parents=True)
    (root / "train.csv").write_text("filename,label\n")
    check_mini(load_miniimagenet(str(root), 84))
    if not place.startswith("images"):
        return
    for wrong, message in (
        ("n01532829/x.png", "has 1 images of class n01532829 where the published data set has 20 .*100 have"),
        ("val/n01532829/x.png", "has class n01532829 for val, which is in train by the lists of Ravi and Larochelle"),
    ):
        (root / wrong).parent.mkdir(parents=True)
        (root / wrong).write_bytes(b"")
        with pytest.raises(UserError, match=message):
            load_miniimagenet(str(root), 84)
        shutil.rmtree((root / wrong).parent)
    (root / "miniimagenet-84.npz").unlink()
    (root / "images" / "n0441835700000003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="n0441835700000003.png cannot be read as an image .*: fetch it again"):
        load_miniimagenet(str(root), 84)
    (root / "images" / "n0441835700000003.png").unlink()
    with pytest.raises(UserError, match=r"has 19 images of class n04418357 .* 20 of each of 100 classes \(1 have"):
        load_miniimagenet(str(root), 84)
    (root / "images" / "n0441835700000003.png").symlink_to(root / "gone")
    with pytest.raises(UserError, match="n0441835700000003.png cannot be read .No such file"):
        load_miniimagenet(str(root), 84)
    assert not list(root.glob("*.npz"))


def repickled(change: Callable[[dict], dict]) -> Spoil:
    return lambda d: (d / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(change(mini_pickle("val"))))


def less_one_class(content: dict) -> dict:
    return content | {"class_dict": {n: v for n, v in content["class_dict"].items() if n != "n09256479"}}


def with_class(name: str) -> Callable[[dict], dict]:
    return lambda content: content | {"class_dict": content["class_dict"] | {name: [0, 1]}}


MINI: dict[str, tuple[Spoil, str]] = {
    "missing": (
        lambda d: [path.unlink() for path in d.glob("*.pkl")],
        "no miniImageNet in .*: put mini-imagenet-cache-train.pkl, .* it is not downloaded, since ImageNet's images",
    ),
    "a pickle missing": (lambda d: (d / "mini-imagenet-cache-val.pkl").unlink(), "no miniImageNet in "),
    "cut short": (
        lambda d: (d / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(mini_pickle("val"))[:900_000]),
        "cache-val.pkl is damaged, or no pickle of arrays .*: delete it and fetch it again",
    ),
    "code": (
        lambda d: (d / "mini-imagenet-cache-val.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."),
        "cache-val.pkl would run os.system, .* nothing of it was run",
    ),
    "a class missing": (
        repickled(less_one_class),
        r"has 0 images of class n09256479 where the published data set has 20 of each of 100 classes \(1 have",
    ),
    "an image less": (
        repickled(lambda c: c | {"class_dict": c["class_dict"] | {"n09256479": c["class_dict"]["n09256479"][1:]}}),
        "has 19 images of class n09256479",
    ),
    "too many images": (
        repickled(lambda c: c | {"class_dict": c["class_dict"] | {"n09256479": list(range(21))}}),
        "has 21 images of class n09256479",
    ),
    "a class of another split": (
        repickled(with_class("n01532829")),
        "cache-val.pkl has class n01532829 for val, which is in train by the lists of Ravi and Larochelle .2017.",
    ),
    "a class of none": (repickled(with_class("n00000000")), "has class n00000000 for val, which is not by the lists"),
    "other pixels": (
        repickled(lambda c: c | {"image_data": c["image_data"][:, :32, :32]}),
        r"images of shape \(320, 32, 32, 3\) and type uint8, miniImageNet's are of shape \(N, 84, 84, 3\)",
    ),
    "other numbers": (
        repickled(lambda c: c | {"image_data": c["image_data"].astype(np.float32)}),
        "type float32, miniImageNet's are",
    ),
    "beyond the images": (
        repickled(lambda c: c | {"class_dict": c["class_dict"] | {"n09256479": [320]}}),
        "says that class n09256479 has images beyond its 320",
    ),
    "another pickle": (
        repickled(lambda c: {"images": 1}),
        "cache-val.pkl has neither image_data with class_dict nor data with labels and catname2label",
    ),
    "a list": (repickled(lambda c: [1]), "cache-val.pkl has neither image_data with class_dict"),  # type: ignore[arg-type,return-value]
    "names of no class": (
        repickled(lambda c: {"data": c["image_data"], "labels": [0] * 320, "catname2label": {"cat": 0}}),
        "has class cat for val, which is not by the lists",
    ),
}


@pytest.mark.parametrize("name", MINI)
def test_what_is_wrong_with_miniimagenet_is_named_and_nothing_packed(fake_miniimagenet: Path, name: str) -> None:
    spoil, message = MINI[name]
    spoil(fake_miniimagenet)
    with pytest.raises(UserError, match=message) as refused:
        load_miniimagenet(str(fake_miniimagenet), 84)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(fake_miniimagenet.glob("*.npz"))


# --- what runs make of them ---


def test_only_the_published_division_is_taken(fake_cifar: Path) -> None:
    found = load_cifar_fs(str(fake_cifar), 32)
    assert split_classes(found, "folders", 0) == split_classes(found, "published", 7)
    for rule in ("random_classes", "official", "random_characters"):
        with pytest.raises(UserError, match=f"data.split={rule} divides the classes anew, .* data.split=published"):
            split_classes(found, rule, 0)


def test_a_replaced_file_is_decoded_again(fake_cifar: Path) -> None:
    before = load_cifar_fs(str(fake_cifar), 32)
    assert torch.equal(load_cifar_fs(str(fake_cifar), 32).images, before.images)
    content = cifar_file(0, 14)
    changed(data=255 - content["data"])(fake_cifar)
    after = load_cifar_fs(str(fake_cifar), 32)
    assert not torch.equal(after.images, before.images)


@pytest.mark.parametrize("data", ["cifar_fs", "fc100", "miniimagenet"])
def test_a_run_trains_tests_and_says_which_division(compose_cfg: Compose, tmp_path: Path, request, data: str) -> None:
    root = request.getfixturevalue("fake_miniimagenet" if data == "miniimagenet" else "fake_cifar")
    small = ("model.hidden=4", "data.meta_batch_size=2", "data.q_query=1", "data.eval_q_query=2", "data.val_episodes=2")
    steps = ("trainer.max_steps=2", "data.steps_per_epoch=2", "trainer.accelerator=cpu", "outer.curve_episodes=2")
    given = (f"data={data}", f"data.root={root}", *small, *steps, "episodes=3")
    cfg = compose_cfg(*given, small=False, folder=tmp_path / "run")
    assert cfg.model._target_ == "fewshot.models.conv4.Conv4"
    train(cfg)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["data"], results["split"], results["episodes"]) == (data, "published", 3)
    classes = json.loads((tmp_path / "run" / "classes.json").read_text())
    lists = {"cifar_fs": CIFAR_FS, "fc100": FC100, "miniimagenet": MINIIMAGENET}[data]
    assert {split: tuple(classes[split]["classes"]) for split in SPLITS} == lists
    ckpt = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    evaluate(compose_cfg(*given, ckpt, config="evaluate", small=False, folder=tmp_path / "again"))
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["episodes_sha256"] == results["episodes_sha256"]
    assert again["mean"] == pytest.approx(results["mean"])


def test_tasks_of_a_split_hold_its_classes_alone(compose_cfg: Compose, fake_cifar: Path) -> None:
    """Red tells the class in what a learner is handed."""
    data = build(compose_cfg("data=fc100", f"data.root={fake_cifar}", small=False).data)
    data.setup()
    for split in SPLITS:
        reds = torch.cat([data.task_batch(split, step).query_x[..., 0, 0, 0] for step in range(20)]).mul(255).round()
        assert {CIFAR100[int(red)] for red in reds.unique()} <= set(FC100[split])


def test_the_published_counts() -> None:
    """The made sets have fewer images a class; what is asked for otherwise is 600."""
    from fewshot.data import miniimagenet

    assert cifar.IMAGES == miniimagenet.IMAGES == 600
