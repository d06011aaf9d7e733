"""What several runs say together: Hydra calls these when a sweep has ended.

They stand in a sweep's own file (`hydra.callbacks`), read the folders that its runs left, and write their
tables, figures and results.json beside them.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fewshot import checkpoints
from fewshot.errors import UserError
from fewshot.evaluation import git_commit, interval, seed_interval, versions, write_json
from fewshot.figures import Line, write_study
from fewshot.jobs import FAILED


class Run(NamedTuple):
    """One finished run of a sweep."""

    folder: Path
    config: DictConfig
    experiment: str | None
    validation: list[dict[str, float]]  # the rows of metrics.csv with a validation


class Baselines(Callback):
    """A row per experiment, its score over the seeds beside its threshold; their validation on one axis.

    Writes table.md, outer_steps.png, .svg and .csv, and results.json.

    Args:
        thresholds: experiment -> the accuracy that it has to pass, a fraction.
    """

    def __init__(self, thresholds: dict[str, float]) -> None:
        self.thresholds = dict(thresholds)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra."""
        folder = Path(config.hydra.sweep.dir)
        by_experiment: dict[str, list[Run]] = defaultdict(list)
        for run in _runs(folder):
            by_experiment[str(run.experiment)].append(run)
        rows = {name: self._row(name, runs) for name, runs in by_experiment.items()}
        lines = [_validation_line(name, runs) for name, runs in by_experiment.items()]
        table = _table(rows)
        (folder / "table.md").write_text(table, encoding="utf-8")
        pictures = write_study(
            folder,
            "outer_steps",
            lines,
            xlabel="outer steps",
            ylabel="validation accuracy",
            title="mean over seeds, 95 % interval (Student) over seeds",
            logarithmic=True,
        )
        write_json(folder / "results.json", {"baselines": rows} | _circumstances())
        _log_to_wandb(config, folder, pictures)
        print(f"{table}written: {folder}", flush=True)

    def _row(self, name: str, runs: list[Run]) -> dict[str, Any]:
        results = [OmegaConf.load(run.folder / "results.json") for run in runs]
        means = [float(result.mean) for result in results]
        mean, ci95 = seed_interval(means)
        if len({result.episodes_sha256 for result in results}) > 1:
            raise UserError(f"{name}: its runs were scored on different test tasks")
        return {
            "threshold": self.thresholds.get(name),
            "mean": mean,
            "ci95_over_seeds": ci95,
            "seeds": [int(result.seed) for result in results],
            "means": means,
            "ci95_over_episodes": [float(result.ci95) for result in results],
            "episodes": int(results[0].episodes),
            "episodes_sha256": str(results[0].episodes_sha256),
            "inner_steps": int(results[0].inner_steps),
            "train_seconds": [float(result.train_seconds) for result in results],
            "seconds": [float(result.seconds) for result in results],
        }


class Comparison(Callback):
    """The report of `python -m fewshot.report` about the sweep's runs, in its folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra."""
        from fewshot.report.__main__ import write_report

        folder = Path(config.hydra.sweep.dir)
        print(f"written: {write_report([folder], folder, trust=config.trust)}", flush=True)


class Report(Callback):
    """The two studies of HW15's report, on the validation tasks.

    Accuracy at the end of training against the number of training classes (one run each), and accuracy
    against the inner steps of one trained learner, all in one pass. Writes num_classes.* and inner_steps.*
    (PNG, SVG, CSV), and results.json.

    Args:
        inner_steps: the largest number of inner steps that is tried, at least 1.
    """

    def __init__(self, inner_steps: int) -> None:
        if inner_steps < 1:
            raise UserError(f"hydra.callbacks.report.inner_steps={inner_steps} must be at least 1")
        self.inner_steps = inner_steps

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra."""
        folder = Path(config.hydra.sweep.dir)
        runs = sorted(_runs(folder), key=lambda run: run.config.data.num_classes)
        most = runs[-1]
        last = [run.validation[-1] for run in runs]
        sizes = [float(run.config.data.num_classes) for run in runs]
        classes = Line("MAML", sizes, [row["val/acc"] for row in last], [row["val/ci95"] for row in last])
        steps = self._inner_steps(most)
        tasks = f"{most.config.data.val_episodes} validation tasks, 95 % interval over tasks"
        pictures = [
            *write_study(
                folder,
                "num_classes",
                [classes],
                xlabel="training classes (characters)",
                ylabel="validation accuracy",
                title=f"after {most.config.trainer.max_steps} outer steps; {tasks}",
                logarithmic=True,
            ),
            *write_study(
                folder,
                "inner_steps",
                [steps],
                xlabel="inner steps on the support set",
                ylabel="validation accuracy",
                title=f"trained with {most.config.algo.inner_steps}; {tasks}",
            ),
        ]
        found = {"num_classes": classes._asdict(), "inner_steps": steps._asdict(), "seed": config.seed}
        write_json(folder / "results.json", found | _circumstances())
        _log_to_wandb(config, folder, pictures)
        print("\n".join(f"written: {picture}" for picture in pictures), flush=True)

    def _inner_steps(self, run: Run) -> Line:
        """Scores the run's best checkpoint on the validation tasks in every state from 0 to `inner_steps`."""
        from fewshot.build import build_learner, build_trainer

        path = str(run.folder / "checkpoints" / "best.ckpt")
        checkpoint = checkpoints.read(path)
        cfg = OmegaConf.create(checkpoint[checkpoints.RECORD]["config"])
        cfg.algo.eval_inner_steps = self.inner_steps
        cfg.outer.curve_episodes = cfg.data.val_episodes
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # whatever the run was trained on
        cfg.trainer = OmegaConf.merge(cfg.trainer, alone)
        data, learner = build_learner(cfg)
        checkpoints.load_weights(learner, checkpoint, path)
        build_trainer(cfg, [], []).validate(learner, datamodule=data, verbose=False)
        assert learner.evaluated is not None
        means, ci95s = zip(*(interval(scores) for scores in learner.evaluated.curve[1].T), strict=True)
        return Line("MAML", [float(step) for step in range(len(means))], list(means), list(ci95s))


def _runs(folder: Path) -> list[Run]:
    """The sweep's runs in the order of their numbers."""
    runs = []
    for place in sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        if (place / FAILED).exists() or not (place / "metrics.csv").exists():
            print(f"left out, since it failed: {place}", flush=True)
            continue
        config = OmegaConf.load(place / ".hydra" / "config.yaml")
        hydra = OmegaConf.load(place / ".hydra" / "hydra.yaml")
        with (place / "metrics.csv").open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file) if row["val/acc"]]
        assert isinstance(config, DictConfig)
        runs.append(Run(place, config, hydra.hydra.runtime.choices.experiment, rows))
    return runs


def _validation_line(name: str, runs: list[Run]) -> Line:
    """Validation accuracy against outer steps, mean and interval over the runs."""
    steps = [row["step"] for row in min((run.validation for run in runs), key=len)]
    points = [seed_interval([run.validation[i]["val/acc"] for run in runs]) for i in range(len(steps))]
    return Line(name.removeprefix("hw15_"), steps, [mean for mean, _ in points], [ci95 for _, ci95 in points])


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| baseline | threshold | mean over seeds | each seed | training | test |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        each = ", ".join(
            f"{mean:.3f} ± {ci95:.3f}" for mean, ci95 in zip(row["means"], row["ci95_over_episodes"], strict=True)
        )
        train, test = (max(row[key]) for key in ("train_seconds", "seconds"))
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.3f}"
        lines.append(
            f"| `{name}` | {threshold} | **{row['mean']:.3f}** ± {row['ci95_over_seeds']:.3f} | {each} "
            f"| {train:.0f} s | {test:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def _circumstances() -> dict[str, Any]:
    return {"git_commit": git_commit(), "versions": versions()}


def _log_to_wandb(config: DictConfig, folder: Path, pictures: list[Path]) -> None:
    """Puts the figures into a run of their own, where the sweep's runs were logged to W&B."""
    if "wandb" not in config.logger:
        return
    import wandb

    with wandb.init(
        project=config.logger.wandb.project, group=config.task_name, job_type="study", dir=str(folder)
    ) as run:
        run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures if picture.suffix == ".png"})
