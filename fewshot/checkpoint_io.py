"""How a checkpoint reaches the disk: whole, or not at all."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from fewshot.checkpoints import previous
from fewshot.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name in the same folder, sees it on the disk, then renames.

    A run that is killed while it writes leaves the checkpoint of before. That of `last.ckpt` stays beside it as
    `last.previous.ckpt`, so that there are two to go on from.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Puts a checkpoint in the place of the one before.

        Raises:
            UserError: it could not be written (a full disk, no permission); the one before is untouched.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.stem == "last" and path.exists():
                _copy(path, previous(path))
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            kept = f"the one before is whole: go on from it with ckpt_path={path}" if path.exists() else "there is none"
            raise UserError(f"{path} could not be written ({error}); {kept}") from error


def _copy(source: Path, target: Path) -> None:
    """As a second name of the same file where the file system can."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
