"""The test of a run: a learner's score on the test tasks, as a protocol asks for it, and its record."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from fewshot import figures
from fewshot.calibration import calibration, reliability
from fewshot.data.omniglot_runs import OmniglotRuns
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.evaluation import Scores, circumstances, interval, state_curve, summary, write_episodes, write_json
from fewshot.order_effect import order_effect
from fewshot.outer import MetaLearner
from fewshot.preemption import EXIT_CODE
from fewshot.protocols import PROTOCOLS, name_of, protocol_record
from fewshot.transduction import normalized, way_of, ways_to_test
from fewshot.wandb_record import log_test


class Tested(NamedTuple):
    """What is scored on which data set, and where it comes from."""

    algo: str  # by name
    data: str  # by name
    checkpoint: str | None
    trained_on: str | None  # the data set, by name; None: nothing was trained
    train_steps: int | None = None
    train_seconds: float | None = None


def score(
    cfg: DictConfig, folder: Path, trainer: Trainer, learner: MetaLearner, *, data: TaskData, origin: Tested
) -> dict[str, Any]:
    """Scores the learner on the test tasks; the first process writes results.json and plots/, prints the lines."""
    started = time.perf_counter()
    algorithm = learner.algorithm
    found: dict[str, Scores] = {}
    for way in ways_to_test(algorithm, cfg.get("normalization", "trained")):
        with normalized(learner, way):
            run(trainer.test, learner, datamodule=data, verbose=False)
        assert learner.evaluated is not None
        found[way] = learner.evaluated
    if not trainer.is_global_zero:
        return {}
    way, evaluated = list(found.items())[-1]
    known = _record(cfg, learner, data, evaluated, origin) | {
        "normalization": way,
        "seconds": time.perf_counter() - started,
    }
    if len(found) > 1:
        known["by_normalization"] = {name: _numbers(scores) for name, scores in found.items()}
    known["protocol"] = protocol_record(name_of(cfg), known)
    known |= reliability(algorithm, evaluated)
    if way == way_of(algorithm):
        known |= calibration(algorithm, data) | order_effect(algorithm, data)
    figures.write_plots(folder / "plots", known, data, algorithm)
    log_test(trainer.loggers, known, evaluated, folder / "plots")
    write_episodes(folder / "episodes.csv", evaluated)
    write_json(folder / "results.json", known)
    say("\n".join([*_lines(data, known), f"run: {folder}"]))
    return known


def _record(cfg: DictConfig, learner: MetaLearner, data: TaskData, evaluated: Scores, origin: Tested) -> dict[str, Any]:
    return (
        circumstances(origin.algo, learner.algorithm, cfg.seed, origin.checkpoint)
        | {"data": origin.data, "trained_on": origin.trained_on, **data.record()}
        | _numbers(evaluated)
        | {
            "loss": evaluated.losses.mean().item(),
            "episodes": len(evaluated.scores),
            "episodes_sha256": data.episodes_sha256("test"),
            "train_steps": origin.train_steps,
            "train_seconds": origin.train_seconds,
            "ensemble": list(cfg.get("ensemble", [])),
            "views": cfg.views.count if cfg.get("views") else 1,
        }
    )


def _numbers(evaluated: Scores) -> dict[str, Any]:
    mean, ci95 = interval(evaluated.scores)
    return {"mean": mean, "ci95": ci95, "after_each_inner_step": state_curve(evaluated)}


def _lines(data: TaskData, known: dict[str, Any]) -> list[str]:
    """What is printed: the number, what else the protocol asks for, and the protocol."""
    lines = [summary(data.task_name, known)]
    protocol = known["protocol"]
    for way, numbers in known.get("by_normalization", {}).items():
        lines.append(f"  {way}: {numbers['mean']:.3f} ± {numbers['ci95']:.3f}")
    if isinstance(data, OmniglotRuns):
        lines.append(f"  error {100 * (1 - known['mean']):.2f} %")
    asked = PROTOCOLS[protocol["name"]].inner_steps if protocol["name"] in PROTOCOLS else ()
    curve = known["after_each_inner_step"]
    told = len(asked) > 1 and known["inner_steps"] and curve["episodes"] == known["episodes"]
    for step in asked if told else ():
        lines.append(f"  after {step} inner steps: {curve['mean'][step]:.3f} ± {curve['ci95'][step]:.3f}")
    drawn = "omniglot" if isinstance(data, OmniglotRuns) else known["data"]
    if known["trained_on"] not in (None, drawn):
        lines.append(f"  across data sets: trained on {known['trained_on']}, tested on {known['data']}")
    if known["n_way"] is not None:
        name = protocol["name"] or "of its own"
        queries = "query" if known["q_query"] == 1 else "queries"
        lines.append(
            f"protocol {name}: {known['episodes']} tasks, {known['q_query']} {queries} a class, "
            f"sha256 {protocol['sha256'][:12]}"
        )
    return lines


def run(verb: Any, *arguments: Any, **options: Any) -> Any:
    """One of the Trainer's verbs, with its refusals told as ours."""
    try:
        return verb(*arguments, **options)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except SIGTERMException as end:  # in a test; it would end the process with code 0
        raise SystemExit(EXIT_CODE) from end


@rank_zero_only
def say(text: str) -> None:
    """Prints, in the first process."""
    print(text, flush=True)
