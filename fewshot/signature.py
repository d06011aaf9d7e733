"""The signature of what is built is the schema of its configuration."""

import math
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fewshot.errors import UserError


def refuse_wrong_types(node: DictConfig) -> None:
    """The signature is the schema: a value must be of the simple type that its parameter is annotated with."""
    target = target_of(node)
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except NameError:  # a library that names types it imports only for its type checker
        return
    for key, value in node.items():
        if isinstance(value, DictConfig) and "_target_" in value:
            refuse_wrong_types(value)
            continue
        hint, name = hints.get(str(key)), node._get_full_key(key)
        if (
            _is_part(hint)
            and not isinstance(value, DictConfig)
            and not (value is None and type(None) in get_args(hint))
        ):
            raise UserError(
                f"{name}={value} must be a part with a _target_ of its own; a group is chosen as GROUP=CHOICE"
            )
        if not _fits(value, hint):
            raise UserError(f"{name}={value} must be {_words(hint)}")
        if not all(math.isfinite(each) for each in _numbers(value)):
            raise UserError(f"{name}={value} must be finite")


def target_of(node: DictConfig) -> Any:
    """The class or function that a node names."""
    key = node._get_full_key("_target_")
    if OmegaConf.is_missing(node, "_target_"):
        raise UserError(f"{key}=FILE.NAME: say what to build")
    try:
        return get_object(node._target_)
    except Exception as error:  # whatever comes to a user's own file when it is imported
        first = str(error).strip().splitlines()[-1:]
        raise UserError(
            f"{key}={node._target_} cannot be imported ({first[0] if first else error!r}): "
            "is the file beside train.py, or on PYTHONPATH?"
        ) from error


def _is_part(hint: Any) -> bool:
    """Whether a value is built from a node of the configuration: one of our classes, or something to be called."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(
        get_origin(kind) is Callable or (isinstance(kind, type) and kind.__module__.startswith("fewshot."))
        for kind in kinds
    )


def _numbers(value: Any) -> list[float]:
    return [each for each in (value if isinstance(value, ListConfig) else [value]) if isinstance(each, float)]


_SIMPLE = (bool, int, float, str, type(None))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a simple type, or a list of one, or one of several; what is of no simple type fits."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) in (list, tuple, Sequence):
        kinds = get_args(hint)
        fixed = get_origin(hint) is tuple and Ellipsis not in kinds
        right = isinstance(value, ListConfig) and (not fixed or len(value) == len(kinds))
        return right and all(_fits(item, kinds[0]) for item in value)
    allowed = get_args(hint) or (hint,)
    if get_origin(hint) is Literal or not all(kind in _SIMPLE for kind in allowed):
        return True
    accepted = (*allowed, int) if float in allowed else allowed
    return isinstance(value, accepted) and not (isinstance(value, bool) and bool not in allowed)


def _words(hint: Any) -> str:
    if get_origin(hint) in (list, tuple, Sequence):
        kinds = [kind for kind in get_args(hint) if kind is not Ellipsis]
        return f"a list of {f'{len(kinds)} ' if len(kinds) > 1 else ''}{kinds[0].__name__}"
    if get_args(hint):
        return " or ".join(map(_words, get_args(hint)))
    return "null" if hint is type(None) else hint.__name__
