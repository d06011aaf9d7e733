"""A checkpoint of somebody else names what is to be built from it: nothing but ours is, unless the user agrees."""

import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

from fewshot.errors import UserError

_OURS = ("fewshot.", "torch.optim.")
_TARGET = "_target_"


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
    named = [*_targets(config), *(_value(override) for override in overrides if _TARGET in override)]
    for name in named:
        if not (_ours(name) or any(name == given or name.startswith(f"{given}.") for given in trust)):
            module = name.split(".")[0]
            raise UserError(
                f"ckpt_path={path} would run {name}, which is no part of fewshot: if you know where this checkpoint "
                f"comes from, trust=[{module}]"
            )


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == _TARGET:
                yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _targets(value)


def _value(override: str) -> str:
    """What an override that sets one target sets it to; of any other the whole, which nobody has agreed to."""
    key, _, value = override.partition("=")
    return value.strip("'\"") if key.endswith(f".{_TARGET}") and _TARGET not in value else override


def _ours(name: str) -> bool:
    """By where it is defined: a module's attributes are also what it has imported."""
    if not name.startswith(_OURS) or not name.replace(".", "").isidentifier():
        return False
    try:
        found = pkgutil.resolve_name(name)
    except Exception:  # there is no such thing: not to be run, and told when it is built
        return True
    return str(getattr(found, "__module__", "")).startswith(_OURS)
