"""A checkpoint of somebody else names what is to be built from it: nothing but ours is, unless the user agrees."""

import pkgutil
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fewshot.errors import UserError

_OURS = ("fewshot.", "torch.optim.")
_TARGET = "_target_"
# Other keys, the environment and Hydra's own facts; what else can be asked for could make a target of text.
_PLAIN = re.compile(r"\$\{(?:[\w.]+|oc\.env:\w+(?:,[^${}]*)?|hydra:[\w.]+)\}")


def refuse_foreign_code(config: Any, overrides: Sequence[str], path: str, trust: Sequence[str]) -> None:
    """Checks all that the configuration in a checkpoint could make Hydra import and call.

    Args:
        config: the configuration of its run, not resolved.
        overrides: what its run was started with.
        path: of the checkpoint, for the message.
        trust: modules, or parts of them, that the user has agreed to by name.

    Raises:
        UserError: it names something else.
    """
    named = [*_named(config), *(name for override in overrides for name in _of_override(override))]
    for name in named:
        if not (_ours(name) or any(name == given or name.startswith(f"{given}.") for given in trust)):
            module = name.split(".")[0]
            raise UserError(
                f"ckpt_path={path} would run {name}, which is no part of fewshot: if you know where this checkpoint "
                f"comes from, trust=[{module}]"
            )


def _named(tree: Any) -> Iterator[str]:
    """What every target names, and every text that could become one."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == _TARGET:
                yield str(value)
            else:
                yield from _named(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _named(value)
    elif isinstance(tree, str) and not _harmless(tree):
        yield tree


def _of_override(override: str) -> Iterator[str]:
    """What an override that sets one target sets it to; any other that could set one, whole: nobody agreed to that."""
    key, _, value = override.partition("=")
    if key.endswith(f".{_TARGET}") and _TARGET not in value:
        yield value.strip("'\"")
    elif _TARGET in override or "${" in key or not _harmless(value) or ("${" in value and "{" in _PLAIN.sub("", value)):
        yield override


def _harmless(text: str) -> bool:
    return "${" not in _PLAIN.sub("", text)


def _ours(name: str) -> bool:
    """A class that configurations are made of, or a reader of images; by where it is defined, since a module's
    attributes are also what it has imported."""
    if not name.startswith(_OURS) or not name.replace(".", "").isidentifier():
        return False
    try:
        found = pkgutil.resolve_name(name)
    except Exception:  # there is no such thing: not to be run, and told when it is built
        return True
    if not str(getattr(found, "__module__", "")).startswith(_OURS):
        return False
    return issubclass(found, _parts()) if isinstance(found, type) else _reads_images(found)


def _parts() -> tuple[type, ...]:
    from torch import nn
    from torch.optim import Optimizer

    from fewshot.augment import Augmentation
    from fewshot.data.task_data import TaskData
    from fewshot.inner_optimizers import InnerOptimizer

    return (nn.Module, Optimizer, Augmentation, TaskData, InnerOptimizer)


def _reads_images(found: Any) -> bool:
    from fewshot.data.images import ImageSet

    return getattr(found, "__annotations__", {}).get("return") is ImageSet
