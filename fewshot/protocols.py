"""How learners are tested, by name: what a number must have in common with another to be compared with it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from fewshot.errors import UserError

NORMALIZATIONS = ("trained", "transductive", "inductive", "both")
RUNS = "omniglot_20runs"


class Protocol(NamedTuple):
    """What is fixed about a test; ways and shots are the run's, classes those of its split."""

    source: str
    episodes: int
    q_query: int | None  # queries of each class; None: as many as shots
    inner_steps: tuple[int, ...] = ()  # after how many a score is told, the last is how many are taken; (): the run's
    quarter_turns: bool = False  # test classes are quarter-turns of characters
    normalization: str = "trained"  # as `RunningStatistics` and `engine.predict_one_by_one` say

    def keys(self, cfg: DictConfig) -> dict[str, Any]:
        """The keys of a configuration that it fixes."""
        fixed: dict[str, Any] = {"episodes": self.episodes, "data.test_episodes": self.episodes}
        fixed |= {"normalization": self.normalization, "data.within_alphabet": False}
        if OmegaConf.select(cfg, "data.n_way") is None:
            raise UserError(f"protocol={cfg.get('protocol')} is about classes, and data={cfg.data._target_} has none")
        fixed["data.eval_q_query"] = cfg.data.k_shot if self.q_query is None else self.q_query
        fixed["data.quarter_turns"] = self.quarter_turns
        if self.inner_steps and "eval_inner_steps" in cfg.algo:
            fixed["algo.test_inner_steps"] = self.inner_steps[-1]
        if len(self.inner_steps) > 1:
            fixed["outer.curve_episodes"] = self.episodes
        return fixed


PROTOCOLS = {
    "standard": Protocol(
        "J. Snell, K. Swersky, R. Zemel: Prototypical Networks, 2017 (authors' code), on classes as they are", 1000, 15
    ),
    "maml": Protocol(
        "C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning, 2017, and the authors' code", 600, None, (3, 10)
    ),
    "protonet": Protocol(
        "J. Snell, K. Swersky, R. Zemel: Prototypical Networks, 2017, authors' code", 1000, 15, quarter_turns=True
    ),
    "reptile": Protocol(
        "A. Nichol, J. Achiam, J. Schulman: On First-Order Meta-Learning Algorithms, 2018, and the authors' code",
        10_000,
        1,
        (50,),
        normalization="both",
    ),
    "hw15": Protocol("H.-Y. Lee: Machine Learning, spring 2022, homework 15", 640, 1, (10,)),
}


def follow(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The configuration with what `cfg.protocol` fixes.

    Args:
        cfg: the checkpoint's, with what was typed on top.
        typed: keys that were typed now.

    Raises:
        UserError: no such protocol; a key that it fixes was typed with another value.
    """
    if cfg.normalization not in NORMALIZATIONS:
        raise UserError(f"normalization={cfg.normalization} is not one of {', '.join(NORMALIZATIONS)}")
    if cfg.protocol == RUNS:
        _refuse_conflicts(cfg, {"episodes": 20, "data.n_way": 20, "data.k_shot": 1, "data.eval_q_query": 1}, typed)
    if cfg.protocol is None or cfg.protocol == RUNS:
        return cfg
    if cfg.protocol not in PROTOCOLS:
        raise UserError(f"protocol={cfg.protocol} is not one of {', '.join([*PROTOCOLS, RUNS])}")
    fixed = PROTOCOLS[cfg.protocol].keys(cfg)
    _refuse_conflicts(cfg, fixed, typed)
    followed = cfg.copy()
    OmegaConf.set_struct(followed, False)
    for key, value in fixed.items():
        OmegaConf.update(followed, key, value)
    OmegaConf.set_struct(followed, True)
    return followed


def _refuse_conflicts(cfg: DictConfig, fixed: dict[str, Any], typed: Sequence[str]) -> None:
    if "algo.test_inner_steps" in fixed:
        fixed = fixed | {"algo.eval_inner_steps": fixed["algo.test_inner_steps"]}
    for key, value in fixed.items():
        if key in typed and OmegaConf.select(cfg, key) != value:
            raise UserError(
                f"protocol={cfg.protocol} is {key}={value}, and you type {key}={OmegaConf.select(cfg, key)}: leave "
                "one of them out"
            )


def name_of(cfg: DictConfig) -> str | None:
    """The protocol that a configuration follows, typed or not; None: one of its own."""
    if cfg.get("protocol") is not None:
        return cfg.protocol
    if OmegaConf.select(cfg, "data.n_way") is None:
        return None
    for name, protocol in PROTOCOLS.items():
        if all(_value(cfg, key) == value for key, value in protocol.keys(cfg).items() if key != "outer.curve_episodes"):
            return name
    return None


def _value(cfg: DictConfig, key: str) -> Any:
    if key == "algo.test_inner_steps" and cfg.algo.get("test_inner_steps") is None:
        return cfg.algo.eval_inner_steps
    defaults = {"normalization": "trained", "data.within_alphabet": False, "data.quarter_turns": False}
    found = OmegaConf.select(cfg, key)
    return defaults.get(key) if found is None else found  # a run's configuration may be older than the key


def protocol_record(name: str | None, known: dict[str, Any]) -> dict[str, Any]:
    """The protocol as a part of a result: its name, what it fixed, and the sha256 of that.

    Args:
        known: what results.json says of tasks and circumstances.
    """
    # Not the inner steps, which are the learner's, unless the protocol says how many.
    parts = ("split", "n_way", "k_shot", "q_query", "quarter_turns", "within_alphabet", "episodes")
    fixed = {key: known[key] for key in (*parts, "normalization", "episodes_sha256") if key in known}
    if name in PROTOCOLS and PROTOCOLS[name].inner_steps:
        fixed["inner_steps"] = known["inner_steps"]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    return {"name": name, "source": PROTOCOLS[name].source if name in PROTOCOLS else None, **fixed, "sha256": digest}
