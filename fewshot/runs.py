"""A run from its configuration to its record: train, evaluate, and what they leave in the run folder."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from fewshot import checkpoints
from fewshot.build import build, build_learner, build_loggers, build_trainer
from fewshot.data.datamodule import EpisodeData
from fewshot.errors import UserError
from fewshot.evaluation import write_json
from fewshot.outer import MetaLearner
from fewshot.protocols import follow
from fewshot.run_folder import clear_up, refuse_full_disk, tested
from fewshot.run_record import RunRecord, train_seconds
from fewshot.scored import choice, together, trained_on, what_is_scored
from fewshot.strategy import processes_of_a_job
from fewshot.testing import Tested, run, say, score


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
            cfg = checkpoints.restore(cfg, checkpoint, _overrides())
        if checkpoint is not None and _trained(checkpoint, cfg, again=typed == checkpoints.LAST):
            value = checkpoints.best_value(checkpoint, cfg.optimized_metric)
            if not cfg.test or tested(folder, checkpoint["global_step"]):
                say(f"finished before: {folder}")
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
    overrides = _overrides()
    algo, chosen = (HydraConfig.get().runtime.choices[group] for group in ("algo", "data"))
    known = checkpoints.record(cfg, overrides, algo, chosen, data.input_shape, data.kind.outputs("train"))
    record = RunRecord(known, train_seconds(checkpoint))
    loggers = build_loggers(cfg, 0 if checkpoint is None else checkpoint["global_step"])
    trainer = build_trainer(cfg, loggers, [*(build(node) for node in cfg.callbacks.values()), record])
    data.refuse_uneven_shares(trainer.world_size)
    if isinstance(data, EpisodeData) and trainer.is_global_zero:
        write_json(folder / "classes.json", {"split": cfg.data.split} | data.class_lists())
    data.sealed = True
    run(trainer.fit, learner, datamodule=data, ckpt_path=path, weights_only=True)
    data.sealed = False
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    if cfg.test:
        scored = best.best_model_path
        checkpoints.load_weights(learner, checkpoints.read(scored), scored)
        origin = Tested(algo, chosen, scored, chosen, trainer.global_step, record.seconds)
        score(cfg, folder, trainer, learner, data=data, origin=origin)
    return float(best.best_model_score)  # type: ignore[arg-type]


def _finish(cfg: DictConfig, folder: Path, checkpoint: dict[str, Any], path: str) -> None:
    """Tests what was trained before."""
    data, learner = build_learner(cfg)
    best = str(Path(path).with_name("best.ckpt"))
    checkpoints.load_weights(learner, checkpoints.read(best), best)
    trainer = build_trainer(cfg, build_loggers(cfg, checkpoint["global_step"]), [build(cfg.callbacks.progress)])
    learned = trained_on(checkpoint)
    algo = choice("algo", checkpoint, [])
    origin = Tested(algo, learned, best, learned, checkpoint["global_step"], train_seconds(checkpoint))
    score(cfg, folder, trainer, learner, data=data, origin=origin)


@processes_of_a_job()
def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Scores a checkpoint, or an algorithm that needs none, on the test tasks.

    Returns:
        The record; in all but the first of several processes an empty one.
    """
    folder, status = Path(HydraConfig.get().runtime.output_dir), 1
    try:
        checkpoint = checkpoints.read(cfg.ckpt_path) if cfg.ckpt_path else None
        typed = checkpoints.typed_keys(_overrides(), checkpoint)
        if checkpoint is not None:
            cfg = checkpoints.restore(cfg, checkpoint, _overrides())
        cfg = follow(cfg, typed)
        if cfg.labels and not cfg.tasks_dir:
            raise UserError(f"labels={cfg.labels} are answers to the tasks of a folder: name it with tasks_dir=DIR")
        learner, scored = what_is_scored(cfg, folder, checkpoint, typed)
        if checkpoint is not None:
            checkpoints.load_weights(learner, checkpoint, cfg.ckpt_path, leave_statistics=True)
        elif any(p.requires_grad for p in learner.parameters()):
            raise UserError(
                f"{type(learner.algorithm).__name__} is evaluated once trained: ckpt_path=RUN/checkpoints/best.ckpt"
            )
        if cfg.ensemble or cfg.get("views"):
            learner.algorithm = together(cfg, learner.algorithm)
        trainer = build_trainer(cfg, build_loggers(cfg), [build(cfg.callbacks.progress)])
        found = scored(trainer, learner)
        status = 0
        return found
    finally:
        _close_wandb(status)


def _overrides() -> list[str]:
    """As typed and recalled."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # type: ignore[return-value]


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


def _close_wandb(status: int) -> None:
    """Ends the W&B run inside the job: the next job of a sweep must not log into it, a crash must show."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=status)
