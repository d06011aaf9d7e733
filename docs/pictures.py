"""Makes the pictures of the README: python docs/pictures.py RUN, for a run on Omniglot.

RUN's own plots are copied; the sheet shows characters of `strokes` beside characters of Omniglot.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fewshot.data.images import ImageSet
from fewshot.data.omniglot import load_omniglot
from fewshot.data.strokes import load_strokes

DOCS = Path(__file__).resolve().parent


def contact_sheet(sets: dict[str, ImageSet], rows: int = 10, columns: int = 10) -> Figure:
    """Random characters, a row each, by different drawers."""
    draw = np.random.default_rng(1)
    figure = Figure(figsize=(4.4 * len(sets), 4.6), layout="constrained")
    for axis, (name, image_set) in zip(figure.subplots(1, len(sets)), sets.items(), strict=True):
        classes = draw.choice(len(image_set.names), rows, replace=False)
        lines = [np.concatenate([*image_set.of_class(c)[draw.permutation(20)[:columns], 0]], axis=1) for c in classes]
        axis.imshow(255 - np.concatenate(lines), cmap="gray", vmin=0, vmax=255)
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    return figure


if __name__ == "__main__":
    for name in ("episode", "inner_steps"):
        shutil.copy(Path(sys.argv[1]) / "plots" / f"{name}.png", DOCS)
    root = os.environ.get("FEWSHOT_DATA", "data")
    sheet = contact_sheet({"strokes (generated)": load_strokes(root, 28), "Omniglot": load_omniglot(root, 28)})
    FigureCanvasAgg(sheet)
    sheet.savefig(DOCS / "strokes.png", dpi=110)
