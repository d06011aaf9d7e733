"""Compares runs: table, differences on the same tasks, curves, where they go wrong, on one page.

python -m fewshot.report outputs/sweep_baselines/multirun/DATE     a sweep: report.html in its folder
python -m fewshot.report RUN_A RUN_B out=comparison                any runs, into a folder of your own
python -m fewshot.report DIR pictures=false                        without data: no mistaken classes, no hardest tasks
python -m fewshot.report DIR trust=[mine]                          runs of your own learner
"""

import csv
import io
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from matplotlib.figure import Figure

from fewshot.build import settle
from fewshot.errors import UserError, one_line_errors
from fewshot.figures import save
from fewshot.report.charts import charts
from fewshot.report.collect import Group, find_runs, group_runs
from fewshot.report.page import page
from fewshot.report.pictures import answers, draw_confusion, draw_hardest
from fewshot.report.tables import Table, difference_table, group_table, run_table

_CAPTIONS = {
    "validation_by_steps": "Validation against outer steps",
    "validation_by_seconds": "Validation against seconds of training, validations included",
    "inner_steps": "Test tasks before adaptation and after each inner step",
    "map": "Test tasks, for every pair of settings",
}


def write_report(places: Sequence[Path], out: Path, *, pictures: bool = True, trust: Sequence[str] = ()) -> Path:
    """Writes report.html, report.md, report.csv and report/ into `out`; returns the page."""
    runs = find_runs(places)
    groups = group_runs(runs)
    metric = str(runs[0].record["metric"])
    drawn = charts(groups, metric, "acc" if metric == "accuracy" else "mse")
    figures = {_CAPTIONS[name]: figure for name, figure in drawn.items()}
    if pictures and metric == "accuracy":
        mistakes = _mistakes(groups, trust)
        drawn |= {name: figure for name, (_, figure) in mistakes.items()}
        figures |= dict(mistakes.values())
    tables = [group_table(groups), difference_table(groups), run_table(runs)]
    (out / "report").mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        for kind in ("png", "svg"):
            save(figure, out / "report" / f"{name}.{kind}")
    intro = f"{len(runs)} runs, {len(groups)} settings, {date.today()}"
    title = ", ".join(place.resolve().name for place in places)
    _write(out / "report.md", _markdown(title, intro, tables, list(drawn)))
    _write(out / "report.csv", _csv(tables[0]))
    _write(out / "report.html", page(title, intro, tables, figures))
    return out / "report.html"


def _mistakes(groups: Sequence[Group], trust: Sequence[str]) -> dict[str, tuple[str, Figure]]:
    """What the run with the best validation goes wrong in; test scores choose nothing."""
    runs = [run for group in groups for run in group.runs if run.validation]
    if not runs:
        return {}
    best = max(runs, key=lambda run: max(row["val/acc"] for row in run.validation))
    name = f"{best.record['algo']}, seed {best.seed} (the best validation)"
    try:
        found = answers(best, trust)
        if found is None:
            return {}
        confusion = draw_confusion(found)
    except UserError as error:
        print(f"no pictures of mistakes: {error}", file=sys.stderr)
        return {}
    return {
        "confusion": (f"Which classes are taken for which: {name}", confusion),
        "hardest": (f"The hardest test tasks, support image and wrongly answered queries: {name}", draw_hardest(found)),
    }


def _markdown(title: str, intro: str, tables: Sequence[Table], pictures: Sequence[str]) -> str:
    parts = [f"# {title}", intro]
    for table in tables:
        if table.rows:
            parts += [f"## {table.title}", table.note, table.markdown()]
    parts += [f"![{name}](report/{name}.png)" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _csv(table: Table) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([table.headings, *table.rows])
    return file.getvalue()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str]) -> None:
    """DIR… and out=, pictures=, trust=."""
    given = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    options = dict(argument.split("=", 1) for argument in given)
    places = [Path(argument) for argument in arguments if argument not in given and not argument.startswith("-")]
    if unknown := options.keys() - {"out", "pictures", "trust"}:
        raise UserError(f"{', '.join(sorted(unknown))}: the options are out=DIR, pictures=false and trust=[module]")
    if options.get("pictures", "true") not in ("true", "false"):
        raise UserError(f"pictures={options['pictures']} must be true or false")
    if not places or {"-h", "--help"} & set(arguments):
        print((__doc__ or "").strip())
        return
    settle()
    trust = [name.strip() for name in options.get("trust", "").strip("[]").split(",")]
    out = Path(options.get("out", places[0]))
    print(f"written: {write_report(places, out, pictures=options.get('pictures') != 'false', trust=trust)}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
