"""Every file in conf/ composes, and what it describes can be built."""

import subprocess
import sys

import pytest
from conftest import ROOT, Compose
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from fewshot import runs
from fewshot.build import build, build_learner, build_loggers, build_trainer

GROUPS = {
    str(folder.relative_to(ROOT / "conf")): sorted(f.stem for f in folder.glob("*.yaml"))
    for folder in (ROOT / "conf").rglob("*")
    if folder.is_dir()
}
PARTS = ("base", "own")  # to be included by others; to be completed by a user
CHOICES = [
    (group, name)
    for group, names in sorted(GROUPS.items())
    for name in names
    if name not in PARTS and group != "experiment/hw15"
]


def test_the_groups_of_the_contract_are_there() -> None:
    assert {"algo", "aug", "data", "model", "trainer", "logger", "callbacks", "experiment", "sweep", "debug"} <= set(
        GROUPS
    )


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{g}={n}" for g, n in CHOICES])
def test_every_file_composes_and_builds(compose_cfg: Compose, group: str, name: str, request) -> None:
    extra = []
    if (group, name) == ("data", "omniglot"):
        extra = [f"data.root={request.getfixturevalue('omniglot_root')}"]
        cfg = compose_cfg("data=omniglot", *extra, "model.hidden=8", small=False)
    elif (group, name) == ("data", "folder"):
        root = f"data.root={request.getfixturevalue('image_folder')}"
        cfg = compose_cfg("data=folder", root, "model.hidden=8", small=False)
    elif any(data in name for data in ("cifar_fs", "fc100", "miniimagenet")):
        root = request.getfixturevalue("fake_miniimagenet" if "miniimagenet" in name else "fake_cifar")
        cfg = compose_cfg(f"{group}={name}", f"data.root={root}", "model.hidden=8", small=False)
    elif group == "experiment" and "omniglot" in name:
        cfg = compose_cfg(f"experiment={name}", f"data.root={request.getfixturevalue('omniglot_root')}", small=False)
    elif group == "grid":
        cfg = compose_cfg(f"grid={name}", config="evaluate")
        assert build(cfg.grid).ways == list(cfg.grid.ways)
    elif group == "views":
        cfg = compose_cfg(f"views={name}", config="evaluate")
        assert len(build(cfg.views).maps) == cfg.views.count
    elif "sinusoid" in name:
        cfg = compose_cfg(f"{group}={name}", small=False)
    else:
        small = group not in ("experiment", "debug", "sweep")
        lists = {"mlp": ["model.hidden=[8]"], "resnet12": ["model.hidden=[8,8,8,8]"]}
        extra = lists.get(name, [] if small else ["data=strokes"])
        cfg = compose_cfg(f"{group}={name}", *extra, small=small)
    assert OmegaConf.to_container(cfg, resolve=True)
    data, learner = build_learner(cfg)
    if (group, name) != ("trainer", "gpu"):
        trainer = build_trainer(cfg, build_loggers(cfg, 0), [])
        assert trainer.max_steps == cfg.trainer.max_steps
        runs._close_wandb(0)
    assert data.task_batch("train", 0).support_y.shape[0] == cfg.data.meta_batch_size
    assert learner.algorithm.kind.metric == ("mean squared error" if "sinusoid" in name else "accuracy")


def test_evaluation_and_benchmark_compose(compose_cfg: Compose) -> None:
    assert compose_cfg(config="evaluate").task_name == "evaluate"
    assert compose_cfg(config="bench", small=False).repeats == 5


def test_first_order_is_one_key_away(compose_cfg: Compose) -> None:
    maml, fomaml = (OmegaConf.to_container(compose_cfg(f"algo={name}").algo) for name in ("maml", "fomaml"))
    assert {key for key in maml if maml[key] != fomaml[key]} == {"create_graph"}


@pytest.mark.parametrize("override", ["algo.inner_stepps=2", "data.nway=3", "algo=unknown", "bogus=1", "data=imagenet"])
def test_unknown_keys_and_groups_fail(compose_cfg: Compose, override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose_cfg(override)


@pytest.mark.parametrize("flags", [["--help"], ["algo=fomaml", "--help"], ["--cfg", "job"]], ids=" ".join)
def test_help_and_cfg_load_neither_torch_nor_lightning(flags: list[str]) -> None:
    code = "import runpy,sys; sys.argv=['train.py',*{}]\ntry: runpy.run_path('train.py',run_name='__main__')\n"
    code += "except SystemExit: pass\nprint([m for m in ('torch','lightning','wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code.format(flags)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
    if "--help" in flags:
        assert all(name in done.stdout for _, name in CHOICES)
        assert f"create_graph: {'algo=fomaml' not in flags}".lower() in done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} train.py --help | true"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_help_tells_an_unknown_key_in_one_line(program: str) -> None:
    command = [sys.executable, f"{program}.py", "--help", "bogus=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_yaml_values_reach_the_constructor(compose_cfg: Compose) -> None:
    cfg = compose_cfg("algo.inner_lr=0.07", "algo.eval_inner_steps=9", "outer.curve_episodes=3", "model.norm=layer")
    _, learner = build_learner(cfg)
    assert learner.algorithm.inner_lr == 0.07
    assert learner.algorithm.eval_inner_steps == 9
    assert learner.curve_episodes == 3
    assert not learner.algorithm.transductive
