"""From a configuration to objects, with every mistake in it told before anything is trained."""

import logging
import warnings
from typing import Any, get_args, get_type_hints

import lightning
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.base import Algorithm
from fewshot.data.datamodule import EpisodeData
from fewshot.engine import keep_freed_memory
from fewshot.errors import UserError
from fewshot.metrics_csv import MetricsCSV
from fewshot.outer import MetaLearner
from fewshot.tasks import Classification

# What Lightning says of every run of this kind, and why it does not apply.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # drawing indices costs less than a worker would
    ".*Checkpoint directory .* exists and is not empty.*",  # resumed runs go on in their folder
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # our loaders start at the step
    ".*You set `Trainer\\(accelerator='cpu'\\)` but.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ".*GPU available but not used.*",
)


def build_learner(cfg: DictConfig) -> tuple[EpisodeData, MetaLearner]:
    """Data first: it knows how many channels and pixels the model sees, and most mistakes show there."""
    settle()
    data = build(cfg.data)  # refuses a seed that is none
    data.setup()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    learner = learner_for(cfg, data.channels)
    _refuse_other_labels(learner.algorithm, data)
    return data, learner


def settle() -> None:
    """What every run of this process shares: quiet libraries, and memory that is kept."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    keep_freed_memory()


def learner_for(cfg: DictConfig, channels: int) -> MetaLearner:
    """The learner for images of so many channels; needs no data."""
    model = build(cfg.model, in_channels=channels, image_size=cfg.data.image_size, n_out=cfg.data.n_way)
    algorithm: Algorithm = build(cfg.algo, model=model, kind=Classification())
    return build(cfg.outer, algorithm=algorithm)


def _refuse_other_labels(algorithm: Algorithm, data: EpisodeData) -> None:
    """A classifier of fixed classes needs fixed labels, as many as it has outputs; all others must not see them."""
    name, wanted = type(algorithm).__name__, str(algorithm.fixed_labels).lower()
    if algorithm.fixed_labels != data.fixed_labels:
        raise UserError(f"data.fixed_labels={str(data.fixed_labels).lower()}, but {name} needs {wanted}")
    outputs, classes = data.train_shape.n_way, len(data.classes["train"])
    if data.fixed_labels and classes != outputs:
        raise UserError(
            f"{name} trains a classifier of data.n_way={outputs} classes, but there are {classes}: "
            f"set data.num_classes={outputs}"
        )


def build(node: DictConfig, **given: Any) -> Any:
    """`instantiate`, with values checked against the constructor's types and its refusals told as written."""
    _refuse_wrong_types(node)
    try:
        return instantiate(node, **given)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError | MisconfigurationException | TypeError | ValueError | ImportError):
            raise UserError(str(error.__cause__)) from error
        raise


def _refuse_wrong_types(node: DictConfig) -> None:
    """The signature is the schema: a value must be of the simple type that its parameter is annotated with."""
    target = get_object(node._target_)
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except NameError:  # a library that names types it imports only for its type checker
        return
    for key, value in node.items():
        if isinstance(value, DictConfig) and "_target_" in value:
            _refuse_wrong_types(value)
            continue
        allowed = get_args(hints.get(str(key))) or (hints.get(str(key)),)
        if not all(kind in (bool, int, float, str, type(None)) for kind in allowed):
            continue
        accepted = (*allowed, int) if float in allowed else allowed
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise UserError(f"{node._get_full_key(key)}={value} must be {names}")


def build_loggers(cfg: DictConfig, step: int) -> list[Logger]:
    """The loggers of a run that starts at outer step `step`, told the whole configuration at once."""
    loggers = [build(node) for node in cfg.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        if isinstance(logger, MetricsCSV) and step:
            logger.resume(step)
    return loggers


def build_trainer(cfg: DictConfig, loggers: list[Logger], callbacks: list[Callback]) -> Trainer:
    """The Trainer, for what it can do with learners that differentiate their own inner loop."""
    if cfg.trainer.devices != 1:
        raise UserError(f"trainer.devices={cfg.trainer.devices}: a run uses one device; set trainer.devices=1")
    if cfg.trainer.precision == "16-mixed":
        raise UserError(
            "trainer.precision=16-mixed: inner gradients are not scaled and underflow in half precision; "
            "use 32-true or bf16-mixed"
        )
    if cfg.trainer.max_steps < 1:
        raise UserError(f"trainer.max_steps={cfg.trainer.max_steps} must be at least 1")
    return build(cfg.trainer, logger=loggers, callbacks=callbacks)
