"""Whatever can be typed or lie on the disk wrongly: told in one line, before anything is trained or written."""

import copy
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, Compose, make_image_folder
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from PIL import Image

from fewshot import errors
from fewshot.data.task_folder import read_answers, read_tasks
from fewshot.draw_tasks import draw
from fewshot.outer import MetaLearner
from fewshot.runs import evaluate, train

CONF = ROOT / "conf"
Run = Callable[[DictConfig], object]
Refused = Callable[..., str]
Spoil = Callable[[Path], object]

SETTINGS = {
    # types
    "data.n_way=": "data.n_way= must be int",
    "data.n_way=2.5": "data.n_way=2.5 must be int",
    "data.num_workers=1.5": "data.num_workers=1.5 must be int",
    "data.root=null": "data.root=None must be str",
    "episodes=many": "data.test_episodes=many must be int",
    "seed=x": "data.seed=x must be int",
    "model.hidden=[8]": r"model.hidden=\[8\] must be one number of at least 1, or four of them",
    "model.hidden=wide": "model.hidden=wide must be int or a list of int",
    "model=mlp": "model.hidden=8 must be a list of int",
    "algo.inner_lr=fast": "algo.inner_lr=fast must be float",
    "algo.inner_steps=1.5": "algo.inner_steps=1.5 must be int",
    "algo.create_graph=1": "algo.create_graph=1 must be bool",
    "algo.test_inner_steps=x": "algo.test_inner_steps=x must be int or null",
    "aug=rotate aug.degrees=x": "aug.degrees=x must be float",
    "outer.compile=yes": "outer.compile=yes must be bool",
    "trainer.log_every_n_steps=x": "trainer.log_every_n_steps=x must be int or null",
    "algo.inner_lr=inf": "algo.inner_lr=inf must be finite",
    "aug=affine aug.shear=nan": "aug.shear=nan must be finite",
    "algo.inner_optimizer=sgd": "algo.inner_optimizer=sgd must be a part .* GROUP=CHOICE",
    "data.augmentation=null": "data.augmentation=None must be a part",
    "data.source=strokes": "data.source=strokes must be a part",
    "outer.optimizer=adam": "outer.optimizer=adam must be a part",
    "trainer.max_steps=x": "trainer.max_steps=x must be int",
    "test=maybe": "test=maybe must be bool",
    # ranges
    "data.n_way=25": "data.n_way=25 but split 'val' has 20 classes: lower data.n_way",
    "data.n_way=1": "data.train_n_way >= 2, .* not 1, 1 and 1",
    "data.train_n_way=71": "data.train_n_way=71 but split 'train' has 70 classes",
    "data.k_shot=6": r"data.k_shot=6 \+ data.eval_q_query=15 = 21 images of a class, but every class has 20",
    "data.eval_q_query=0": "data.n_way >= 2, data.k_shot >= 1 and data.eval_q_query >= 1, not 5, 1 and 0",
    "data.num_classes=99": "data.num_classes=99 but split 'train' has 70 classes: choose 1 to 70",
    "data.image_size=4": "at least 2 alphabets of 1 character at 8 pixels, .* data.image_size=4",
    "data.image_size=8": "data.image_size=8 must be at least 16",
    "data.source.alphabets=1": "at least 2 alphabets .* data.source.alphabets=1",
    "data.source.seed=-1": "data.source.seed=-1 must not be negative",
    "data.meta_batch_size=0": "data.meta_batch_size=0 must be at least 1",
    "data.meta_batch_size=1000000000000000": "memory does not hold .* PiB .* lower the numbers that are large",
    "data.steps_per_epoch=0": "data.steps_per_epoch=0 must be at least 1",
    "data.val_episodes=0": "data.val_episodes=0 must be at least 1",
    "data.num_workers=-1": "data.num_workers=-1 must be at least 0",
    "episodes=-1": "data.test_episodes=-1 must be at least 1",
    "seed=-1": "seed=-1 and data.eval_seed=0 must not be negative",
    "data.within_alphabet=true data.n_way=11": "data.train_n_way=11, but the largest group of split 'train'",
    "seed=4294967296": "seed=4294967296 must be at most 4294967295",
    "model.hidden=0": "model.hidden=0 must be one number of at least 1, or four of them",
    "model.pooled=5": "model.pooled=5 must be 0 to 4",
    "model=mlp model.hidden=[8,0]": r"model.hidden=\[8, 0\] must be one or more numbers of at least 1",
    "model=mlp model.hidden=[8] model.init_std=0": "model.init_std=0 must be positive, or null",
    "algo.inner_steps=0": "algo.inner_steps=0 must be at least 1",
    "algo.eval_inner_steps=-1": "algo.eval_inner_steps=-1 .* must be at least 0",
    "algo.inner_lr=-0.1": "algo.inner_lr=-0.1 must be positive",
    "algo.inner_lr=nan": "algo.inner_lr=nan must be",
    "algo.task_chunk=0": "algo.task_chunk=0 must be at least 1, auto, or null",
    "algo.inner_optimizer.clip=0": "algo.inner_optimizer.clip=0 must be positive, or null",
    "algo.inner_optimizer.clip=1e30": "algo.inner_optimizer.clip=1e.30 must be at most 1e.18",
    "algo.inner_optimizer.momentum=1": "algo.inner_optimizer.momentum=1 must be at least 0 and below 1",
    "algo/inner_optimizer=adam algo.inner_optimizer.beta1=1": "beta1=1 and beta2=0.999 must be at least 0 and below 1",
    "algo=baselinepp algo.scale=0": "algo.inner_lr=0.01 and algo.scale=0 must be positive",
    "algo=cavia algo.context=0": "algo.context=0 must be at least 1",
    "algo=cnp algo.decoder=[0]": r"algo.code=128, .* algo.decoder=\[0\] must be one or more numbers of at least 1",
    "algo=imaml algo.cg_damping=-1": "algo.regularization=2.0 must be positive and algo.cg_damping=-1 at least 0",
    "algo=mamlpp algo.multi_step_until=-1": "algo.multi_step_until=-1 and .*=0 must not be negative",
    "algo=mann algo.slots=2": "slots=2 must be at least read_heads=4",
    "algo=matchingnet algo.processing_steps=-1": "algo.processing_steps=-1 must be at least 0",
    "algo=metaoptnet algo.solver_steps=0": "algo.solver_steps=0 must be at least 1",
    "algo=protonet algo.running_momentum=2": "algo.running_momentum=2 must be above 0 and at most 1",
    "algo=r2d2 algo.regularization=0": "algo.regularization=0 and algo.scale=10.0 must be positive",
    "algo=relationnet algo.hidden=0": "algo.hidden=0 must be at least 1",
    "algo=reptile algo.inner_batch=0": "algo.inner_batch=0 must be at least 1, or null",
    "algo=snail algo.keys=[1,2]": r"algo.keys=\[1, 2\] .* keys and values three each",
    "aug=rotate aug.probability=2": "aug.probability=2 must be between 0 and 1",
    "aug=affine aug.scale=1": "aug.scale=1 must be at least 0 and below 1",
    "outer.grad_clip=0": "outer.grad_clip=0 must be positive, or null",
    "outer.curve_episodes=0": "outer.curve_episodes=0 must be at least 1",
    "outer.optimizer.lr=-1": "outer.optimizer: Invalid learning rate: -1",
    "+outer.optimizer.nonsense=1": "outer.optimizer: .*unexpected keyword argument 'nonsense'",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0 must be at least 1",
    "callbacks.progress.refresh_per_second=0": "callbacks.progress.refresh_per_second=0 must be positive",
    "callbacks.best.save_top_k=0": "callbacks.best.save_top_k=0, but what is tested is the one checkpoint",
    "trainer.max_steps=0": "trainer.max_steps=0 must be at least 1",
    "trainer.devices=0": r"devices=0.* is not a valid input",
    # what there is none of
    "algo=mamml": "Could not find 'algo/mamml' Available options in 'algo': anil .* maml ",
    "algo.inner_stepps=2": "Could not override 'algo.inner_stepps'",
    "+model.depth=3": "unexpected keyword argument 'depth'",
    "+trainer.nonsense=1": "unexpected keyword argument 'nonsense'",
    "aug=null": "group override must be a string",
    "~algo": "algo: Key 'algo' is not in struct",
    "~algo.inner_lr": "missing .* argument: 'inner_lr'",
    "data.n_way=${ways}": "data.n_way: Interpolation key 'ways' not found",
    "data.n_way=???": "Missing mandatory value: data.n_way",
    "data.n_way=[": "no viable alternative",
    "algo=own": "algo._target_=FILE.NAME: say what to build",
    "algo=own algo._target_=nowhere.Algo": "algo._target_=nowhere.Algo cannot be imported",
    "algo=own algo._target_=torch.nn.Identity": "algo._target_=torch.nn.Identity is no subclass of fewshot.algorithms",
    "algo=mann algo.memory=ram": "algo.memory=ram is not one of lrua, ntm, dnc",
    "algo=cavia algo.layer=body.9": "algo.layer=body.9 is no layer of Conv4 .* one of body.0.0, ",
    "data.split=oficial": "data.split=oficial is not one of official, ",
    "model.norm=bach": "model.norm=bach is not one of batch, group, layer, none",
    "outer.schedule=cos": "outer.schedule=cos is not one of constant, linear, cosine",
    "optimized_metric=val/f1": "optimized_metric=val/f1 is not logged here: one of val/loss, val/acc",
    "trainer.accelerator=quantum": "invalid accelerator name: `accelerator='quantum'`",
    "trainer.precision=8": "Precision 8 is invalid",
    "trainer.accelerator=gpu": "(?i)gpu|cuda",
    "trainer.precision=64-true": "trainer.precision=64-true: images are drawn in 32 bits",
    "outer._target_=torch.nn.Identity": "outer._target_=torch.nn.Identity is no subclass of fewshot.outer.MetaLearner",
    "logger.csv.path=/proc/nowhere/metrics.csv": "logger.csv.path=.*: there is no folder /proc/nowhere",
    # what contradicts itself
    "callbacks.best.monitor=val/mse": "callbacks.best.monitor=val/mse with .* best by optimized_metric=val/acc",
    "~callbacks.best": "callbacks.best writes the checkpoint that is tested",
    "+trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches=2 .*data.meta_batch_size",
    "+trainer.fast_dev_run=true": "trainer.fast_dev_run=True .*debug=default",
    "algo=nearest": "algo=nearest has nothing to train: score it with python evaluate.py",
    "algo=fomaml outer.recompute=true": "outer.recompute=true has no effect",
    "outer.recompute=true outer.compile=true": "outer.recompute=true and outer.compile=true: one of them",
    "outer.compile=true algo.task_chunk=auto": "set algo.task_chunk to a number or null",
    "outer.compile=true algo=mamlpp": "outer.compile=true, but MAMLPlusPlus computes something else",
    "outer.compile=true": "outer.compile=true is for a GPU",
    "data.fixed_labels=true": "data.fixed_labels=true, but MAML needs false",
    "algo=transfer data.fixed_labels=false": "data.fixed_labels=false, but Transfer needs true",
    "algo=transfer data.num_classes=3": "data.train_n_way=5 but split 'train' has 3 classes",
    "data.train_n_way=7": "data.train_n_way=7, but MAML learns one head .* set data.train_n_way=5",
    "data.quarter_turns=true aug=rotate_classes": "data.quarter_turns=true has turned classes already",
    "data.split=vinyals": "data.split=vinyals lists characters of Omniglot: use it with data=omniglot",
    "data.split=folders": "data.split=folders takes the folders train, val and test with data=folder",
    "model.norm=group model.hidden=12": "model.norm=group needs model.hidden divisible by 8, not 12",
    "algo=relationnet model=conv4": "these are 1×1: set model.pooled=2",
    "algo=relationnet model=mlp model.hidden=[8]": "algo.norm: Interpolation key 'model.norm' not found",
    "optimized_metric=val/loss": "callbacks.best.mode=max, but of val/loss the best is the minimum",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed: inner gradients are not scaled",
    "trainer.precision=16-true": "trainer.precision=16-true: inner gradients are not scaled",
    "trainer.devices=2": "trainer.devices=2, .* by trainer=ddp trainer.devices=N",
    "trainer=ddp trainer.devices=3": "data.meta_batch_size=4 tasks .* 3 processes: 3 or 6 can",
    "+trainer.gradient_clip_val=1": "trainer.gradient_clip_val=1 .*outer.grad_clip",
    "ckpt_path=nowhere.ckpt": "ckpt_path=nowhere.ckpt: there is no such file",
}

REGRESSION = {
    "data.amplitude=[5,1]": r"data.amplitude=\[5,1\] must be a low and a higher value",
    "data.phase=[1]": r"data.phase=\[1\] must be a list of 2 float",
    "data.k_shot=0": "data.k_shot=0 must be at least 1",
    "data.n_way=5": "Could not override 'data.n_way'",
    "model=conv4": r"model=conv4 takes images \(C, H, W\), not inputs of shape \(1,\): model=mlp",
    "algo=protonet": "ProtoNet is for classification: it cannot lower the mean squared error",
    "algo=transfer": "data.num_classes: Interpolation key 'data.n_way' not found",
    "optimized_metric=val/acc": "optimized_metric=val/acc is not logged here: one of val/loss, val/mse",
}

PHOTOS = ("data=folder", "data.image_size=16", "model.hidden=8", "trainer.accelerator=cpu")


def only(root: Path, classes: int) -> None:
    for folder in sorted(root.iterdir())[classes:]:
        shutil.rmtree(folder)


def in_splits(root: Path) -> None:
    """The same classes, five in each of train, val and test."""
    for number, folder in enumerate(sorted(root.iterdir())):
        place = root / ("train", "val", "test")[number // 5]
        place.mkdir(exist_ok=True)
        folder.rename(place / folder.name)


def in_splits_and(spoil: Spoil) -> Spoil:
    return lambda root: (in_splits(root), spoil(root))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def bomb(path: Path) -> None:
    """Promises 20,000 × 20,000 pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0), b"IDAT"
    packed = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def in_place_of(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


IMAGES: dict[str, tuple[Spoil, str, str]] = {
    "no folder": (shutil.rmtree, "", "there is no folder .*/images: name the folder of your images with data.root"),
    "a file": (in_place_of, "", "there is no folder .*/images: "),
    "no class": (lambda d: only(d, 0), "", "images holds no class"),
    "two classes": (lambda d: only(d, 2), "", "needs 3 classes or more, .* but 2 are there: add classes"),
    "few classes": (lambda d: only(d, 9), "", "data.train_n_way=5 but split 'train' has 3 classes"),
    "few images": (lambda d: None, "data.k_shot=3", r"=3 \+ .*=15 = 18 images of a class, but class \w+ has 1[67] "),
    "empty class": (lambda d: (d / "x").mkdir(), "", "class .*/x holds no image: add some, or remove the folder"),
    "a folder in a class": (lambda d: (d / "class03" / "more").mkdir(), "", "class03/more is a folder inside a class"),
    "an image beside": (lambda d: (d / "class03" / "00.png").rename(d / "0.png"), "", "/0.png lies beside the classes"),
    "cut short": (lambda d: cut(d / "class03" / "00.png"), "", "class03/00.png cannot be read as an image"),
    "no bytes": (lambda d: (d / "class03" / "00.png").write_bytes(b""), "", "class03/00.png cannot be read as an im"),
    "no image": (lambda d: (d / "class03" / "a.txt").write_text("x"), "", "class03/a.txt cannot be read as an image"),
    "a bomb": (
        lambda d: bomb(d / "class03" / "00.png"),
        "",
        "class03/00.png cannot be read as an image .*400000000 pixels",
    ),
    "unknown range": (
        lambda d: Image.new("F", (8, 8)).save(d / "class03" / "1.tiff"),
        "",
        "class03/1.tiff .* mode F, of unknown range: save it with 8 or 16 bits",
    ),
    "dangling link": (lambda d: (d / "class03" / "x.png").symlink_to(d / "no"), "", "x.png cannot be read .No such fi"),
    "link to itself": (
        lambda d: (d / "class03" / "x").symlink_to(d / "class03" / "x"),
        "",
        "x cannot be read .Too man",
    ),
    "link to the root": (lambda d: (d / "class03" / "x").symlink_to(d), "", "class03/x is a folder inside a class"),
    "class by two names": (
        lambda d: (d / "x").symlink_to(d / "class03"),
        "",
        "class03 and .*/x are one folder, by a link: one class cannot be two",
    ),
    "no division": (lambda d: None, "data.split=folders", "this one has not all three of them"),
    "no background": (lambda d: None, "data.split=official", "has none: choose data.split=random_classes"),
    "division ignored": (in_splits, "", "itself divides them into train, val and test: .*data.split=folders"),
    "class in two splits": (
        in_splits_and(lambda d: shutil.copytree(d / "train" / "class03", d / "test" / "class03")),
        "data.split=folders",
        "train/class03 and .*/test/class03 are one class in two splits",
    ),
    "class in two splits, by a link": (
        in_splits_and(lambda d: (d / "test" / "x").symlink_to(d / "train" / "class03")),
        "data.split=folders",
        "train/class03 and .*/test/x are one folder, by a link",
    ),
    "empty split": (
        in_splits_and(lambda d: only(d / "val", 0)),
        "data.split=folders",
        "/val holds no class",
    ),
    "four colours": (lambda d: None, "data.source.channels=4", r"data.source.channels=4 must be 1 \(grey\) or 3"),
    "no pixels": (lambda d: None, "data.image_size=0", "data.image_size=0 must be at least 1"),
}


def members(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as old:
        return {name: old.read(name) for name in old.namelist()}


def packed(root: Path, change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> Path:
    archive = root / "images_background.zip"
    content = members(archive)
    change(content)
    with zipfile.ZipFile(archive, "w", compression) as new:
        for name, data in content.items():
            new.writestr(name, data)
    return archive


def damage_deflated(root: Path) -> None:
    archive = packed(root, lambda content: None, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(archive) as old:
        first = old.infolist()[0]
    start, whole = first.header_offset + 30 + len(first.filename), archive.read_bytes()
    archive.write_bytes(whole[:start] + b"\x07" + whole[start + 1 :])  # a block of a kind that there is not


def unpacked_with_a_cut_drawing(root: Path) -> None:
    archive = root / "images_background.zip"
    zipfile.ZipFile(archive).extractall(root)
    archive.unlink()
    cut(min(root.rglob("*.png")))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_outside(content: dict[str, bytes]) -> None:
    some = next(iter(content.values()))
    content["images_background/../character01/0001_01.png"] = some
    content["../escaped.png"] = content["/tmp/fewshot-escaped.png"] = some


OMNIGLOT: dict[str, tuple[Spoil, str, str]] = {
    "missing": (shutil.rmtree, "", "no Omniglot in .*: put images_background.zip .* there"),
    "no network": (shutil.rmtree, "data.source.download=true", "no Omniglot in .*the download failed: .*unreachable"),
    "a file for a folder": (in_place_of, "data.source.download=true", "no Omniglot in .*the download failed"),
    "half an archive": (
        lambda d: halve(d / "images_background.zip"),
        "",
        "background.zip is damaged .* fetch it again",
    ),
    "no archive": (
        lambda d: (d / "images_background.zip").write_text("x"),
        "",
        "background.zip is damaged .*not a zip",
    ),
    "bytes of others in it": (damage_deflated, "", "images_background.zip is damaged .*invalid block type"),
    "a cut drawing": (unpacked_with_a_cut_drawing, "", "character01/.*.png is damaged .* fetch it again"),
    "no image in it": (
        lambda d: packed(d, lambda content: content.update({min(content): b"x"})),
        "",
        "images_background.zip is damaged .*cannot identify image",
    ),
    "a drawing less": (lambda d: packed(d, lambda c: c.pop(min(c))), "", "6 of 20 drawings each; .* has 19: fetch it"),
    "members outside": (lambda d: packed(d, add_outside), "", "has 7 characters where Omniglot's .* has 6"),
    "no pixels": (lambda d: None, "data.image_size=0", "data.image_size=0 must be at least 1"),
}


class Code:
    """What a pickle of it would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("code-was-run",))


def saved(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """The checkpoint with something else in it."""

    def spoil(path: Path) -> None:
        torch.save(change(torch.load(path, weights_only=True)), path)

    return spoil


GOOD: Spoil = lambda path: None  # noqa: E731 - the checkpoint as it is
DAMAGED = r"ckpt_path=.*best.ckpt is damaged or no checkpoint"
FOREIGN = r"best.ckpt is a file of torch, but no checkpoint written by train.py"
UNFIT = r"best.ckpt does not fit this model: algorithm\.{} in the checkpoint and {} here; keep model, algo, data.n_way"

CHECKPOINTS: dict[str, tuple[Spoil, str, str]] = {
    "missing": (Path.unlink, "", "best.ckpt: there is no such file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "", "best.ckpt is a folder: name a file"),
    "link to itself": (lambda p: (p.unlink(), p.symlink_to(p)), "", "best.ckpt: there is no such file"),
    "empty": (lambda p: p.write_bytes(b""), "", DAMAGED),
    "text": (lambda p: p.write_text("hello"), "", DAMAGED),
    "an image": (lambda p: Image.new("L", (8, 8)).save(p, "PNG"), "", DAMAGED),
    "an archive": (lambda p: zipfile.ZipFile(p, "w").close(), "", DAMAGED),
    "half of it": (halve, "", DAMAGED),
    "bytes of others in it": (lambda p: p.write_bytes(p.read_bytes()[:9000] + bytes(3000)), "", DAMAGED),
    "code": (lambda p: torch.save({"state_dict": Code()}, p), "", f"{DAMAGED}: it holds code, which is never run$"),
    "no weights": (saved(lambda c: c | {"state_dict": None}), "", FOREIGN),
    "answers without tasks": (
        GOOD,
        "labels=x.csv",
        "labels=x.csv are answers to the tasks of a folder: .*tasks_dir=DIR",
    ),
    "code beside weights": (saved(lambda c: c | {"fewshot": Code()}), "", DAMAGED),
    "names to run": (
        saved(lambda c: c | {"fewshot": c["fewshot"] | {"config": {"algo": {"_target_": "os.system"}}}}),
        "",
        "best.ckpt would run os.system, which is no part of fewshot",
    ),
    "a tensor": (lambda p: torch.save(torch.zeros(3), p), "", FOREIGN),
    "weights alone": (saved(lambda c: {"state_dict": c["state_dict"]}), "", FOREIGN),
    "other ways": (GOOD, "data.n_way=3", UNFIT.format(r"model.head.bias is \(5,\)", r"\(3,\)")),
    "other width": (GOOD, "model.hidden=16", UNFIT.format(r"model.body.0.0.bias is \(8,\)", r"\(16,\)")),
    "larger maps": (GOOD, "model.pooled=3", UNFIT.format(r"model.head.weight is \(5, 8\)", r"\(5, 72\)")),
    "other model": (GOOD, "model=mlp model.hidden=[8]", UNFIT.format(r"model.body.0.0.bias is \(8,\)", "missing")),
    "other algorithm": (GOOD, "algo=protonet", UNFIT.format("body.0.0.bias is missing", r"\(8,\)")),
    "other episodes": (GOOD, "episodes=0", "data.test_episodes=0 must be at least 1"),
    "other data": (GOOD, "data.split=folders", "data.split=folders takes the folders train, val and test"),
}

RESUMED: dict[str, tuple[Spoil, str, str]] = {
    "weights alone": (
        saved(lambda c: {key: c[key] for key in ("state_dict", "fewshot")}),
        "",
        "best.ckpt holds weights alone: it can be scored by evaluate.py",
    ),
    "other optimizer": (
        GOOD,
        "outer.optimizer._target_=torch.optim.SGD trainer.max_steps=9",
        "best.ckpt was trained by another outer.optimizer",
    ),
    "half of it": (halve, "trainer.max_steps=9", DAMAGED),
    "nothing left": (GOOD, "trainer.max_steps=1", "stands at step 1 of trainer.max_steps=1: nothing is left to train"),
    "other width": (GOOD, "model.hidden=16", UNFIT.format(r"model.body.0.0.bias is \(8,\)", r"\(16,\)")),
    "other algorithm": (GOOD, "algo=metasgd", UNFIT.format(r"inner_lrs\.\S+ is missing", r"\(8,\)")),
}


def rewrite(change: Callable[[list[str]], list[str]]) -> Spoil:
    """Changes the lines of the file of answers beside the tasks."""

    def spoil(tasks: Path) -> None:
        answers = tasks.with_name("tasks.labels.csv")
        answers.write_text("\n".join(change(answers.read_text().splitlines())))

    return spoil


def image(tasks: Path) -> Path:
    return tasks / "query" / "0001" / "image_1.png"


ANSWERS = "tasks.labels.csv is not a file of answers with columns id,class"
TASKS: dict[str, tuple[Spoil, str, str]] = {
    "missing": (shutil.rmtree, "", "there is no folder .*tasks/support: tasks lie in support/0000"),
    "a file": (in_place_of, "", "there is no folder .*tasks/support"),
    "no queries": (lambda d: shutil.rmtree(d / "query"), "", "there is no folder .*tasks/query"),
    "a task without queries": (lambda d: shutil.rmtree(d / "query" / "0003"), "", "task 0003 in only one of"),
    "a query less": (lambda d: (d / "query" / "0001" / "image_9.png").unlink(), "", "0001 holds 9 images, .* tasks 10"),
    "a gap": (lambda d: image(d).unlink(), "", "0001/image_1.png is missing"),
    "one twice": (lambda d: shutil.copy(image(d), image(d).with_name("image_01.png")), "", "are both image 1 of the"),
    "cut short": (lambda d: cut(image(d)), "", "image_1.png cannot be read as an image"),
    "link to itself": (lambda d: (image(d).unlink(), image(d).symlink_to(image(d))), "", "image_1.png cannot be read"),
    "a bomb": (lambda d: bomb(image(d)), "", "image_1.png .*400000000 pixels"),
    "other size": (lambda d: Image.new("L", (56, 56)).save(image(d)), "", "image_1.png has 56×56 pixels, .* 28×28"),
    "no image": (lambda d: (d / "query" / "0001" / "a.txt").write_text(""), "", "a.txt is no image of a task"),
    "other ways": (GOOD, "data.n_way=4", "holds 10 images a task, no multiple of data.n_way=4"),
    "one way": (GOOD, "data.n_way=1", "data.n_way=1 must be at least 2"),
    "regression": (GOOD, "data=sinusoid algo=zero", "tasks_dir=.*tasks holds images of classes: data=.* has none"),
    "no answers": (lambda d: d.with_name("tasks.labels.csv").unlink(), "", ANSWERS),
    "other columns": (rewrite(lambda rows: ["a,b", *rows[1:]]), "", ANSWERS),
    "half a class": (rewrite(lambda rows: [*rows[:-1], "39,1.5"]), "", f"{ANSWERS} .*'1.5'"),
    "an answer less": (rewrite(lambda rows: rows[:-1]), "", "has 39 rows, wanted are ids 0 to 39"),
    "no answer at all": (rewrite(lambda rows: []), "", "has 0 rows, wanted are ids 0 to 39"),
    "other order": (rewrite(lambda rows: [rows[0], *rows[:0:-1]]), "", "wanted are ids 0 to 39 in order"),
    "sixth of five": (rewrite(lambda rows: [*rows[:-1], "39,5"]), "", "names class 5, but tasks have classes 0 to 4"),
    "enormous class": (rewrite(lambda rows: [*rows[:-1], f"39,{10**20}"]), "", f"names class {10**20}, but"),
    "endless class": (rewrite(lambda rows: [*rows[:-1], "39," + "1" * 200_000]), "", ANSWERS),
}

DRAWN = {
    "": "out=DIR: name the folder",
    "out=file": "out=file exists: choose another folder",
    "out=/proc/nowhere/tasks": "out=/proc/nowhere/tasks cannot be written .*choose another folder",
    "out=file/tasks": "out=file/tasks cannot be written .*Not a directory",
    "out=new split=train": "split=train is not one of val, test",
    "out=new data=sinusoid": "a folder of tasks holds images, and SinusoidData has none",
}

EVALUATED = {
    "": "MAML is evaluated once trained: ckpt_path=RUN/checkpoints/best.ckpt",
    "algo=nearest algo.space=ink": "algo.space=ink is not one of pixels, network",
    "algo=nearest episodes=0": "data.test_episodes=0 must be at least 1",
}


_composed: dict[tuple[str, ...], tuple[DictConfig, Any]] = {}


@pytest.fixture
def compose(compose_cfg: Compose, tmp_path: Path) -> Compose:
    """As `compose_cfg`, but groups are composed once, a fifth of a second's work, and values set on a copy."""

    def make(*overrides: str, config: str = "train", small: bool = True) -> DictConfig:
        given = [*(SMALL if small else []), *overrides]
        values = [each for each in given if re.match(r"[\w.]+=", each) and not (CONF / each.split("=")[0]).exists()]
        named = (config, *(each for each in given if each not in values))
        if named not in _composed:
            _composed[named] = compose_cfg(*named[1:], config=config, small=False), HydraConfig.instance().cfg
        job, hydra = copy.deepcopy(_composed[named][0]), _composed[named][1]
        try:
            for each in OverridesParser.create().parse_overrides(values):
                OmegaConf.update(job, each.key_or_group, each.value(), merge=True)
        except (ConfigAttributeError, ConfigKeyError):
            return compose_cfg(*overrides, config=config, small=small)
        with read_write(hydra.hydra):
            hydra.hydra.runtime.output_dir, hydra.hydra.overrides.task = str(tmp_path / "run"), given
        HydraConfig.instance().cfg = hydra
        (tmp_path / "run").mkdir(exist_ok=True)
        return job

    return make


CONFIGS: dict[Run, str] = {train: "train", evaluate: "evaluate", draw: "draw_tasks"}


@pytest.fixture
def refused(compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What a program says of what it is given: one line and nothing else, with exit code 2.

    Nothing was computed before, and nothing half-written lies anywhere.
    """

    def begun(*arguments: object) -> NoReturn:
        raise AssertionError("it began before it was refused")

    def line(run: Run, *overrides: str, small: bool = True) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(errors, "_TRACEBACKS_WANTED", False)
            for step in ("training_step", "validation_step", "test_step", "predict_step"):
                patch.setattr(MetaLearner, step, begun)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended, errors.one_line_errors():
                run(compose(*overrides, config=CONFIGS[run], small=small))
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        (told,) = printed.err.splitlines()
        assert told.startswith("error: ")
        for name in ("checkpoints", "results.json", "metrics.csv", "output.csv", "plots"):
            assert not (tmp_path / "run" / name).exists(), name
        assert not [path.name for path in tmp_path.rglob("*.tmp*")]
        return told

    return line


@pytest.mark.parametrize("overrides", SETTINGS)
def test_settings(refused: Refused, overrides: str) -> None:
    if overrides == "trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert re.search(SETTINGS[overrides], refused(train, *overrides.split()))


@pytest.mark.parametrize("overrides", REGRESSION)
def test_settings_of_a_regression(refused: Refused, overrides: str) -> None:
    line = refused(train, "data=sinusoid", "trainer.accelerator=cpu", *overrides.split(), small=False)
    assert re.search(REGRESSION[overrides], line)


@pytest.mark.parametrize("name", IMAGES)
def test_folders_of_images(refused: Refused, image_folder: Path, name: str) -> None:
    spoil, overrides, message = IMAGES[name]
    spoil(image_folder)
    line = refused(train, *PHOTOS, f"data.root={image_folder}", *overrides.split(), small=False)
    assert re.search(message, line)


@pytest.mark.parametrize("name", OMNIGLOT)
def test_archives(refused: Refused, fake_omniglot: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise URLError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", unreachable)
    spoil, overrides, message = OMNIGLOT[name]
    spoil(fake_omniglot)
    before = set(tmp_path.rglob("*"))
    given = ("data=omniglot", "data.source.download=false", f"data.root={fake_omniglot}", *overrides.split())
    assert re.search(message, refused(train, *given, small=False))
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "run"}
    assert not Path("/tmp/fewshot-escaped.png").exists()


_trained: list[bytes] = []


@pytest.fixture
def checkpoint(compose_cfg: Compose, tmp_path: Path) -> Path:
    """Of a run of one step, made once for all."""
    path = tmp_path / "trained" / "checkpoints" / "best.ckpt"
    if not _trained:
        train(compose_cfg("test=false", "trainer.max_steps=1", "data.val_episodes=1", folder=path.parents[1]))
        _trained.append(path.read_bytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_trained[0])
    return path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(refused: Refused, checkpoint: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, overrides, message = CHECKPOINTS[name]
    spoil(checkpoint)
    line = refused(evaluate, f"ckpt_path={checkpoint}", *overrides.split())
    assert not Path("code-was-run").exists()
    assert re.search(message, line)


@pytest.mark.parametrize("name", RESUMED)
def test_checkpoints_to_go_on_from(refused: Refused, checkpoint: Path, name: str) -> None:
    spoil, overrides, message = RESUMED[name]
    spoil(checkpoint)
    assert re.search(message, refused(train, f"ckpt_path={checkpoint}", *overrides.split()))


@pytest.mark.parametrize("overrides", EVALUATED)
def test_evaluations(refused: Refused, overrides: str) -> None:
    assert re.search(EVALUATED[overrides], refused(evaluate, *overrides.split()))


@pytest.fixture
def tasks(compose: Compose, tmp_path: Path) -> Path:
    """Four tasks of five classes, two shots and ten queries; tasks.labels.csv beside them."""
    few = ("episodes=4", "data.eval_q_query=2", "data.k_shot=2")
    draw(compose(f"out={tmp_path / 'tasks'}", *few, config="draw_tasks"))
    return tmp_path / "tasks"


@pytest.mark.parametrize("name", TASKS)
def test_folders_of_tasks(refused: Refused, tasks: Path, name: str) -> None:
    spoil, overrides, message = TASKS[name]
    spoil(tasks)
    given = ("algo=nearest", f"tasks_dir={tasks}", f"labels={tasks}.labels.csv", *overrides.split())
    assert re.search(message, refused(evaluate, *given, small="sinusoid" not in overrides))


@pytest.mark.parametrize("overrides", DRAWN)
def test_tasks_to_be_drawn(refused: Refused, tmp_path: Path, monkeypatch, overrides: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    line = refused(draw, "episodes=4", *overrides.split(), small="sinusoid" not in overrides)
    assert re.search(DRAWN[overrides], line)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "run"}
    assert Path("file").read_text() == "mine"


def test_a_full_disk_is_seen_before_training(refused: Refused, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert re.search(r"/run has 0 MB free, a run writes up to \d+ MB: make room or choose another", refused(train))


def test_a_disk_that_fills_up_leaves_no_half_of_a_folder_of_tasks(
    refused: Refused, tmp_path: Path, monkeypatch
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewshot.draw_tasks.write_answers", full)
    line = refused(draw, f"out={tmp_path / 'tasks'}", "episodes=4")
    assert re.search("/tasks cannot be written .*No space left on device.*: make room, or choose another", line)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


COMMANDS = {
    "algo.inner_step=3": "Could not override 'algo.inner_step'",
    "data.n_way=25": "data.n_way=25 but split 'val' has 20 classes",
    "hydra.run.dir=/proc/nowhere": "/proc/nowhere: No such file or directory; another output folder is chosen with",
    "hydra.run.dir={}/file/run": "file/run: Not a directory; another output folder is chosen with hydra.run.dir=DIR",
}


@pytest.mark.parametrize("override", COMMANDS)
def test_the_command_line_answers_in_one_line(tmp_path: Path, override: str) -> None:
    (tmp_path / "file").write_text("in the way")
    done = shell(f"hydra.run.dir={tmp_path}/run", override.format(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert COMMANDS[override] in line


def test_a_machine_with_one_core_and_neither_a_home_nor_room_for_data(tmp_path: Path) -> None:
    """Nor is a path of more than 200 characters, with spaces and letters of other languages, in the way."""
    run, cores = tmp_path / "Läufe im Frühjahr" / "長い名前" / ("x" * 100) / ("y" * 100), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        unkind = {"HOME": "/proc/nowhere", "FEWSHOT_DATA": "/proc/nowhere"}
        done = shell("trainer.max_steps=1", f"hydra.run.dir='{run}'", **unkind)
    finally:
        os.sched_setaffinity(0, cores)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text())["episodes"] == 40


def test_names_with_spaces_letters_and_bytes_of_any_kind(compose_cfg: Compose, tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "Bilder von Tieren")
    for number, name in enumerate((b"kleine Katze", "Bär".encode(), "猫".encode(), b"caf\xe9", b"a=b,c'd")):
        os.rename(root / f"class{number:02d}", os.fsencode(root) + b"/" + name)
    few = ("data.val_episodes=2", "episodes=2", "trainer.max_steps=1", "data.meta_batch_size=1")
    train(compose_cfg(*PHOTOS, f"data.root='{root}'", *few, small=False, folder=tmp_path / "mein Lauf"))
    assert json.loads((tmp_path / "mein Lauf" / "results.json").read_text())["episodes"] == 2
    listed = json.loads((tmp_path / "mein Lauf" / "classes.json").read_text())
    named = {name for split in ("train", "val", "test") for name in listed[split]["classes"]}
    assert {"kleine Katze", "Bär", "猫", "a=b,c'd"} <= named


def test_tasks_of_16_bits_and_answers_of_a_spreadsheet(tasks: Path) -> None:
    given = read_tasks(tasks, n_way=5, channels=1, image_size=28)
    answers = Path(f"{tasks}.labels.csv")
    right = read_answers(answers, 4, 10, 5)
    for path in tasks.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) << 8).save(path)
    found = read_tasks(tasks, n_way=5, channels=1, image_size=28)
    assert found.background == given.background == "white"
    assert torch.equal(found.tasks.support_x, given.tasks.support_x)
    answers.write_bytes(b"\xef\xbb\xbf" + answers.read_bytes())
    assert torch.equal(read_answers(answers, 4, 10, 5), right)
