"""Mistakes that a person can mend, told in one line."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_TRACEBACKS_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"  # before we set it ourselves

_FIRST_SPEAKS = 3.0  # seconds: a mistake is mostly that of all processes, and the first one's end is that of the others


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, with both numbers, and what to do."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a `UserError`, what Hydra refuses, a full disk or too little memory into `error: …` and exit code 2.

    Stands around the program, for what Hydra refuses, and around each job, whose exceptions Hydra would
    otherwise announce in a line of its own. Anything else is a defect of ours and keeps its traceback, as
    everything does under `HYDRA_FULL_ERROR=1`.
    """
    if _TRACEBACKS_WANTED:
        yield
        return
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its own pages and exits before we see it
    try:
        yield
    except UserError as error:
        _exit(str(error))
    except HydraException as error:
        cause = error.__cause__
        _exit(str(cause) if isinstance(cause, UserError) else str(error))
    except OmegaConfBaseException as error:  # a key that is not there, or refers to one that is not
        _exit(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}")
    except ValueError as error:
        if not _by_hydra(error):
            raise
        _exit(str(error))
    except MemoryError as error:
        _exit(f"memory does not hold what was asked for ({error}): lower the numbers that are large")
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may Python's own last flush complain
        sys.exit(1)
    except OSError as error:
        where = error.filename or "the output folder"
        _exit(f"{where}: {error.strerror or error}; another output folder is chosen with hydra.run.dir=DIR")


def _by_hydra(error: Exception) -> bool:
    """Whether Hydra's own code raised it: of a group that is no word, `aug=null`, it says no more than ValueError."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith("hydra.")


def _exit(message: str) -> None:
    process = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    if process != "0":
        time.sleep(_FIRST_SPEAKS)
    who = "error" if process == "0" else f"error (process {process})"
    print(f"{who}: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
