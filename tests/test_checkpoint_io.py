"""A checkpoint is on the disk whole, or the one before is."""

import os
from pathlib import Path

import pytest
import torch

from fewshot.checkpoint_io import AtomicCheckpointIO
from fewshot.checkpoints import previous
from fewshot.errors import UserError


def value(path: Path) -> int:
    return torch.load(path, weights_only=True)["value"]


def test_two_are_kept_and_nothing_else(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    for number in range(3):
        AtomicCheckpointIO().save_checkpoint({"value": number}, str(last))
    assert (value(last), value(previous(last))) == (2, 1)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_of_the_best_there_is_one(tmp_path: Path) -> None:
    for number in range(2):
        AtomicCheckpointIO().save_checkpoint({"value": number}, tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert value(tmp_path / "best.ckpt") == 1


def test_without_hard_links_a_copy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_two_are_kept_and_nothing_else(tmp_path)


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "pathlib.Path.replace"])
def test_stopped_at_any_moment_the_one_before_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        """As sudden as a signal: no handler of ours sees it."""

    def kill(*arguments: object, **options: object) -> None:
        if moment == "torch.save":
            arguments[1].write(b"half of it")  # type: ignore[attr-defined]
        raise Killed

    last = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, last)
    with monkeypatch.context() as patched:
        patched.setattr(moment, kill)
        with pytest.raises(Killed):
            AtomicCheckpointIO().save_checkpoint({"value": 2}, last)
    assert value(last) == 1
    AtomicCheckpointIO().save_checkpoint({"value": 3}, last)
    assert (value(last), value(previous(last))) == (3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_a_full_disk_is_told_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    last = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, last)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="last.ckpt could not be written .*No space left.* the one before is whole"):
        AtomicCheckpointIO().save_checkpoint({"value": 2}, last)
    assert value(last) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
