"""Shared by all tests: the real configuration, made small; data that is drawn or decoded once."""

import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from fewshot.algorithms.maml import MAML
from fewshot.data import cifar, miniimagenet
from fewshot.data.published import CIFAR100, MINIIMAGENET, SUPERCLASSES
from fewshot.models.conv4 import Conv4
from fewshot.tasks import Classification, TaskBatch

ROOT = Path(__file__).resolve().parent.parent
REAL_OMNIGLOT = Path(os.environ.get("FEWSHOT_OMNIGLOT", ROOT.parent / "shared" / "data" / "omniglot"))
SHARED_SPLITS = ROOT.parent / "shared" / "data" / "splits"

# A script of 12 alphabets and a network of 8 channels: a step takes milliseconds.
SMALL = [
    "data=strokes",
    "data.source.alphabets=12",
    "data.source.characters=10",
    "data.val_episodes=20",
    "data.steps_per_epoch=3",
    "data.meta_batch_size=4",
    "model.hidden=8",
    "episodes=40",
    "trainer.accelerator=cpu",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=2",
    "outer.curve_episodes=16",
]

Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True, scope="session")
def _session(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FEWSHOT_DATA"] = str(tmp_path_factory.mktemp("data"))
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    # The networks here are tiny; in float64 a second thread makes their convolutions fifty times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Environment and threads as they were, whatever a test or a library sets."""
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)


@pytest.fixture
def compose_cfg(tmp_path: Path) -> Iterator[Compose]:
    """compose_cfg(*overrides, config="train", small=True, folder=None): as Hydra's main would."""

    def make(*overrides: str, config: str = "train", small: bool = True, folder: Path | None = None) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(config, [*(SMALL if small else []), *overrides], return_hydra_config=True)
        output = folder or tmp_path / "run"
        output.mkdir(parents=True, exist_ok=True)
        cfg.hydra.runtime.output_dir = str(output)
        cfg.hydra.job.num = 0
        HydraConfig.instance().set_config(cfg.copy())
        job = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        OmegaConf.set_struct(job, True)
        return job

    yield make
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def omniglot_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with links to the real archives, whose packed copy may be written beside them."""
    if not (REAL_OMNIGLOT / "images_background.zip").exists():
        pytest.skip("no Omniglot beside the checkout: set FEWSHOT_OMNIGLOT to its folder to run this test")
    root = tmp_path_factory.mktemp("omniglot")
    for archive in ("images_background.zip", "images_evaluation.zip", "all_runs.zip"):
        (root / archive).symlink_to(REAL_OMNIGLOT / archive)
    return str(root)


@pytest.fixture
def fake_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two archives in Omniglot's layout: 2 alphabets of 3 characters each, 20 drawings of 105×105."""
    from fewshot.data import omniglot

    monkeypatch.setattr(omniglot, "CHARACTERS", {"background": 6, "evaluation": 6})
    draw = np.random.default_rng(0)
    root = tmp_path / "fake"
    root.mkdir()
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(root / f"images_{part}.zip", "w") as archive:
            for alphabet in ("Alpha", "Beta"):
                for character in range(1, 4):
                    for drawing in range(1, 21):
                        pixels = np.where(draw.random((105, 105)) < 0.1, 0, 255).astype(np.uint8)
                        folder = f"images_{part}/{part}_{alphabet}/character{character:02d}"
                        name = f"{folder}/{character:04d}_{drawing:02d}.png"
                        with archive.open(name, "w") as file:
                            Image.fromarray(pixels).convert("1").save(file, "PNG")
    return root


def write_runs(folder: Path, *, unpacked: bool = False) -> Path:
    """Twenty runs in the official layout; class k of a run is a bar at row k, its item one pixel shorter."""
    place = folder / "all_runs"
    for run in range(1, 21):
        for part, stem in (("training", "class"), ("test", "item")):
            (place / f"run{run:02d}" / part).mkdir(parents=True)
            for number in range(1, 21):
                image = Image.new("1", (105, 105), 1)
                row = 5 * (number if part == "training" else number % 20 + 1) - 4
                image.paste(0, (run, row, 100 - (part == "test"), row + 3))
                image.save(place / f"run{run:02d}" / part / f"{stem}{number:02d}.png")
        pairs = [
            f"run{run:02d}/test/item{n:02d}.png run{run:02d}/training/class{n % 20 + 1:02d}.png" for n in range(1, 21)
        ]
        (place / f"run{run:02d}" / "class_labels.txt").write_text("\n".join(pairs) + "\n")
    if not unpacked:
        shutil.make_archive(str(place), "zip", place)
        shutil.rmtree(place)
    return folder


def make_image_folder(root: Path) -> Path:
    """15 classes of 16, 17 or 18 images of 12×10 pixels; red tells the class, blue the image."""
    for number in range(15):
        folder = root / f"class{number:02d}"
        folder.mkdir(parents=True)
        for image in range(16 + number % 3):
            Image.new("RGB", (12, 10), (10 * number, 100, 10 * image)).save(folder / f"{image:02d}.png")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """What `make_image_folder` makes, in a folder of this test's own."""
    return make_image_folder(tmp_path / "images")


def by_python2(content: dict[str, Any]) -> bytes:
    """A pickle as Python 2 and numpy 1 wrote it, byte for byte: of text, whole numbers, lists, dictionaries, uint8."""

    def packed(value: Any) -> bytes:
        match value:
            case str():
                return b"U" + bytes([len(value)]) + value.encode()
            case int():
                return b"J" + struct.pack("<i", value)
            case list():
                return b"](" + b"".join(map(packed, value)) + b"e"
            case dict():
                return b"}(" + b"".join(packed(each) for pair in value.items() for each in pair) + b"u"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(map(packed, value.shape)) + b"t"
        return made + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", value.size) + value.tobytes() + b"tb"

    return b"\x80\x02" + packed(content) + b"."


PER_CLASS = 20  # images of a class in the two made sets below; a task of one shot takes 16


def cifar_file(number: int, per_class: int) -> dict[str, Any]:
    """What a file of CIFAR-100 holds: red tells the class, green the file, blue the image."""
    labels = np.tile(np.arange(100), per_class)
    pixels = np.zeros((len(labels), 3, 1024), dtype=np.uint8)
    for channel, values in enumerate((labels, number, np.arange(len(labels)) // 100)):
        pixels[:, channel] = np.broadcast_to(values, len(labels))[:, None]
    groups = [list(SUPERCLASSES).index(CIFAR100[label].split("/")[0]) for label in labels]
    return {
        "filenames": [f"{place}.png" for place in range(len(labels))],
        "batch_label": f"made batch {number}",
        "fine_labels": labels.tolist(),
        "coarse_labels": groups,
        "data": pixels.reshape(len(labels), 3072),
    }


@pytest.fixture
def fake_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's folder of CIFAR-100 as Python 2 wrote its files, of 14 and 6 images a class."""
    monkeypatch.setattr(cifar, "IMAGES", PER_CLASS)
    folder = tmp_path / "cifar" / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, (name, per_class) in enumerate((("train", 14), ("test", 6))):
        (folder / name).write_bytes(by_python2(cifar_file(number, per_class)))
    return folder.parent


def mini_pickle(split: str, per_class: int = PER_CLASS) -> dict[str, Any]:
    """What a pickle of miniImageNet holds, images of all classes mixed: red tells the class, blue the image."""
    names = MINIIMAGENET[split]
    numbers = np.tile(np.arange(len(names)), per_class)
    images = np.zeros((len(numbers), 84, 84, 3), dtype=np.uint8)
    images[..., 0] = numbers[:, None, None]
    images[..., 1] = {"train": 0, "val": 1, "test": 2}[split]
    images[..., 2] = (np.arange(len(numbers)) // len(names))[:, None, None]
    return {
        "image_data": images,
        "class_dict": {name: np.flatnonzero(numbers == i).tolist() for i, name in enumerate(names)},
    }


@pytest.fixture
def fake_miniimagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three pickles of miniImageNet, of 20 images a class."""
    monkeypatch.setattr(miniimagenet, "IMAGES", PER_CLASS)
    root = tmp_path / "mini"
    root.mkdir()
    for split in MINIIMAGENET:
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(mini_pickle(split), 4))
    return root


def small_maml(*, steps: int = 1, create_graph: bool = True, norm: str = "batch", lr: float = 0.1) -> MAML:
    """MAML on a 16×16 network of 8 channels, in float64."""
    torch.manual_seed(0)
    options = dict(inner_steps=steps, eval_inner_steps=steps, inner_lr=lr, create_graph=create_graph)
    return MAML(Conv4((1, 16, 16), 3, hidden=8, norm=norm), Classification(3), **options).double()


def random_tasks(tasks: int = 4, *, seed: int = 0, queries: int = 2) -> TaskBatch:
    """3-way 2-shot tasks of random 16×16 images, in float64."""
    draw = torch.Generator().manual_seed(seed)
    support = torch.rand((tasks, 6, 1, 16, 16), generator=draw, dtype=torch.float64)
    query = torch.rand((tasks, 3 * queries, 1, 16, 16), generator=draw, dtype=torch.float64)
    return TaskBatch(support, torch.arange(3).repeat(tasks, 2), query, torch.arange(3).repeat(tasks, queries))


def one_task(batch: TaskBatch, task: int = 0) -> TaskBatch:
    """A task of a batch, without the leading dimension."""
    return TaskBatch(*(tensor[task] for tensor in batch))
