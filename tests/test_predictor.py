"""A checkpoint in somebody else's program: `fewshot.load(CKPT).fit(images, labels).predict(images)`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Compose, make_image_folder, random_tasks, small_maml
from hydra.core.hydra_config import HydraConfig
from PIL import Image

import fewshot
from fewshot import checkpoints, engine
from fewshot.algorithms.base import Algorithm, last
from fewshot.build import build_learner
from fewshot.data.folder import load_folder
from fewshot.data.given import read_images
from fewshot.data.strokes import load_strokes
from fewshot.errors import UserError
from fewshot.labels import encode
from fewshot.predictor import FewShotClassifier, FewShotRegressor
from fewshot.runs import train
from fewshot.tasks import TaskBatch

ALGORITHMS = sorted(
    {path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml")} - {"own", "zero", "nearest", "hausdorff"}
)
ANY_WAY = ["baselinepp", "matchingnet", "metaoptnet", "protomaml", "protonet", "r2d2", "relationnet"]
QUICK = {
    "baselinepp": ["data.meta_batch_size=1", "algo.eval_inner_steps=5"],
    "reptile": ["algo.eval_inner_steps=5", "algo.eval_inner_batch=3"],
    "snail": ["algo.filters=4", "algo.keys=[4,4,4]", "algo.values=[4,4,4]"],
    "mann": ["algo.slots=8", "algo.width=4", "algo.hidden=8"],
}


Saved = Callable[..., tuple[Path, Algorithm]]
_SAVED: dict[tuple[str, ...], tuple[Path, Algorithm]] = {}


@pytest.fixture
def saved(compose_cfg: Compose, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """saved(algo, *overrides): a checkpoint as train.py writes it, and its learner: as it starts, but for running
    statistics that fit."""

    def make(algo: str, *overrides: str, small: bool = True) -> tuple[Path, Algorithm]:
        key = (algo, *overrides)
        if key not in _SAVED:
            path = tmp_path_factory.mktemp(algo) / "saved.ckpt"
            cfg = compose_cfg(f"algo={algo}", *QUICK.get(algo, []), *overrides, small=small)
            data, learner = build_learner(cfg)
            observed = engine.meta_backward(learner.algorithm, data.task_batch("train", 0)).observed
            for _ in range(50):
                learner.algorithm.absorb(observed)
            typed = list(HydraConfig.get().overrides.task)
            known = checkpoints.record(cfg, typed, algo, "strokes", data.input_shape, data.kind.outputs("train"))
            torch.save({checkpoints.RECORD: known, "state_dict": learner.state_dict()}, path)
            _SAVED[key] = path, learner.algorithm.eval()
        return _SAVED[key]

    return make


def characters(ways: int, shots: int, queries: int = 2) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """Dark strokes on light paper (M, 28, 28) uint8 and their names, class after class; then queries."""
    drawn = load_strokes(os.environ["FEWSHOT_DATA"], 28, alphabets=12, characters=10)
    each = [255 - drawn.of_class(119 - 7 * way)[: shots + queries, 0].numpy() for way in range(ways)]
    names = [f"sign {way}" for way in range(ways)]
    parts = [[images[:shots] for images in each], [images[shots:] for images in each]]
    counts = (shots, queries)
    (x, y), (query_x, query_y) = (
        (np.concatenate(part), [name for name in names for _ in range(count)])
        for part, count in zip(parts, counts, strict=True)
    )
    return x, y, query_x, query_y


def as_task(x: np.ndarray, labels: list[str], query_x: np.ndarray) -> TaskBatch:
    """The same as the engine takes it: ink 1, in the order in which a support set is learned."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    ink, query_ink = (torch.from_numpy(255 - images)[:, None].float().div(255) for images in (x, query_x))
    codes = torch.tensor([int(label[5:]) for label in labels])
    return TaskBatch(ink[order][None], codes[order][None], query_ink[None], torch.zeros(1, len(query_x)).long())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_checkpoint_answers_as_in_evaluation(saved: Saved, algo: str) -> None:
    path, algorithm = saved(algo)
    x, y, query_x, _ = characters(5, 2)
    batch = as_task(x, y, query_x)
    model = fewshot.load(path, transductive=True).fit(x, y)
    assert isinstance(model, FewShotClassifier)
    assert model.inverted_
    expected = engine.predict(algorithm, batch)[0]
    told = model.predict_proba(query_x)
    np.testing.assert_allclose(told, expected.double().softmax(-1).numpy(), atol=1e-4)
    np.testing.assert_allclose(told.sum(1), 1)
    assert told.std() > 1e-4
    by_itself = fewshot.load(path).fit(x, y)
    whole = by_itself.predict_proba(query_x)
    np.testing.assert_allclose(by_itself.predict_proba(query_x[3:5]), whole[3:5], atol=1e-4)
    assert np.allclose(whole, told, atol=1e-5) != algorithm.transductive


def test_a_query_is_answered_in_the_company_of_the_support_set_alone() -> None:
    algorithm, batch = small_maml(steps=2), random_tasks(1, queries=3)
    params = dict(algorithm.named_parameters())
    support_x, query_x = batch.support_x[0], batch.query_x[0]
    fitted = last(algorithm.fit(params, support_x, batch.support_y[0]))
    found = engine.predict_one_by_one(algorithm, fitted, support_x, query_x)
    with torch.no_grad():
        one = [algorithm.predict(fitted, torch.cat([support_x, query[None]]))[-1] for query in query_x]
        together = algorithm.predict(fitted, query_x)
    torch.testing.assert_close(found, torch.stack(one))
    assert not torch.allclose(found, together, atol=1e-3), "by the batch an answer depends on the others"
    for kept in ([0], [5, 2], [8, 7, 6, 5]):
        torch.testing.assert_close(engine.predict_one_by_one(algorithm, fitted, support_x, query_x[kept]), found[kept])
    assert not found.requires_grad


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_memory_is_bounded_and_the_answers_are_the_same(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, batch = small_maml(norm=norm), random_tasks(1, queries=5)
    fitted = last(algorithm.fit(dict(algorithm.named_parameters()), batch.support_x[0], batch.support_y[0]))
    at_once = engine.predict_one_by_one(algorithm, fitted, batch.support_x[0], batch.query_x[0])
    seen: list[int] = []
    monkeypatch.setattr(engine, "_IMAGES_AT_ONCE", 14)  # two queries beside six support images
    algorithm.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    parts = engine.predict_one_by_one(algorithm, fitted, batch.support_x[0], batch.query_x[0])
    torch.testing.assert_close(parts, at_once)
    assert seen == ([7] * 8 if norm == "batch" else [14, 1]), "15 queries, vectorised two at a time"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_classes_may_have_more_images_than_others(saved: Saved, algo: str) -> None:
    """What adds up the images of a class says that it needs as many of each."""
    x, y, query_x, _ = characters(5, 3)
    kept = [0, 3, 4, 6, 7, 8, 9, 12]
    model = fewshot.load(saved(algo)[0])
    if algo == "relationnet":
        with pytest.raises(UserError, match="1 images of sign 0 and 3 of sign 2: RelationNet needs as many of each"):
            model.fit(x[kept], [y[place] for place in kept])
        return
    told = model.fit(x[kept], [y[place] for place in kept]).predict_proba(query_x)
    assert np.isfinite(told).all()
    np.testing.assert_allclose(told.sum(1), 1)


def test_a_prototype_is_the_mean_of_however_many(saved: Saved) -> None:
    model = fewshot.load(saved("protonet")[0])
    x, y, query_x, _ = characters(4, 2)
    even = model.fit(x, y).predict_proba(query_x)
    twice = [0, 1, 0, 1, *range(2, 8)]  # the first class has all its images twice
    np.testing.assert_allclose(model.fit(x[twice], [y[i] for i in twice]).predict_proba(query_x), even, atol=1e-5)


@pytest.mark.parametrize("ways", [2, 7])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_other_numbers_of_classes(saved: Saved, algo: str, ways: int) -> None:
    model = fewshot.load(saved(algo)[0])
    x, y, query_x, _ = characters(ways, 1)
    if algo in ANY_WAY or (algo == "transfer" and ways < 5):
        told = model.fit(x, y).predict_proba(query_x)
        assert told.shape == (2 * ways, ways)
        np.testing.assert_allclose(told.sum(1), 1)
        assert set(model.predict(query_x)) <= set(y)
        x, y, query_x, _ = characters(5, 1)
        assert model.fit(x, y).predict_proba(query_x).shape == (10, 5), "and back"
        return
    with pytest.raises(UserError, match=f"{ways} classes, but .* 5"):
        model.fit(x, y)


def test_the_order_of_a_sorted_list_is_not_that_of_the_steps(saved: Saved) -> None:
    """Reptile takes a few images a step: of a list sorted by class, otherwise, those of one class."""
    path, _ = saved("reptile", "algo.eval_inner_steps=60", "algo.eval_inner_batch=5", "algo.inner_lr=0.005")
    x, y, *_ = characters(5, 5)
    model = fewshot.load(path, transductive=True).fit(x, y)
    assert np.mean(model.predict(x) == np.array(y)) > 0.9


LABELS: dict[str, tuple[Any, list[Any]]] = {
    "strings": (["b", "a", "b", "c"], ["a", "b", "c"]),
    "numbers": ([30, -1, 30, 7], [-1, 7, 30]),
    "booleans": ([True, False, True, True], [False, True]),
    "an array": (np.array([2.5, 1.5, 2.5, 3.0]), [1.5, 2.5, 3.0]),
    "a tensor": (torch.tensor([4, 2, 4, 9]), [2, 4, 9]),
    "tensors": ([torch.tensor(4), torch.tensor(2), torch.tensor(4), torch.tensor(9)], [2, 4, 9]),
    "pairs": ([(1, "b"), (0, "z"), (1, "b"), (1, "a")], [(0, "z"), (1, "a"), (1, "b")]),
    "text beside numbers": (["1", 1, "1", 2], ["1", 1, 2]),
    "what cannot be sorted": (["1", 1, "1", None], ["1", 1, None]),
    "very large numbers": ([2**70, 1, 2**70, 0], [0, 1, 2**70]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_come_back_as_they_are(name: str) -> None:
    given, expected = LABELS[name]
    classes, codes = encode(given)
    assert list(classes) == expected
    assert codes.dtype == torch.int64
    listed = [label.item() if isinstance(label, torch.Tensor) else label for label in given]
    assert list(classes[codes.numpy()]) == listed


def test_predictions_are_labels_in_the_order_of_classes_(saved: Saved) -> None:
    """Of one image a class, each is its own prototype."""
    model = fewshot.load(saved("protonet")[0])
    x, *_ = characters(4, 1)
    for labels in (["d", "b", "c", "a"], [7, 3, 5, 1], [(2, 2), (1, 5), (1, 7), (0, 0)]):
        assert model.fit(x, labels) is model
        assert list(model.classes_) == sorted(labels)
        assert list(model.predict(x)) == labels
        assert [sorted(labels)[place] for place in model.predict_proba(x).argmax(1)] == labels
    assert model.predict_proba(x).dtype == np.float64


def test_a_trained_run_is_put_to_use(compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the checkpoint: no data set is opened, nothing written, no random number used up."""
    train(compose_cfg("algo=protonet", "test=false", "trainer.max_steps=20", folder=tmp_path / "run"))
    monkeypatch.setattr("fewshot.data.datamodule.EpisodeData.setup", None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        model = fewshot.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
        x, y, query_x, query_y = characters(5, 5, queries=10)
        right = np.mean(model.fit(x, y).predict(query_x) == np.array(query_y))
    assert right > 0.5
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not list(elsewhere.iterdir())


def test_maml_adapts_where_nothing_is_to_be_differentiated(saved: Saved) -> None:
    path, _ = saved("maml")
    x, y, query_x, _ = characters(5, 1)
    plain = fewshot.load(path).fit(x, y).predict_proba(query_x)
    with torch.inference_mode():
        np.testing.assert_array_equal(fewshot.load(path).fit(x, y).predict_proba(query_x), plain)


def test_importing_it_is_light() -> None:
    code = "import sys, fewshot; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'lightning', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


# Images: one picture in every form.


def picture() -> np.ndarray:
    """Wider than high, every value another: (20, 26) uint8."""
    return (np.arange(520) * 97 % 256).astype(np.uint8).reshape(20, 26)


FORMS = {
    "PIL, grey": lambda p: [Image.fromarray(p)],
    "PIL, 16 bits": lambda p: [Image.fromarray(p.astype(np.uint16) * 257)],
    "PIL, transparent": lambda p: [Image.merge("LA", (Image.fromarray(p), Image.new("L", (26, 20), 255)))],
    "PIL, palette": lambda p: [Image.fromarray(p).convert("P")],
    "array": lambda p: p[None],
    "array, channels last": lambda p: p[None, :, :, None],
    "list of arrays": lambda p: [p],
    "array of floats": lambda p: p[None] / 255,
    "array, half precision": lambda p: (p[None] / 255).astype(np.float16).repeat(2, 0)[:, :, :, None],
    "tensor": lambda p: torch.from_numpy(p)[None].repeat(2, 1, 1),
    "tensor, channels first": lambda p: torch.from_numpy(p)[None, None] / 255,
    "list of tensors": lambda p: [torch.from_numpy(p)[None].double() / 255],
    "tensor with a graph": lambda p: (torch.from_numpy(p)[None, None] / 255).requires_grad_(),
    "object array": lambda p: np.fromiter([Image.fromarray(p)], dtype=object, count=1),
    "generator": lambda p: (Image.fromarray(each) for each in [p]),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [20, 7])
def test_an_image_is_the_same_in_every_form(tmp_path: Path, name: str, size: int) -> None:
    """That which data=folder reads from a file."""
    for number in range(2):
        (tmp_path / f"class{number}").mkdir()
        Image.fromarray(picture()).save(tmp_path / f"class{number}" / "0.png")
    expected = load_folder(str(tmp_path), size, channels=1).images[0, 0].numpy()
    found = read_images(FORMS[name](picture()), channels=1, image_size=size)
    assert found.shape[1:] == (size, size, 1)
    np.testing.assert_allclose(found[0, :, :, 0].astype(int), expected, atol=1 if "half" in name else 0)


def test_colours_and_their_places() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    forms = (drawn, drawn / 255, list(drawn), torch.from_numpy(drawn).movedim(-1, 1), [*map(Image.fromarray, drawn)])
    for form in forms:
        np.testing.assert_array_equal(read_images(form, channels=3, image_size=9), drawn)
    grey = read_images([Image.fromarray(drawn[0, :, :, 0])], channels=3, image_size=9)
    np.testing.assert_array_equal(grey[0, ..., 1], drawn[0, :, :, 0])
    sizes = [Image.new("RGB", (30, 12), "red"), Image.new("L", (5, 8), 40), Image.new("1", (4, 4))]
    assert read_images(sizes, channels=3, image_size=6)[:, 0, 0].tolist() == [[255, 0, 0], [40] * 3, [0] * 3]
    mask = np.array([[[True, False], [False, True]]])
    assert read_images(mask, channels=1, image_size=2).ravel().tolist() == [255, 0, 0, 255]


def test_dark_ink_is_turned_as_the_support_set_says(saved: Saved) -> None:
    model = fewshot.load(saved("protonet")[0])
    x, y, query_x, _ = characters(5, 1)
    dark = model.fit(x, y).predict_proba(query_x)
    assert model.inverted_
    one = query_x[:1].copy()
    one[:, :, [0, -1]] = one[:, [0, -1]] = 0  # by itself this would be an image on black
    framed = model.predict_proba(np.concatenate([one, query_x[1:]]))
    np.testing.assert_allclose(framed[1:], dark[1:], atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(one), framed[:1], atol=1e-6)
    light = model.fit(255 - x, y).predict_proba(255 - query_x)
    assert not model.inverted_
    np.testing.assert_allclose(light, dark, atol=1e-6)
    assert not np.allclose(model.fit(x, y, invert=False).predict_proba(query_x), dark, atol=1e-3)
    np.testing.assert_allclose(
        model.fit(255 - x, y, invert=True).predict_proba(x), model.fit(x, y, invert=False).predict_proba(255 - x)
    )


@pytest.mark.parametrize(("source", "inverted"), [("channels=1", False), ("channels=3", False), ("invert=true", True)])
def test_who_was_trained_on_images_as_they_are_sees_them_so(
    saved: Saved, tmp_path: Path, source: str, inverted: bool
) -> None:
    make_image_folder(tmp_path / "images")
    options = ["data=folder", f"data.root={tmp_path / 'images'}", "data.image_size=16", f"data.source.{source}"]
    grey = ["data.source.channels=1"] if inverted else []
    small = ["data.val_episodes=2", "data.meta_batch_size=2", "model.hidden=8", "trainer.accelerator=cpu"]
    model = fewshot.load(saved("protonet", *options, *grey, *small, small=False)[0])
    x, y, *_ = characters(5, 1)
    assert model.fit([Image.fromarray(each) for each in x], y).inverted_ == inverted


# What is refused, in one line.

REFUSED_IMAGES: dict[str, tuple[Any, str]] = {
    "none": ([], "0 images: at least 1"),
    "an empty stack": (np.zeros((0, 28, 28), np.uint8), "0 images: at least 1"),
    "one image": (Image.new("L", (9, 9)), "a list of images or a stack of them, not one Image"),
    "a path": ("a.png", "not one str"),
    "a number": (5, "not int"),
    "paths": (["a.png"], "image 0 is of type str"),
    "one array": (np.zeros((28, 28)), r"images of shape \(28, 28\): arrays are \(M, H, W\) or \(M, H, W, C\)"),
    "five dimensions": (torch.zeros(1, 5, 1, 28, 28), r"28, 28\): tensors are \(M, H, W\) or \(M, C, H, W\)"),
    "one in colour?": (np.zeros((28, 28, 3)), r"\(28, 28, 3\) may be one image with its channels, or 28 grey ones"),
    "one tensor?": (torch.zeros(3, 28, 28), r"\(3, 28, 28\) may be one image .* or 3 grey ones: give tensors"),
    "colours": (np.zeros((2, 28, 28, 3)), "image 0 has 3 channels and the model sees 1"),
    "an array, channels first": (np.zeros((2, 1, 28, 28)), "image 0 has 28 channels and the model sees 1"),
    "a tensor, channels last": (torch.zeros(2, 28, 28, 1), "image 0 has 28 channels and the model sees 1"),
    "nan": (np.full((2, 9, 9), np.nan), "image 0: 81 of 81 pixels are not finite"),
    "infinite": ([np.zeros((9, 9)), np.array([[np.inf, 0.0]])], "image 1: 1 of 2 pixels are not finite"),
    "floats to 255": (np.full((2, 9, 9), 255.0), "image 0 has float64 pixels from 255 to 255: floats go from 0 to 1"),
    "standardised": (torch.randn(2, 1, 9, 9) - 1, "image 0 has float32 pixels from -"),
    "other integers": (np.full((2, 9, 9), 200), "image 0 has int64 pixels from 200 to 200"),
    "bytes to 1": (np.ones((2, 9, 9), np.uint8), "image 0 has uint8 pixels from 1 to 1"),
    "no pixels": ([np.zeros((0, 4))], r"image 0 has shape \(0, 4\)"),
    "floats of PIL": ([Image.new("F", (4, 4))], "image 0 cannot be read .*mode F"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_refused_images(name: str) -> None:
    given, message = REFUSED_IMAGES[name]
    with pytest.raises(UserError, match=message) as refused:
        read_images(given, channels=1, image_size=28)
    assert "\n" not in str(refused.value)


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    Image.new("L", (30, 30), 7).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    told = pytest.raises(UserError, match="image 1 cannot be read")
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "cut.png") as cut, told:
        read_images([whole, cut], channels=1, image_size=28)


def test_refusals_leave_the_classifier_as_it_was(saved: Saved) -> None:
    model = fewshot.load(saved("maml")[0])
    x, y, query_x, _ = characters(5, 2)
    for verb in (model.predict, model.predict_proba):
        with pytest.raises(UserError, match="predict before fit"):
            verb(query_x)
    before = model.fit(x, y).predict_proba(query_x)
    for images, labels, message in (
        (x, y[:-1], "10 images and 9 labels"),
        (x, [], "10 images and 0 labels"),
        (x[:4], ["a"] * 4, "4 images of 1 class: at least 2"),
        (x, ["a", "b"] * 5, "2 classes, but MAML learned one head for tasks of 5"),
        (x, np.zeros((10, 1)), r"labels have shape \(10, 1\)"),
        (x, [float("nan")] * 10, "10 of 10 labels are nan"),
        (x, [["a"]] * 10, "labels must be"),
        (x, 3, "labels must be a list or an array, not int"),
        (x[:, :, :, None].repeat(3, 3), y, "3 channels and the model sees 1"),
        ([], [], "0 images"),
    ):
        with pytest.raises(UserError, match=message):
            model.fit(images, labels)
    np.testing.assert_array_equal(model.predict_proba(query_x), before)
    with pytest.raises(UserError, match="0 images"):
        model.predict([])


def test_what_came_to_no_number_is_told(saved: Saved) -> None:
    path, _ = saved("maml", "algo.inner_lr=1e30")
    x, y, query_x, _ = characters(5, 1)
    with pytest.raises(UserError, match="10 of 10 inputs have no answer"):
        fewshot.load(path).fit(x, y).predict(query_x)


def test_a_classifier_of_many_classes_answers_with_those_asked_for(saved: Saved) -> None:
    path, _ = saved("transfer", "data.num_classes=20")
    x, y, query_x, _ = characters(3, 1)
    model = fewshot.load(path).fit(x, y)
    assert model.predict_proba(query_x).shape == (6, 3)
    with pytest.raises(UserError, match="21 classes, but Transfer has a head for 20: at most so many"):
        model.fit(np.resize(x, (21, 28, 28)), list(range(21)))


def test_a_checkpoint_that_is_none_or_names_others(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        fewshot.load(tmp_path / "none.ckpt")
    (tmp_path / "own_net.py").write_text("from fewshot.models.conv4 import Conv4\n\n\nclass Own(Conv4):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path, _ = saved("protonet", "model._target_=own_net.Own")
    with pytest.raises(UserError, match=r"would run own_net.Own, which is no part of fewshot.* trust=\[own_net\]"):
        fewshot.load(path)
    x, y, *_ = characters(3, 1)
    for trust in (["own_net"], "own_net"):
        assert list(fewshot.load(path, trust=trust).fit(x, y).predict(x)) == y
    with pytest.raises(UserError, match="device=nowhere cannot be used here"):
        fewshot.load(path, trust=["own_net"], device="nowhere")


# Regression


def test_waves_are_learned_from_points(compose_cfg: Compose, tmp_path: Path) -> None:
    options = ("algo=maml", "data=sinusoid", "algo.inner_lr=0.01", "trainer.max_steps=300", "data.steps_per_epoch=300")
    few = ("data.val_episodes=32", "test=false", "trainer.accelerator=cpu")
    train(compose_cfg(*options, *few, small=False, folder=tmp_path))
    path = tmp_path / "checkpoints" / "best.ckpt"
    model = fewshot.load(path)
    assert isinstance(model, FewShotRegressor)
    x, more = np.linspace(-5, 5, 12), np.linspace(-4, 4, 50)
    found = model.fit(x, 3 * np.sin(x)).predict(more)
    assert found.shape == (50,)
    np.testing.assert_allclose(model.fit(x[:, None], 3 * np.sin(x)[:, None]).predict(more)[:, 0], found, atol=1e-5)
    checkpoint = checkpoints.read(str(path))
    _, learner = build_learner(compose_cfg(*options, *few, small=False, folder=tmp_path))
    checkpoints.load_weights(learner, checkpoint, str(path))
    points = torch.tensor(x, dtype=torch.float32)[None, :, None]
    batch = TaskBatch(points, 3 * points.sin(), torch.tensor(more, dtype=torch.float32)[None, :, None], points)
    np.testing.assert_allclose(engine.predict(learner.algorithm, batch)[0, :, 0].numpy(), found, atol=1e-4)
    for x_given, y_given, message in (
        (x, x[:-1], "12 x and 11 y"),
        ([], [], "x: 0 points, at least 1"),
        ([[1.0, 2.0]], [1.0], r"x have shape \(1, 2\), and the model takes \(M, 1\)"),
        ([1.0], [float("nan")], "y: 1 of 1 numbers are not finite"),
        (["one"], [1.0], "x must be numbers"),
    ):
        with pytest.raises(UserError, match=message):
            model.fit(x_given, y_given)
    with pytest.raises(UserError, match="predict before fit"):
        fewshot.load(path).predict(x)
