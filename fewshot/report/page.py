"""One HTML page that holds everything: no file beside it, no network."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fewshot.report.tables import Table

_HERE = Path(__file__).parent


def page(title: str, intro: str, tables: Sequence[Table], figures: dict[str, Figure]) -> str:
    """The page: the first table, the figures, the other tables.

    Args:
        figures: by their captions.
    """
    first, *others = tables
    parts = [_table(first), *(_figure(caption, figure) for caption, figure in figures.items()), *map(_table, others)]
    shell = (_HERE / "page.html").read_text(encoding="utf-8")
    filled = {"TITLE": html.escape(title), "INTRO": html.escape(intro), "PARTS": "\n".join(parts)}
    for name, value in filled.items():
        shell = shell.replace(f"<!--{name}-->", value)
    return shell


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in table.headings
    )
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f"<section><h2>{html.escape(table.title)}</h2><p>{html.escape(table.note)}</p>"
        f'<input type="search" placeholder="filter rows" aria-label="filter {html.escape(table.title)}">'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _figure(caption: str, figure: Figure) -> str:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, dpi=160, format="png")
    picture = base64.b64encode(file.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'
