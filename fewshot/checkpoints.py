"""What a checkpoint holds besides weights, the run's own configuration, and how it is taken up again."""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fewshot.errors import UserError
from fewshot.trust import refuse_foreign_code

RECORD = "fewshot"  # key in the checkpoint
SECTIONS = ("seed", "algo", "aug", "data", "model", "outer")  # what makes the learner; the rest is circumstance
_OF_A_SWEEP = (*SECTIONS, "episodes", "optimized_metric", "trainer")  # what a job that is done must share with another
LAST = "last"  # as ckpt_path: from where this folder's run stands
_WHERE = (
    "trainer",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
)  # it was trained
_NOT_RECALLED = ("ckpt_path", "trust", "sweep", "logger", "hydra", "task_name", "test")


def record(
    cfg: DictConfig, overrides: Sequence[str], algo: str, data: str, input_shape: Sequence[int], n_out: int
) -> dict[str, Any]:
    """What a run writes into its checkpoints: plain containers, so that `weights_only=True` reads them.

    Args:
        overrides: as typed.
        algo, data: the choices of these groups.
        input_shape, n_out: what the model sees, and how many outputs it has.
    """
    seen = {"algo": algo, "data": data, "input_shape": list(input_shape), "n_out": n_out}
    return {"config": OmegaConf.to_container(cfg, resolve=False), "overrides": list(overrides), **seen}


def read(path: str) -> dict[str, Any]:
    """Reads a checkpoint of this project; runs no code that it may contain."""
    import torch

    if Path(path).is_dir():
        raise UserError(f"ckpt_path={path} is a folder: name a file, as RUN/checkpoints/best.ckpt")
    if not Path(path).is_file():
        raise UserError(f"ckpt_path={path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, and advises to run what the file holds
        code = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        why = "it holds code, which is never run" if code else "it is not whole, or none of train.py's"
        raise UserError(f"ckpt_path={path} is damaged or no checkpoint: {why}") from error
    record = checkpoint.get(RECORD) if isinstance(checkpoint, dict) else None
    if not (isinstance(record, dict) and isinstance(record.get("config"), dict) and _weights(checkpoint)):
        raise UserError(f"ckpt_path={path} is a file of torch, but no checkpoint written by train.py")
    return checkpoint


def _weights(checkpoint: dict[str, Any]) -> bool:
    from torch import Tensor

    weights = checkpoint.get("state_dict")
    return isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())


def refuse_other_optimizer(learner: Any, checkpoint: dict[str, Any], path: str) -> None:
    """Its state is taken up by names of its own."""
    there = checkpoint["optimizer_states"][0]["param_groups"][0].keys() - {"initial_lr"}
    here = learner.optimizer(learner.parameters()).param_groups[0].keys()
    if differing := sorted(there ^ here):
        raise UserError(
            f"ckpt_path={path} was trained by another outer.optimizer ({differing[0]} is of one of them): keep it "
            "as it was"
        )


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def standing(ckpt_path: str | None, folder: Path) -> str | None:
    """The checkpoint to go on from; for `ckpt_path=last` the latest whole one of the run's own folder, if any."""
    if ckpt_path != LAST:
        return ckpt_path
    last = folder / "checkpoints" / "last.ckpt"
    found = [path for path in (last, previous(last)) if path.exists()]
    for path in [*found, last]:  # once more: another process may just have put the one before in its place
        if zipfile.is_zipfile(path):  # what torch writes; its table of contents comes last
            return str(path.replace(last))  # over one that is damaged and would be kept as the one before
    if found:
        raise UserError(f"ckpt_path=last: {' and '.join(map(str, found))} cannot be read; remove them to start anew")
    return None


def best_value(checkpoint: dict[str, Any], monitor: str) -> float:
    """The best value of `monitor` up to a checkpoint, as its run had kept it."""
    states = [state for state in checkpoint["callbacks"].values() if state.get("monitor") == monitor]
    if not states:
        raise UserError(f"optimized_metric={monitor} is not what the run of this checkpoint was judged by")
    return float(states[0]["best_model_score"])


def load_weights(module: Any, checkpoint: dict[str, Any], path: str, *, leave_statistics: bool = False) -> None:
    """Puts a checkpoint's weights into a module that must fit them exactly.

    Args:
        leave_statistics: running statistics stay in the checkpoint where the module goes by the batch.
    """
    from fewshot.models.running_statistics import RunningStatistics

    theirs, ours = checkpoint["state_dict"], module.state_dict()
    if leave_statistics:
        by_batch = [
            f"{n}." for n, part in module.named_modules() if isinstance(part, RunningStatistics) and not len(part)
        ]
        theirs = {name: value for name, value in theirs.items() if not name.startswith(tuple(by_batch))}
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = (tuple(s[name].shape) if name in s else "missing" for s in (theirs, ours))
        if there != here:
            raise UserError(
                f"ckpt_path={path} does not fit this model: {name} is {there} in the checkpoint and {here} here; "
                "keep model, algo, data.n_way, data.train_k_shot and data.image_size as they were trained"
            )
    module.load_state_dict(theirs)


def recall(arguments: list[str], *, resume: bool) -> list[str]:
    """Puts the overrides that a checkpoint's run was started with before those typed now.

    So Hydra composes that run's groups, knows their keys, and later arguments win.

    Args:
        arguments: the command line without the program's name.
        resume: train.py goes on in the run's own folder; evaluate.py makes one of its own.
    """
    path = next((a.removeprefix("ckpt_path=") for a in arguments if a.startswith("ckpt_path=")), "null")
    if path == LAST:
        run = next((a.removeprefix("hydra.run.dir=") for a in arguments if a.startswith("hydra.run.dir=")), None)
        path = (run and standing(LAST, Path(run.strip("'\"")))) or "null"
    if path == "null" or "," in path:  # several checkpoints: each job takes its own up, without new keys
        return arguments
    checkpoint = read(path)
    given = next((a.removeprefix("trust=") for a in arguments if a.startswith("trust=")), "")
    refuse_untrusted(checkpoint, path, [name.strip() for name in given.strip("'\"[]").split(",")])
    recalled = [override for override in _recalled(checkpoint) if override not in arguments]
    if resume:
        folder = Path(path).resolve().parent
        inside = folder.name == "checkpoints" and (folder.parent / ".hydra").is_dir()
        if inside and not any(a.startswith("hydra.run.dir=") for a in arguments):
            quoted = str(folder.parent).replace("'", "\\'")
            recalled.append(f"hydra.run.dir='{quoted}'")
    else:
        recalled = [override for override in recalled if _key(override) not in _WHERE]
        recalled.append("task_name=evaluate")
    first = next(i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-"))  # flags may take values
    return [*arguments[:first], *recalled, *arguments[first:]]


def _recalled(checkpoint: dict[str, Any]) -> list[str]:
    return [o for o in checkpoint[RECORD]["overrides"] if _key(o).split(".")[0].split("/")[0] not in _NOT_RECALLED]


def refuse_untrusted(checkpoint: dict[str, Any], path: str, trust: Sequence[str]) -> None:
    """Refuses a checkpoint whose configuration names code that is neither ours nor trusted."""
    config = checkpoint[RECORD]["config"]
    made = {section: config[section] for section in SECTIONS if section in config}
    refuse_foreign_code(made, _recalled(checkpoint), path, trust)


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def typed_keys(overrides: Sequence[str], checkpoint: dict[str, Any] | None) -> list[str]:
    """The keys and groups that were typed now, among overrides that were recalled from a checkpoint."""
    recalled = [] if checkpoint is None else _recalled(checkpoint)
    return [_key(override) for override in overrides if override not in recalled]


def restore(cfg: DictConfig, checkpoint: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The run's own configuration, with what was typed now on top.

    The files in conf/ may have changed since the run: what it was trained with stands in the checkpoint,
    and only a key or group named on today's command line replaces it.

    Args:
        cfg: today's composition of the recalled and the typed overrides.
        overrides: both.

    Raises:
        UserError: the checkpoint names code that is not ours, and `cfg.trust` does not.
    """
    refuse_untrusted(checkpoint, cfg.ckpt_path, cfg.trust)
    typed = typed_keys(overrides, checkpoint)
    if "experiment" in typed:
        return cfg
    stored = OmegaConf.create(checkpoint[RECORD]["config"])
    restored = cfg.copy()
    OmegaConf.set_struct(restored, False)
    for section in SECTIONS:
        if section in typed:
            continue
        today = OmegaConf.to_container(cfg, resolve=False)
        restored[section] = stored[section]
        for key in (key for key in typed if key.startswith(f"{section}.")):
            OmegaConf.update(restored, key, _select(today, key))
    if "algo.eval_inner_steps" in typed and "algo.test_inner_steps" not in typed:
        restored.algo.test_inner_steps = None  # what the run set apart for testing gives way to what is typed
    OmegaConf.set_struct(restored, True)
    return restored


def refuse_other_settings(cfg: DictConfig, checkpoint: dict[str, Any], folder: Path) -> None:
    """A job of a sweep goes on only with a run of its own settings.

    Args:
        cfg: as composed for the job, before `restore`.
        folder: the job's.
    """
    stored, today = checkpoint[RECORD]["config"], OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(today, dict)
    for section in _OF_A_SWEEP:
        there, here = (dict(leaves(each.get(section), section)) for each in (stored, today))
        for key in sorted(there.keys() | here.keys()):
            if key in there and there[key] != here.get(key):  # keys that came since have their defaults
                raise UserError(
                    f"{folder} holds a run with {key}={there.get(key)}, not {here.get(key)}: choose another "
                    "hydra.sweep.dir, or go on with the sweep as it was"
                )


def leaves(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The values of a tree of dictionaries by their full keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{place}.{key}")
    else:
        yield place, tree


def _select(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if part not in tree:  # deleted with ~
            return None
        tree = tree[part]
    return tree
