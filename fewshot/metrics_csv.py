"""metrics.csv: every logged number of a run, one row per step and stage."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fewshot.errors import UserError


class MetricsCSV(Logger):
    """Appends rows to one file, and goes on in it when a run is resumed.

    Lightning's CSVLogger deletes the rows of the interrupted run; here a resumed run drops only those
    after the step it goes on from, which it is about to write again.

    Args:
        path: the file; columns that appear later are added to the header.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise UserError(f"logger.csv.path={path}: there is no folder {self.path.parent}")
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []  # not yet written
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = list(csv.DictReader(file).fieldnames or self._columns)

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Nothing: the configuration stands in .hydra/config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps a row for the next `save`."""
        self._rows.append({"step": step} | {k: v for k, v in metrics.items() if k != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that are waiting."""
        if not self._rows:
            return
        new = [name for row in self._rows for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += sorted(set(new))
            self._rewrite(self._read())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(self._rows)
        self._rows = []

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Drops the rows after outer step `step`."""
        if self.path.exists():
            self._rewrite([row for row in self._read() if int(row["step"]) <= step])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left."""
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        """The rows, without one that was cut off while it was written."""
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return list(csv.DictReader(whole))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)
