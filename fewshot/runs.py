"""A run from its configuration to its record: train, evaluate, and what they leave in the run folder."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from fewshot import checkpoints, figures
from fewshot.answers import answer
from fewshot.build import build, build_learner, build_loggers, build_trainer, learner_for, refuse_other_ways, settle
from fewshot.calibration import calibration
from fewshot.data.datamodule import EpisodeData
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.evaluation import circumstances, interval, state_curve, summary, write_episodes, write_json
from fewshot.order_effect import order_effect
from fewshot.outer import MetaLearner
from fewshot.preemption import EXIT_CODE
from fewshot.run_folder import clear_up, refuse_full_disk, tested
from fewshot.run_record import RunRecord, train_seconds
from fewshot.strategy import processes_of_a_job
from fewshot.tasks import Classification
from fewshot.wandb_record import log_test


@processes_of_a_job()
def train(cfg: DictConfig) -> float:
    """Meta-trains, scores the best checkpoint on the test tasks, writes the run folder.

    What `ckpt_path=last` finds finished in the folder is not done again.

    Returns:
        The best validation value, for a sweeper; never a test value.
    """
    folder, status = Path(HydraConfig.get().runtime.output_dir), 1
    try:
        if not isinstance(cfg.test, bool):
            raise UserError(f"test={cfg.test} must be bool")
        typed = cfg.ckpt_path
        path = checkpoints.standing(typed, folder)
        checkpoint = checkpoints.read(path) if path else None
        if checkpoint is not None and HydraConfig.get().mode == RunMode.MULTIRUN and typed == checkpoints.LAST:
            checkpoints.refuse_other_settings(cfg, checkpoint, folder)
        elif checkpoint is not None:
            cfg = checkpoints.restore(cfg, checkpoint, list(HydraConfig.get().overrides.task))
        if checkpoint is not None and _trained(checkpoint, cfg, again=typed == checkpoints.LAST):
            value = checkpoints.best_value(checkpoint, cfg.optimized_metric)
            if not cfg.test or tested(folder, checkpoint["global_step"]):
                _say(f"finished before: {folder}")
            else:
                _finish(cfg, folder, checkpoint, str(path))
        else:
            value = _fit(cfg, folder, checkpoint, path)
        status = 0
        return value
    finally:
        _close_wandb(status)


def _fit(cfg: DictConfig, folder: Path, checkpoint: dict[str, Any] | None, path: str | None) -> float:
    """Trains, from a checkpoint if there is one, and tests; returns the best validation value."""
    data, learner = build_learner(cfg)
    _refuse_untrainable(learner)
    refuse_full_disk(folder, learner)
    clear_up(folder)
    if checkpoint is not None:
        checkpoints.load_weights(learner, checkpoint, str(path))
        checkpoints.refuse_other_optimizer(learner, checkpoint, str(path))
    overrides = list(HydraConfig.get().overrides.task)
    known = checkpoints.record(cfg, overrides, data.input_shape, data.kind.outputs("train"))
    record = RunRecord(known, train_seconds(checkpoint))
    loggers = build_loggers(cfg, 0 if checkpoint is None else checkpoint["global_step"])
    trainer = build_trainer(cfg, loggers, [*(build(node) for node in cfg.callbacks.values()), record])
    data.refuse_uneven_shares(trainer.world_size)
    if isinstance(data, EpisodeData) and trainer.is_global_zero:
        write_json(folder / "classes.json", {"split": cfg.data.split} | data.class_lists())
    _run(trainer.fit, learner, datamodule=data, ckpt_path=path, weights_only=True)
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    if cfg.test:
        scored = best.best_model_path
        checkpoints.load_weights(learner, checkpoints.read(scored), scored)
        done = {"train_steps": trainer.global_step, "train_seconds": record.seconds}
        _test(cfg, folder, trainer, learner, data=data, checkpoint=scored, training=done)
    return float(best.best_model_score)  # type: ignore[arg-type]


def _finish(cfg: DictConfig, folder: Path, checkpoint: dict[str, Any], path: str) -> None:
    """Tests what was trained before."""
    data, learner = build_learner(cfg)
    best = str(Path(path).with_name("best.ckpt"))
    checkpoints.load_weights(learner, checkpoints.read(best), best)
    trainer = build_trainer(cfg, build_loggers(cfg, checkpoint["global_step"]), [build(cfg.callbacks.progress)])
    done = {"train_steps": checkpoint["global_step"], "train_seconds": train_seconds(checkpoint)}
    _test(cfg, folder, trainer, learner, data=data, checkpoint=best, training=done)


@processes_of_a_job()
def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Scores a checkpoint, or an algorithm that needs none, on the test tasks.

    Returns:
        The record; in all but the first of several processes an empty one.
    """
    folder, status = Path(HydraConfig.get().runtime.output_dir), 1
    try:
        if cfg.ckpt_path:
            checkpoint = checkpoints.read(cfg.ckpt_path)
            cfg = checkpoints.restore(cfg, checkpoint, list(HydraConfig.get().overrides.task))
        if cfg.labels and not cfg.tasks_dir:
            raise UserError(f"labels={cfg.labels} are answers to the tasks of a folder: name it with tasks_dir=DIR")
        if cfg.tasks_dir:  # needs no data set: the checkpoint knows what images its model sees
            settle()
            if "n_way" not in cfg.data:
                raise UserError(f"tasks_dir={cfg.tasks_dir} holds images of classes: data={cfg.data._target_} has none")
            known = {"input_shape": (1, cfg.data.image_size, cfg.data.image_size), "n_out": cfg.data.n_way}
            if cfg.ckpt_path:
                known = {key: checkpoint[checkpoints.RECORD][key] for key in known}
            learner = learner_for(cfg, known["input_shape"], Classification(cfg.data.n_way, known["n_out"]))
            refuse_other_ways(learner.algorithm)
            score = partial(answer, cfg, folder, input_shape=known["input_shape"])
        else:
            data, learner = build_learner(cfg)
            score = partial(_test, cfg, folder, data=data, checkpoint=cfg.ckpt_path)
        if cfg.ckpt_path:
            checkpoints.load_weights(learner, checkpoint, cfg.ckpt_path, leave_statistics=True)
        elif any(p.requires_grad for p in learner.parameters()):
            raise UserError(
                f"{type(learner.algorithm).__name__} is evaluated once trained: ckpt_path=RUN/checkpoints/best.ckpt"
            )
        trainer = build_trainer(cfg, build_loggers(cfg), [build(cfg.callbacks.progress)])
        found = score(trainer, learner)
        status = 0
        return found
    finally:
        _close_wandb(status)


def _run(verb: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return verb(*arguments, **options)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except SIGTERMException as end:  # in a test; it would end the process with code 0
        raise SystemExit(EXIT_CODE) from end


def _refuse_untrainable(learner: MetaLearner) -> None:
    if not any(p.requires_grad for p in learner.parameters()):
        name = type(learner.algorithm).__name__.lower()
        raise UserError(f"algo={name} has nothing to train: score it with python evaluate.py algo={name}")


def _trained(checkpoint: dict[str, Any], cfg: DictConfig, again: bool) -> bool:
    """Whether nothing is left to train; a mistake of whoever asks for it by name."""
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} holds weights alone: it can be scored by evaluate.py, not trained on"
        )
    if checkpoint["global_step"] < cfg.trainer.max_steps:
        return False
    if again:
        return True
    raise UserError(
        f"ckpt_path={cfg.ckpt_path} stands at step {checkpoint['global_step']} of trainer.max_steps="
        f"{cfg.trainer.max_steps}: nothing is left to train; raise trainer.max_steps, or use evaluate.py"
    )


def _test(
    cfg: DictConfig,
    folder: Path,
    trainer: Trainer,
    learner: MetaLearner,
    *,
    data: TaskData,
    checkpoint: str | None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores the learner on the test tasks; the first process writes results.json and plots/, prints the line."""
    started = time.perf_counter()
    _run(trainer.test, learner, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return {}
    evaluated, algorithm = learner.evaluated, learner.algorithm
    assert evaluated is not None
    mean, ci95 = interval(evaluated.scores)
    algo = HydraConfig.get().runtime.choices["algo"]
    found = (
        circumstances(algo, algorithm, cfg.seed, checkpoint)
        | {
            "data": HydraConfig.get().runtime.choices["data"],
            **data.record(),
            "mean": mean,
            "ci95": ci95,
            "loss": evaluated.losses.mean().item(),
            "episodes": len(evaluated.scores),
            "episodes_sha256": data.episodes_sha256("test"),
            "after_each_inner_step": state_curve(evaluated),
            "seconds": time.perf_counter() - started,
        }
        | (training or {"train_steps": None, "train_seconds": None})
    )
    found |= calibration(algorithm, data) | order_effect(algorithm, data)
    figures.write_plots(folder / "plots", found, data, algorithm)
    log_test(trainer.loggers, found, evaluated, folder / "plots")
    write_episodes(folder / "episodes.csv", evaluated)
    write_json(folder / "results.json", found)
    _say(f"{summary(data.task_name, found)}\nrun: {folder}")
    return found


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _close_wandb(status: int) -> None:
    """Ends the W&B run inside the job: the next job of a sweep must not log into it, a crash must show."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=status)
