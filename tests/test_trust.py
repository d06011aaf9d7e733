"""Whoever sends a checkpoint sends no program, and no key of ours reaches what we write."""

from pathlib import Path

import pytest
import torch
from conftest import Compose

import fewshot
from fewshot import checkpoints
from fewshot.errors import UserError
from fewshot.runs import evaluate, train
from fewshot.trust import refuse_foreign_code

OURS = [
    *("fewshot.algorithms.maml.MAML", "fewshot.data.strokes.load_strokes", "torch.optim.Adam", "torch.optim.SGD"),
    *("fewshot.outer.MetaLearner", "fewshot.data.datamodule.EpisodeData", "fewshot.augment.Affine"),
    *("fewshot.models.conv4.Conv4", "fewshot.inner_optimizers.Adam", "fewshot.data.omniglot.load_omniglot"),
]
FOREIGN = [
    *("os.system", "builtins.eval", "mine.Net", "torch.load", "torch.hub.load", "hydra.utils.call"),
    *("fewshot.evaluation.subprocess.run", "fewshot.data.strokes.np.save", "torch.optim.optimizer.functools.partial"),
    *("fewshot.precision.bfloat16_works", "fewshot.evaluation.write_json", "fewshot.checkpoint_io.AtomicCheckpointIO"),
    *("fewshot", "fewshotter.Thing", "${oc.env:NAME}", "fewshot.${oc.env:NAME}", ""),
]


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_may_be_named(name: str) -> None:
    refuse_foreign_code({"a": [{"_target_": name}]}, [f"model._target_={name}", "algo=maml"], "x.ckpt", [])


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_needs_a_word(name: str) -> None:
    with pytest.raises(UserError, match="would run .*, which is no part of fewshot"):
        refuse_foreign_code({"a": {"b": [{"_target_": name}]}}, [], "x.ckpt", ["mine.other", "min", "o"])
    with pytest.raises(UserError, match="would run"):
        refuse_foreign_code({}, [f"model._target_={name}"], "x.ckpt", [])
    if name == "mine.Net":
        for trust in ("mine", "mine.Net"):
            refuse_foreign_code({"a": {"_target_": name}}, [f"model._target_={name}"], "x.ckpt", [trust])


@pytest.mark.parametrize(
    "hidden",
    [
        ({"_target_": "os.system"},),
        "${oc.decode:'{_target_: os.system}'}",
        "${oc.create:${other}}",
        "a ${oc.env:A,${oc.env:B}} b",
        ["${now:%Y}"],
    ],
)
def test_a_value_cannot_hide_it(hidden: object) -> None:
    with pytest.raises(UserError, match="would run"):
        refuse_foreign_code({"data": {"source": hidden}}, [], "x.ckpt", [])


def test_references_and_the_environment_are_fine() -> None:
    values = ["${data.n_way}", "${.k_shot}", "${oc.env:FEWSHOT_DATA,data}/x", "${hydra:runtime.output_dir}/plots"]
    refuse_foreign_code({"data": values}, [f"data.root={value}" for value in values], "x.ckpt", [])


@pytest.mark.parametrize(
    "override",
    [
        *("+trainer.plugins=[{_target_: os.system}]", "algo={_target_: os.system}"),
        *("model=${oc.decode:x}", "+model._tar${oc.env:NOPE,get_}=os.system", "data.source={_tar${oc.env:X,get_}: a}"),
    ],
)
def test_an_override_cannot_hide_it(override: str) -> None:
    with pytest.raises(UserError, match="would run"):
        refuse_foreign_code({}, [override], "x.ckpt", [])


@pytest.fixture
def foreign(compose_cfg: Compose, tmp_path: Path) -> Path:
    """A checkpoint whose data set would write a file when it is read."""
    train(compose_cfg("test=false", "trainer.max_steps=3", folder=tmp_path / "run"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    source = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "written"), "_partial_": False}
    checkpoint[checkpoints.RECORD]["config"]["data"]["source"] = source
    torch.save(checkpoint, path)
    return path


def test_it_is_not_run_and_can_be_allowed(compose_cfg: Compose, foreign: Path) -> None:
    refused = rf"ckpt_path={foreign} would run pathlib.Path.touch, .* trust=\[pathlib\]"
    given = f"ckpt_path={foreign}"
    for arguments in ([given], [given, "trust=[mine, other]"]):
        with pytest.raises(UserError, match=refused):
            checkpoints.recall(arguments, resume=False)
    with pytest.raises(UserError, match=refused):
        evaluate(compose_cfg(given, config="evaluate"))
    with pytest.raises(UserError, match=refused):
        train(compose_cfg(given, "trainer.max_steps=6"))
    recalled = checkpoints.recall([given, "trust=[mine, pathlib]"], resume=False)
    assert [override for override in recalled if override.startswith("trust=")] == ["trust=[mine, pathlib]"]
    checkpoint = checkpoints.read(str(foreign))
    restored = checkpoints.restore(compose_cfg(given, "trust=[pathlib]"), checkpoint, [])
    assert restored.data.source._target_ == "pathlib.Path.touch"


def test_further_checkpoints_of_an_ensemble_are_no_way_in(compose_cfg: Compose, foreign: Path, tmp_path: Path) -> None:
    own = foreign.with_name("best.ckpt")  # of the same run, and not touched
    with pytest.raises(UserError, match=rf"ckpt_path={foreign} would run pathlib.Path.touch"):
        evaluate(compose_cfg(f"ckpt_path={own}", f"ensemble=[{foreign}]", config="evaluate"))
    with pytest.raises(UserError, match="would run pathlib.Path.touch"):
        fewshot.load(foreign)
    assert not (tmp_path / "written").exists()


def test_no_key_is_written(compose_cfg: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef" * 2 + "01234567"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    train(compose_cfg("logger=wandb", "trainer.max_steps=3", folder=tmp_path / "run"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]
