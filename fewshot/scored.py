"""What evaluate.py scores: a learner, alone or with others, and the tasks that it is asked."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig, ListConfig

from fewshot import checkpoints
from fewshot.algorithms.base import Algorithm
from fewshot.algorithms.ensemble import Ensemble
from fewshot.answers import answer
from fewshot.build import build, build_learner, learner_for, refuse_other_ways, settle
from fewshot.data.omniglot import SIDE
from fewshot.data.omniglot_runs import OmniglotRuns
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.grid import score_grid
from fewshot.outer import MetaLearner
from fewshot.predictor import Trained
from fewshot.protocols import PROTOCOLS, RUNS
from fewshot.seen import refuse_seen
from fewshot.tasks import Classification
from fewshot.testing import Tested, run, score
from fewshot.transduction import ways_to_test

_DIVIDE = ("data", "data.root", "data.split", "seed", "experiment")  # keys that move classes from split to split


def what_is_scored(
    cfg: DictConfig, folder: Path, checkpoint: dict[str, Any] | None, typed: Sequence[str]
) -> tuple[MetaLearner, Callable[[Trainer, MetaLearner], dict[str, Any]]]:
    """The learner, without its weights, and what scores it: on tasks of a folder, the official runs, or drawn ones."""
    known = None if checkpoint is None else checkpoint[checkpoints.RECORD]
    algo = choice("algo", checkpoint, typed)
    if "grid" in cfg:
        _refuse_beside_grid(cfg, typed)
    if cfg.tasks_dir and (cfg.protocol or cfg.normalization != "trained"):
        raise UserError("tasks_dir=… is answered as the learner was trained: leave protocol and normalization out")
    if cfg.tasks_dir:  # needs no data set: the checkpoint knows what images its model sees
        settle()
        if "n_way" not in cfg.data:
            raise UserError(f"tasks_dir={cfg.tasks_dir} holds images of classes: data={cfg.data._target_} has none")
        given = {"input_shape": (1, cfg.data.image_size, cfg.data.image_size), "n_out": cfg.data.n_way}
        input_shape, n_out = (given[key] if known is None else known[key] for key in ("input_shape", "n_out"))
        learner = learner_for(cfg, input_shape, Classification(cfg.data.n_way, n_out))
        refuse_other_ways(learner.algorithm)
        return learner, partial(answer, cfg, folder, algo=algo, input_shape=input_shape)
    official = cfg.protocol == RUNS
    data, learner = _official_runs(cfg, known, typed) if official else build_learner(cfg, "test")
    others = _others(cfg)
    if others or official or any(key in _DIVIDE or key.startswith("data.source") for key in typed):
        refuse_seen(data, ({} if known is None else {cfg.ckpt_path: known}) | others, str(cfg.data.get("root")))
    ways_to_test(learner.algorithm, cfg.normalization)  # refuses what cannot be
    learned = None if checkpoint is None else trained_on(checkpoint)
    origin = Tested(algo, RUNS if official else choice("data", checkpoint, typed), cfg.ckpt_path, learned)
    if "grid" in cfg:
        grid = build(cfg.grid)
        plan = grid.plan(data, learner.algorithm)
        return learner, partial(run, score_grid, cfg, folder, data=data, origin=origin, grid=grid, plan=plan)
    return learner, partial(score, cfg, folder, data=data, origin=origin)


def choice(group: str, checkpoint: dict[str, Any] | None, typed: Sequence[str]) -> str:
    """What was chosen of a group: by what is typed, else by the checkpoint's run, which in a sweep over checkpoints
    Hydra does not know."""
    known = {} if checkpoint is None else checkpoint[checkpoints.RECORD]
    if group in known and group not in typed and "experiment" not in typed:
        return known[group]
    return HydraConfig.get().runtime.choices[group]


def _refuse_beside_grid(cfg: DictConfig, typed: Sequence[str]) -> None:
    """A grid has tasks of its own, and is that of one learner as it was trained."""
    if "episodes" in typed:
        raise UserError(f"episodes={cfg.episodes} is for a test; of each pair of way and shot grid.episodes=… tasks")
    beside = {"tasks_dir": cfg.tasks_dir, "protocol": cfg.protocol, "ensemble": cfg.ensemble, "views": cfg.get("views")}
    if cfg.normalization != "trained":
        beside["normalization"] = cfg.normalization
    if given := [key for key, value in beside.items() if value]:
        raise UserError(f"grid= draws tasks of its own for one learner as it was trained: leave {given[0]} out")


def _others(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """What the further checkpoints of an ensemble say of their runs, by path; refuses code of others."""
    if not isinstance(cfg.ensemble, ListConfig):
        raise UserError(f"ensemble={cfg.ensemble} must be a list: ensemble=[{cfg.ensemble}]")
    found = {}
    for path in cfg.ensemble:
        checkpoint = checkpoints.read(path)
        checkpoints.refuse_untrusted(checkpoint, path, cfg.trust)
        found[path] = checkpoint[checkpoints.RECORD]
    return found


def together(cfg: DictConfig, algorithm: Algorithm) -> Ensemble:
    """The learner with the others of the ensemble, and its views."""
    if not isinstance(algorithm.kind, Classification):
        raise UserError("ensemble=… and views=… average probabilities of classes: regression has none")
    if cfg.ckpt_path is None:
        raise UserError("ensemble=… and views=… are for what was trained: ckpt_path=RUN/checkpoints/best.ckpt")
    if cfg.protocol in PROTOCOLS and len(PROTOCOLS[cfg.protocol].inner_steps) > 1:
        raise UserError(f"protocol={cfg.protocol} tells scores after several inner steps, which one learner alone has")
    own = tuple(checkpoints.read(cfg.ckpt_path)[checkpoints.RECORD]["input_shape"])
    members = [algorithm]
    for path in cfg.ensemble:
        other = Trained(path, "cpu", cfg.trust, transductive=True)
        if other.input_shape != own:
            raise UserError(
                f"ensemble: {path} sees images of {other.input_shape}, ckpt_path={cfg.ckpt_path} of {own}: they must "
                "be of one size"
            )
        member = other.algorithm(Classification(algorithm.kind.outputs("test"), other.outputs))
        refuse_other_ways(member)
        if algorithm.test_inner_steps and member.test_inner_steps:
            member.test_inner_steps = algorithm.test_inner_steps
        members.append(member)
    return Ensemble(members, build(cfg.views) if cfg.get("views") else None)


def _official_runs(cfg: DictConfig, known: dict[str, Any] | None, typed: Sequence[str]) -> tuple[TaskData, MetaLearner]:
    """The benchmark, at the learner's size of image (the scans' where nothing was trained), and the learner."""
    settle()
    if "image_size" not in cfg.data:
        raise UserError(f"protocol={RUNS} shows images of characters, and data={cfg.data._target_} has none")
    scanned = known is None and "data.image_size" not in typed
    data = OmniglotRuns(
        cfg.data.root,
        image_size=SIDE if scanned else cfg.data.image_size,
        train_outputs=None if known is None else known["n_out"],
    )
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    learner = learner_for(cfg, data.input_shape, data.kind)
    refuse_other_ways(learner.algorithm)
    return data, learner


def trained_on(checkpoint: dict[str, Any]) -> str:
    """The name of the data set; of a checkpoint that does not tell, that of what reads it."""
    known = checkpoint[checkpoints.RECORD]
    if "data" in known:
        return known["data"]
    data = known["config"]["data"]
    return data.get("source", data)["_target_"].rsplit(".", 1)[-1].removeprefix("load_")
