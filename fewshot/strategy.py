"""Several processes, each with a device: they share the tasks of a meta-batch, and start and end together."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from fewshot.errors import UserError

_SET_FOR_PROCESSES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
_PARENT = "FEWSHOT_PARENT"  # the process that started this one
_at_work = threading.Event()  # while the processes of the job compute together
_started: list[subprocess.Popen] = []  # those of the present job, in the order of their ranks from 1 on


class TaskParallel(DDPStrategy):
    """Every process adapts its own part of the tasks; their meta-gradients are averaged once an outer step.

    Lightning's strategy wraps the module to reduce gradients while a backward pass goes on. Ours has a backward pass
    for each chunk of tasks, through inner gradients, and leaves tasks out: the module is left as it is, and
    `fewshot.bad_tasks` averages what all of that has come to.
    """

    def configure_ddp(self) -> None:
        """Makes the weights equal; wraps nothing."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, 0)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, unless torchrun or SLURM did.

    Lightning's would repeat the command line: of a sweep that is all jobs. Here they run this job, in its folder.
    """

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Calls the function in all processes; what it raises for want of another process is told as that."""
        try:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        if _PARENT in os.environ and os.environ["LOCAL_RANK"] != "0":
            threading.Thread(target=_end_with_parent, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        _at_work.set()
        try:
            return function(*args, **kwargs)
        finally:
            _at_work.clear()  # what comes now is this process's own end, and takes the time that it takes

    def _call_children_scripts(self) -> None:
        environment = self.cluster_environment
        values = (environment.main_address, environment.main_port, environment.node_rank(), 0)
        os.environ.update(zip(_SET_FOR_PROCESSES, map(str, values), strict=False))
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        os.environ[_PARENT] = str(os.getpid())
        for local_rank in range(1, self.num_processes):
            child = subprocess.Popen(_command(), env=os.environ | {"LOCAL_RANK": str(local_rank)})
            self.procs.append(child)
            _started.append(child)
        threading.Thread(target=_end_with_children, args=(list(_started),), daemon=True).start()


@contextmanager
def processes_of_a_job() -> Iterator[None]:
    """Around a job that may start processes: after it there are none, and the next job of a sweep starts its own."""
    try:
        yield
    except RuntimeError as error:  # what a collective raises when a process is missing
        dead = _first_dead(seconds=3) if _started else None
        if dead is None:
            raise
        raise UserError(dead) from error
    else:
        for child in _started:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=60)  # has nothing left to do but to leave
    finally:
        _end_processes()


def _end_processes() -> None:
    if not _started:
        return
    children = list(_started)
    _started.clear()  # their watch ends
    for child in children:
        child.kill()  # nothing is theirs to write
        child.wait()
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in (*_SET_FOR_PROCESSES, _PARENT):
        os.environ.pop(name, None)


def _first_dead(seconds: float) -> str | None:
    """What to say of the first process that ended in a failure, at the latest so much later."""
    ended = threading.Event()
    for _ in range(int(seconds * 10) + 1):
        for rank, child in enumerate(_started, start=1):
            if child.poll():
                return (
                    f"process {rank} of {len(_started) + 1} ended with code {child.returncode}, and the run with it; "
                    "what it had written is whole: go on with ckpt_path=RUN/checkpoints/last.ckpt"
                )
        ended.wait(0.1)
    return None


def _end_with_children(children: list[subprocess.Popen]) -> None:
    """A GPU's collective would wait for half an hour for a process that is gone."""
    wait = threading.Event()
    while _started == children:
        if any(child.poll() for child in children):
            wait.wait(10)  # what this process may have to say of it comes first
            if _at_work.is_set() and _started == children and (dead := _first_dead(0)):
                print(f"error: {dead}", file=sys.stderr, flush=True)
                for child in children:
                    child.kill()
                os._exit(1)
        wait.wait(1)


def _end_with_parent() -> None:
    wait, parent = threading.Event(), int(os.environ[_PARENT])
    while os.getppid() == parent:
        wait.wait(1)
    os._exit(1)


def _command() -> list[str]:
    """The command line of this job by itself, a sweep's too, in the folder that it has."""
    import __main__

    hydra = HydraConfig.get()
    spec = __main__.__spec__
    program = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    typed = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    typed_path = any(override.startswith("ckpt_path=") for override in hydra.overrides.task)
    goes_on = hydra.mode == RunMode.MULTIRUN and not typed_path  # as `run_job` has it for the first process
    folder = str(hydra.runtime.output_dir).replace("'", "\\'")
    return [
        sys.executable,
        *program,
        f"--config-name={hydra.job.config_name}",
        *(f"--config-dir={path}" for path in typed),
        *hydra.overrides.task,
        *(["ckpt_path=last"] if goes_on else []),
        *hydra.overrides.hydra,
        "hydra.mode=RUN",
        f"hydra.run.dir='{folder}'",
        "hydra.output_subdir=null",  # the first process writes it
    ]
