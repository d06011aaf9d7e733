"""What a grid leaves: its numbers as a table to read, a file for a spreadsheet, a record and a picture."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from fewshot.evaluation import write_json
from fewshot.figures import save
from fewshot.heat_map import Panel, draw_heat_maps


class Cell(NamedTuple):
    """A score; the columns of grid.csv."""

    n_way: int
    k_shot: int
    inner_steps: int
    mean: float
    ci95: float  # half the 95 % interval over episodes
    episodes: int
    episodes_sha256: str


def write_grid(folder: Path, record: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Writes plots/grid.png, grid.csv and, last, grid.json; each whole or not at all."""
    (folder / "plots").mkdir(exist_ok=True)
    save(draw_grid(record, cells), folder / "plots" / "grid.png")
    write_csv(folder / "grid.csv", cells)
    write_json(folder / "grid.json", record)


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """A row for every cell that was computed; whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    lines = [",".join(str(value) for value in row) for row in (Cell._fields, *cells)]
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)


def table(record: dict[str, Any], cells: Sequence[Cell]) -> str:
    """For a terminal: a column for every shot, a row for every way and number of inner steps."""
    found = {cell[:3]: f"{cell.mean:.3f} ± {cell.ci95:.3f}" for cell in cells}
    steps, shots = record["inner_steps"], record["shots"]
    shown = Table(box=box.SIMPLE)
    shown.add_column("ways", justify="right")
    if len(steps) > 1:
        shown.add_column("inner steps", justify="right")
    for k_shot in shots:
        shown.add_column(f"{k_shot} shot{'s' * (k_shot > 1)}", justify="right")
    for n_way in record["ways"]:
        filled = (n_way, shots[0], steps[0]) in found
        for step in steps if filled else [None]:
            named = [str(n_way) if step in (steps[0], None) else ""]
            named += ["" if step is None else str(step)] if len(steps) > 1 else []
            shown.add_row(*named, *(found.get((n_way, k_shot, step), "") for k_shot in shots))  # type: ignore[arg-type]
        if len(steps) > 1:
            shown.add_section()
    plain = StringIO()  # as wide as it is, whatever the terminal: a number that is cut is none
    Console(file=plain, width=10_000).print(shown)
    lines = [line.rstrip() for line in plain.getvalue().splitlines()]
    return "\n".join(["", _title(record), *lines, *([record["empty"]] if record["empty"] else [])]).rstrip()


def draw_grid(record: dict[str, Any], cells: Sequence[Cell]) -> Figure:
    """Ways against shots, a map for every number of inner steps; of one way alone, inner steps against shots."""
    found = {cell[:3]: (cell.mean, cell.ci95) for cell in cells}
    ways, shots, steps = record["ways"], record["shots"], record["inner_steps"]
    filled = sorted({cell.n_way for cell in cells})
    blank = (np.nan, np.nan)

    def panel(title: str, places: list[list[tuple[int, int, int]]]) -> Panel:
        values = np.array([[found.get(place, blank) for place in row] for row in places])
        return Panel(title, values[..., 0], values[..., 1])

    labels = {"unit": record["metric"], "xlabel": "shots: support images of a class", "title": _title(record)}
    if len(filled) == 1 and len(steps) > 1:
        places = [[(filled[0], k_shot, step) for k_shot in shots] for step in steps]
        return draw_heat_maps([panel(f"{filled[0]}-way", places)], steps, shots, ylabel="inner steps", **labels)
    panels = [
        panel(
            f"{step} inner step{'s' * (step != 1)}" if len(steps) > 1 else "",
            [[(n_way, k_shot, step) for k_shot in shots] for n_way in ways],
        )
        for step in steps
    ]
    return draw_heat_maps(panels, ways, shots, ylabel="ways: classes of a task", **labels)


def _title(record: dict[str, Any]) -> str:
    trained = f", trained at {record['train_n_way']}-way {record['train_k_shot']}-shot" if record["checkpoint"] else ""
    tasks = f"{record['episodes']} episodes of {record['q_query']} queries a class"
    return (
        f"{record['algo']}, {record['data']}: test {record['metric']}{trained}\n"
        f"{tasks}, 95 % interval, {record['normalization']}"
    )
