"""Files from the net, whole or not there."""

import contextlib
import logging
import os
from http.client import HTTPException
from pathlib import Path

from fewshot.errors import UserError

log = logging.getLogger(__name__)


def download(url: str, place: Path, md5: str, instead: str) -> None:
    """Fetches a file with torchvision, which checks its md5; it gets its name when it is whole.

    Args:
        instead: what to do without a net, for the error.

    Raises:
        UserError: no net, no room, or another file than the checksum names.
    """
    from torchvision.datasets.utils import download_url

    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        log.info("downloading %s to %s", place.name, place.parent)
        download_url(url, str(place.parent), temporary.name, md5)
        temporary.replace(place)
    except (OSError, RuntimeError, HTTPException) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{instead} (the download failed: {error})") from error
