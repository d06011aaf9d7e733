"""The official one-shot benchmark of Omniglot: its anchors, what would spoil it, and files that are not whole."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import REAL_OMNIGLOT, Compose, write_runs
from PIL import Image

from fewshot.algorithms.hausdorff import Hausdorff
from fewshot.data.folder import load_folder
from fewshot.data.omniglot_runs import OmniglotRuns, load_runs
from fewshot.errors import UserError
from fewshot.runs import evaluate, train
from fewshot.tasks import Classification

KIND = Classification(20)
TINY = ["data.meta_batch_size=1", "model.hidden=4", "trainer.max_steps=2", "data.steps_per_epoch=2"]
SCORED = ["trainer.accelerator=cpu", "data.val_episodes=1", "episodes=1", "data.eval_q_query=1", "data.q_query=1"]


@pytest.mark.parametrize("unpacked", [False, True])
def test_every_item_stands_with_its_class(tmp_path: Path, unpacked: bool) -> None:
    runs = load_runs(str(write_runs(tmp_path, unpacked=unpacked)), 105)
    assert runs.support_x.shape == runs.query_x.shape == (20, 20, 1, 105, 105)
    assert runs.query_y[3].tolist() == [*range(1, 20), 0]
    assert runs.support_y[3].tolist() != list(range(20))  # not class after class
    shown = runs.support_x[0][runs.support_y[0].argsort()][runs.query_y[0]]
    assert (shown - runs.query_x[0]).abs().sum((1, 2, 3)).tolist() == [3.0] * 20  # one column of three pixels
    assert runs.support_x.max() == 1  # ink


def test_damage_is_told_by_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no all_runs.zip in"):
        load_runs(str(tmp_path), 28)
    (tmp_path / "all_runs.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"all_runs.zip is damaged .*: delete it and fetch it again"):
        load_runs(str(tmp_path), 28)
    (tmp_path / "all_runs.zip").unlink()
    write_runs(tmp_path, unpacked=True)
    labels = tmp_path / "all_runs" / "run07" / "class_labels.txt"
    labels.write_text(labels.read_text().replace("class01", "class02"))
    with pytest.raises(UserError, match=r"run07/class_labels.txt of 20 items, wanted are item01 to item20"):
        load_runs(str(tmp_path), 28)


def test_evaluate_scores_the_runs(compose_cfg: Compose, tmp_path: Path, capsys) -> None:
    root = f"data.root={write_runs(tmp_path)}"
    found = evaluate(compose_cfg("algo=nearest", "protocol=omniglot_20runs", root, config="evaluate", small=False))
    assert (found["mean"], found["episodes"], found["n_way"], found["q_query"]) == (1.0, 20, 20, 1)
    assert found["split"] == found["data"] == found["protocol"]["name"] == "omniglot_20runs"
    assert "error 0.00 %" in capsys.readouterr().out
    typed = ("algo=nearest", "protocol=omniglot_20runs", root, "data.k_shot=5")
    with pytest.raises(UserError, match="protocol=omniglot_20runs is data.k_shot=1, and you type data.k_shot=5"):
        evaluate(compose_cfg(*typed, config="evaluate", small=False))
    with pytest.raises(UserError, match="shows images of characters, and data=fewshot.data.sinusoid.SinusoidData has"):
        evaluate(compose_cfg("algo=zero", "data=sinusoid", typed[1], config="evaluate", small=False))


def test_a_learner_that_saw_the_runs_is_refused(tmp_path: Path) -> None:
    """Told by the drawings, whatever data set they lie in: a folder has those of four runs, beside noise."""
    data = OmniglotRuns(str(write_runs(tmp_path, unpacked=True)), image_size=105)
    for split, runs in (("train", (4, 9)), ("val", (11,)), ("test", (12,))):
        for run in runs:
            for number in range(1, 21):
                target = tmp_path / "images" / split / f"{run}_{number}"
                target.mkdir(parents=True)
                source = tmp_path / "all_runs" / f"run{run:02d}" / "training" / f"class{number:02d}.png"
                shutil.copy(source, target / "a.png")
                Image.effect_noise((105, 105), 80).save(target / "b.png")
    images = load_folder(str(tmp_path / "images"), 105, channels=1, invert=True)
    for parts, told in ((("train", "val"), r"3 of the 20 runs \(4, 9, 11\), train/4_1"), (("test",), r"1 of .*\(12\)")):
        with pytest.raises(UserError, match=f"characters of {told}"):
            data.refuse_spoiled(images, [number for number, part in enumerate(images.parts) if part in parts])


def test_the_distance_is_that_of_the_definition() -> None:
    """Two drawings, the second the first and one pixel beside: the larger mean of nearest distances, centred."""
    one, other = torch.zeros(2, 1, 9, 9)
    one[0, 2, 2:5] = 1
    other[0, 4, 4:7] = 1
    other[0, 8, 5] = 1
    learner = Hausdorff(torch.nn.Identity(), Classification(2))
    (fitted,) = learner.fit({}, torch.stack([one, other]), torch.tensor([0, 1]))
    a = torch.tensor([[0.0, -1], [0, 0], [0, 1]])
    b = torch.tensor([[-1.0, -1], [-1, 0], [-1, 1], [3, 0]])
    expected = max(torch.cdist(a, b).amin(1).mean(), torch.cdist(a, b).amin(0).mean())
    shifted = one.roll((3, 2), (1, 2))
    found = learner.predict(fitted, torch.stack([shifted, torch.zeros(1, 9, 9)]))
    torch.testing.assert_close(found[0], torch.tensor([0.0, -expected]), atol=1e-6, rtol=1e-6)
    assert found.isfinite().all()  # an empty sheet is far from both, and no error


@pytest.fixture
def real_runs(omniglot_root: str) -> str:
    if not (REAL_OMNIGLOT / "all_runs.zip").exists():
        pytest.skip("no all_runs.zip beside the checkout: set FEWSHOT_OMNIGLOT to its folder to run this test")
    return omniglot_root


@pytest.mark.parametrize(
    ("algo", "error"),
    [("nearest algo.distance=euclidean", 81.00), ("nearest", 78.25), ("hausdorff", 38.75)],
)
def test_anchors_to_the_printed_digit(compose_cfg: Compose, real_runs: str, algo: str, error: float, capsys) -> None:
    """Lake's modified Hausdorff distance, 38.8 % of error; and pixels."""
    overrides = [f"algo={algo.split()[0]}", *algo.split()[1:], "protocol=omniglot_20runs", f"data.root={real_runs}"]
    found = evaluate(compose_cfg(*overrides, config="evaluate", small=False))
    assert 100 * (1 - found["mean"]) == pytest.approx(error, abs=1e-4)
    assert f"error {error:.2f} %" in capsys.readouterr().out


def test_eight_of_the_runs_are_in_vinyals_training_classes(
    compose_cfg: Compose, real_runs: str, tmp_path: Path
) -> None:
    small = [f"data.root={real_runs}", "data.split=vinyals", "data.n_way=20", "algo=protonet"]
    train(compose_cfg(*small, *SCORED, *TINY, "test=false", small=False, folder=tmp_path))
    best = f"ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"
    common = [*small, "trainer.accelerator=cpu", *TINY[:2], best, "protocol=omniglot_20runs"]
    for asked in ([], ["data.image_size=30"]):  # its network would take 16 to 31 pixels
        with pytest.raises(UserError, match=r"characters of 8 of the 20 runs \(1, 2, 3, 4, 5, 6, 7, 8\)"):
            evaluate(compose_cfg(*common, *asked, config="evaluate", small=False))


def test_a_learner_of_the_background_set_is_scored(
    compose_cfg: Compose, real_runs: str, tmp_path: Path, capsys
) -> None:
    small = [f"data.root={real_runs}", "data.n_way=20", "data.within_alphabet=true", "algo=protonet", *SCORED, *TINY]
    train(compose_cfg(*small, "test=false", small=False, folder=tmp_path))
    best = f"ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"
    official = [f"data.root={real_runs}", "algo=protonet", "trainer.accelerator=cpu", "model.hidden=4", best]
    found = evaluate(compose_cfg(*official, "protocol=omniglot_20runs", config="evaluate", small=False))
    assert found["trained_on"] == "omniglot"
    assert "across data sets" not in capsys.readouterr().out
    assert 0 < found["mean"] < 1
