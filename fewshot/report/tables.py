"""The report's tables, as rows of text that Markdown, CSV and HTML share."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from fewshot.report.collect import Group, Run
from fewshot.report.compare import difference, score


class Table(NamedTuple):
    """Rows of cells under their headings."""

    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def group_table(groups: Sequence[Group]) -> Table:
    """A row for every group: its settings, its score with both intervals, what it took."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    first = groups[0].runs[0].record
    rows = []
    for group in groups:
        mean, over_episodes, over_seeds = score(group)
        records = [run.record for run in group.runs]
        minutes = [record["train_seconds"] / 60 for record in records if record.get("train_seconds")]
        rows.append(
            [
                *(group.settings.get(key, "") for key in keys),
                ", ".join(str(run.seed) for run in group.runs),
                _value(mean, first),
                f"± {_value(over_episodes, first)}",
                "" if math.isnan(over_seeds) else f"± {_value(over_seeds, first)}",
                " / ".join(sorted({record["normalization"] for record in records})),
                " / ".join(sorted({str(record["episodes"]) for record in records})),
                " / ".join(sorted({str(record["train_steps"]) for record in records if record.get("train_steps")})),
                f"{sum(minutes) / len(minutes):.1f}" if minutes else "",
                _speed(group.runs),
            ]
        )
    headings = [*(keys or ["runs"]), "seeds", first["metric"], "over episodes", "over seeds", "normalisation"]
    if not keys:
        rows = [["all", *row] for row in rows]
    note = (
        "Test tasks. Over episodes: 95 % interval about the tasks that were drawn, for these trained models. Over "
        "seeds: 95 % interval (Student) about the models."
    )
    return Table("Scores", note, [*headings, "episodes", "outer steps", "minutes", "tasks/s"], rows)


def difference_table(groups: Sequence[Group]) -> Table:
    """A row for every two groups that answered the same test tasks."""
    rows = []
    first = groups[0].runs[0].record
    for one, other in itertools.combinations(groups, 2):
        found = difference(one, other)
        if found is not None:
            rows.append(
                [
                    one.name,
                    other.name,
                    _signed(found.mean, first),
                    f"± {_value(found.paired, first)}",
                    f"± {_value(found.unpaired, first)}",
                    "" if math.isnan(found.over_seeds) else f"± {_value(found.over_seeds, first)}",
                    str(found.seeds),
                    "yes" if found.real else "no",
                ]
            )
    note = (
        "The first's score less the second's on the same test tasks, over the seeds that both have. Paired: 95 % "
        "interval of each task's difference; unpaired: what it would be for tasks drawn apart. Beyond chance: zero is "
        "outside the paired interval, for these trained models. Each row is at 95 % by itself: where nothing differs, "
        f"one in twenty of these {len(rows)} would still say yes."
    )
    headings = ["first", "second", "difference", "paired", "unpaired", "over seeds", "seeds", "beyond chance"]
    return Table("Differences", note, headings, rows)


def run_table(runs: Sequence[Run]) -> Table:
    """A row for every run."""
    rows = []
    for run in runs:
        record = run.record
        rows.append(
            [
                str(record["algo"]),
                str(record["seed"]),
                _value(record["mean"], record),
                f"± {_value(record['ci95'], record)}",
                str(record["episodes"]),
                str(record["episodes_sha256"])[:8],
                str(record["git_commit"] or "")[:8],
                str(run.folder),
            ]
        )
    headings = ["algo", "seed", str(runs[0].record["metric"]), "95 %", "episodes", "tasks (sha256)", "commit", "folder"]
    return Table("Runs", "Tasks of the same sha256 are the same tasks.", headings, rows)


def _speed(runs: Sequence[Run]) -> str:
    found = [run.tasks_per_second for run in runs if not math.isnan(run.tasks_per_second)]
    return f"{sum(found) / len(found):.0f}" if found else ""


def _value(value: float, record: dict[str, object]) -> str:
    """A share as a percentage, anything else as it is."""
    return f"{100 * value:.1f} %" if record["metric"] == "accuracy" else f"{value:.3f}"


def _signed(value: float, record: dict[str, object]) -> str:
    return ("+" if value >= 0 else "−") + _value(abs(value), record)
