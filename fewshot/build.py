"""From a configuration to objects, with every mistake in it told before anything is trained."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.base import Algorithm
from fewshot.allocation import keep_freed_memory
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.metrics_csv import MetricsCSV
from fewshot.outer import MetaLearner
from fewshot.precision import refuse_double, refuse_half, refuse_missing_bfloat16
from fewshot.signature import refuse_wrong_types, target_of
from fewshot.strategy import TaskParallel
from fewshot.tasks import Classification, TaskKind

# What Lightning says of every run of this kind, and why it does not apply.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # drawing indices costs less than a worker would
    ".*Checkpoint directory .* exists and is not empty.*",  # resumed runs go on in their folder
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # our loaders start at the step
    ".*smaller than the logging interval Trainer.*",  # logs come by outer steps, whatever is left of an epoch
    ".*You set `Trainer\\(accelerator='cpu'\\)` but.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ".*GPU available but not used.*",
)


# What Lightning's Trainer can do and a meta-update does elsewhere.
_NOT_OURS = {
    "gradient_clip_val": "outer.grad_clip is the largest norm of the meta-gradient",
    "accumulate_grad_batches": "data.meta_batch_size is the tasks of a step, algo.task_chunk those computed at once",
    "fast_dev_run": "debug=default takes a few steps",
}


def build_learner(cfg: DictConfig, stage: str | None = None) -> tuple[TaskData, MetaLearner]:
    """Data first: it knows what the model sees and is asked for, and most mistakes show there.

    Args:
        stage: "test": of the data, the test tasks alone must be possible.
    """
    settle()
    data = build(cfg.data)  # refuses a seed that is none
    data.setup(stage)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    learner = learner_for(cfg, data.input_shape, data.kind)
    _refuse_other_labels(learner.algorithm, data)
    refuse_other_ways(learner.algorithm)
    _refuse_other_metric(cfg, data.kind)
    return data, learner


def settle() -> None:
    """What every run of this process shares: quiet libraries, and memory that is kept."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what cannot be imported is told in one line
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    keep_freed_memory()


def learner_for(cfg: DictConfig, input_shape: Sequence[int], kind: TaskKind) -> MetaLearner:
    """The learner for inputs of this shape and tasks of this kind; needs no data."""
    target = target_of(cfg.algo)
    if not (isinstance(target, type) and issubclass(target, Algorithm)):
        raise UserError(f"algo._target_={cfg.algo._target_} is no subclass of fewshot.algorithms.base.Algorithm")
    if target.needs_classes and not isinstance(kind, Classification):
        raise UserError(f"{target.__name__} is for classification: it cannot lower the {kind.metric}")
    model = build(cfg.model, input_shape=tuple(input_shape), n_out=kind.outputs("train"))
    algorithm: Algorithm = build(cfg.algo, model=model, kind=kind)
    outer = target_of(cfg.outer)
    if not (isinstance(outer, type) and issubclass(outer, MetaLearner)):
        raise UserError(f"outer._target_={cfg.outer._target_} is no subclass of fewshot.outer.MetaLearner")
    return build(cfg.outer, algorithm=algorithm)


def _refuse_other_labels(algorithm: Algorithm, data: TaskData) -> None:
    """A classifier of fixed classes needs fixed labels; all others must not see them."""
    name, wanted = type(algorithm).__name__, str(algorithm.fixed_labels).lower()
    if algorithm.fixed_labels != data.fixed_labels:
        raise UserError(f"data.fixed_labels={str(data.fixed_labels).lower()}, but {name} needs {wanted}")


def refuse_other_ways(algorithm: Algorithm) -> None:
    """A head that is trained has as many outputs in testing."""
    train, test = (algorithm.kind.outputs(stage) for stage in ("train", "test"))
    if not algorithm.can_answer(test):
        raise UserError(
            f"data.train_n_way={train}, but {type(algorithm).__name__} learns one head for training and testing: "
            f"set data.train_n_way={test}, as data.n_way"
        )


def _refuse_other_metric(cfg: DictConfig, kind: TaskKind) -> None:
    """The best checkpoint must be best by something that is logged, and in the right direction."""
    modes = {"val/loss": "min", f"val/{kind.short}": "max" if kind.higher_is_better else "min"}
    metric, best = cfg.optimized_metric, cfg.callbacks.get("best")
    if metric not in modes:
        raise UserError(f"optimized_metric={metric} is not logged here: one of {', '.join(modes)}")
    if best is None:
        raise UserError("callbacks.best writes the checkpoint that is tested: leave it in")
    if best.monitor != metric or best.save_top_k != 1:
        raise UserError(
            f"callbacks.best.monitor={best.monitor} with callbacks.best.save_top_k={best.save_top_k}, but what is "
            f"tested is the one checkpoint that is best by optimized_metric={metric}"
        )
    if best.mode != modes[metric]:
        raise UserError(
            f"callbacks.best.mode={best.mode}, but of {metric} the best is the {modes[metric]}imum: set it to "
            f"{modes[metric]}"
        )


def build(node: DictConfig, **given: Any) -> Any:
    """`instantiate`, with values checked against the constructor's types and its refusals told as written."""
    refuse_wrong_types(node)
    try:
        return instantiate(node, **given)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError | MisconfigurationException | TypeError | ValueError | ImportError):
            place = "" if isinstance(error.__cause__, UserError) else f"{node._get_full_key('')}: "
            raise UserError(f"{place}{error.__cause__}") from error
        raise


def build_loggers(cfg: DictConfig, step: int | None = None) -> list[Logger]:
    """The loggers, told the whole configuration at once.

    Args:
        step: where training starts: what a run in this folder has logged after it will be logged again; None: no
            training.
    """
    loggers = [build(node, **_same_wandb_run(node)) for node in cfg.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        if isinstance(logger, MetricsCSV) and step is not None:
            logger.resume(step)
    return loggers


def _same_wandb_run(node: DictConfig) -> dict[str, Any]:
    """Goes on with the W&B run whose files lie in the run's folder, if there is one: their names end with its id."""
    if target_of(node) is not WandbLogger or node.get("id") is not None:
        return {}
    earlier = sorted(Path(node.save_dir).glob("wandb/*run-*-*"))
    return {"id": earlier[-1].name.rsplit("-", 1)[1], "resume": "allow"} if earlier else {}


def build_trainer(cfg: DictConfig, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    """The Trainer, for what it can do with learners that differentiate their own inner loop."""
    refuse_half(cfg.trainer.precision)
    refuse_double(cfg.trainer.precision)
    refuse_wrong_types(cfg.trainer)
    for key in ("max_steps", "log_every_n_steps"):
        if cfg.trainer[key] is None or cfg.trainer[key] < 1:
            raise UserError(f"trainer.{key}={cfg.trainer[key]} must be at least 1")
    for key, instead in _NOT_OURS.items():
        if cfg.trainer.get(key):
            raise UserError(f"trainer.{key}={cfg.trainer[key]} has no effect or a wrong one here: {instead}")
    trainer: Trainer = build(cfg.trainer, logger=loggers, callbacks=callbacks)
    _refuse_other_strategy(cfg, trainer)
    refuse_missing_bfloat16(cfg.trainer.precision, trainer.strategy.root_device.type)
    return trainer


def _refuse_other_strategy(cfg: DictConfig, trainer: Trainer) -> None:
    """Lightning's own strategies reduce gradients while one backward pass goes on; an outer step has many."""
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | TaskParallel):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}, trainer.strategy={cfg.trainer.get('strategy', 'auto')}: several "
            "devices share the tasks of a meta-batch by trainer=ddp trainer.devices=N"
        )
    by_hand = isinstance(strategy, TaskParallel) and not strategy.cluster_environment.creates_processes_externally  # type: ignore[union-attr]
    if by_hand and trainer.num_nodes > 1 and not _folder_is_named():
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}, started by hand: give every node the same hydra.run.dir=DIR, "
            "or start them with torchrun or srun"
        )


def _folder_is_named() -> bool:
    return any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
