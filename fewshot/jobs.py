"""Every run has a folder of its own, and a sweep outlives its jobs and itself."""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from fewshot.checkpoints import LAST
from fewshot.errors import UserError
from fewshot.start import NAME

FAILED = "failed.json"  # in a job's folder: what it ended with
_BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def run_job(train: Callable[[DictConfig], float], cfg: DictConfig) -> float:
    """Runs a job; one of a sweep goes on from where its folder stands, and fails alone.

    Returns:
        The best validation value; of a job of a sweep that failed nan, its error told and kept in failed.json.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return train(cfg)
    failed = Path(hydra.runtime.output_dir) / FAILED
    failed.unlink(missing_ok=True)
    try:
        if hydra.launcher._target_ != _BASIC and (cfg.trainer.devices != 1 or cfg.trainer.get("num_nodes", 1) != 1):
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: the jobs that this launcher runs side by side use one device "
                "each; set trainer.devices=1, or leave out hydra/launcher"
            )
        cfg.ckpt_path = cfg.ckpt_path or LAST
        return train(cfg)
    except UserError as error:
        told = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}"
    print(f"error: {told}", file=sys.stderr, flush=True)
    failed.write_text(json.dumps({"error": told}) + "\n", encoding="utf-8")
    return math.nan


class OwnFolder(Callback):
    """Names the folder of a run or a sweep by a time that no other has, unless the user named it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the folder is made."""
        self._claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The same for a sweep."""
        self._claim(config, "sweep")

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The name was for this run alone."""
        os.environ.pop(NAME, None)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The same for a sweep."""
        os.environ.pop(NAME, None)

    def _claim(self, config: DictConfig, kind: str) -> None:
        named = any(override.startswith(f"hydra.{kind}.dir=") for override in config.hydra.overrides.hydra)
        if named or NAME in os.environ:  # other processes of the run go by that time
            return
        first = Path(config.hydra[kind].dir)
        for number in range(1, 1000):
            os.environ[NAME] = first.name if number == 1 else f"{first.name}_{number}"
            try:
                Path(config.hydra[kind].dir).mkdir(parents=True)
            except FileExistsError:
                continue
            return


class Summary(Callback):
    """Says what has become of the jobs of a sweep; a failed one makes the program's exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        failed = {path.parent: json.loads(path.read_text())["error"] for path in sorted(folder.glob(f"*/{FAILED}"))}
        jobs = sum(path.is_dir() and path.name.isdigit() for path in folder.iterdir())
        print(f"sweep: {folder}  {jobs - len(failed)} of {jobs} jobs done", flush=True)
        for place, error in failed.items():
            print(f"failed: {place}  {error}", file=sys.stderr, flush=True)
        if failed:
            print(f"again with the same command and hydra.sweep.dir={folder}", file=sys.stderr, flush=True)
            raise SystemExit(1)
