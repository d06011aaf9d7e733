"""Pickles of arrays: read right whatever wrote them, and nothing in them is ever run."""

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import by_python2

from fewshot.data.pickles import read_arrays
from fewshot.errors import UserError

CUBE = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
ARRAYS = {
    "bytes": CUBE,
    "columns first": np.asfortranarray(CUBE),
    "other axes": CUBE.transpose(2, 0, 1),
    "other order of bytes": (CUBE * 1000.0).astype(">i4"),
    "real": CUBE / 7,
    "truth": CUBE > 3,
    "text": np.array(["cat", "ox"]),
    "none": np.zeros((0, 3)),
}
PLAIN = {"a": [1, -1, 2.5, True, None, "x"], "b": {"n01532829": [0, 7]}, "c": (1, (2, "y"))}


def read(content: bytes) -> Any:
    return read_arrays(io.BytesIO(content), "the file")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_what_was_pickled_is_read(protocol: int, core: str) -> None:
    content = pickle.dumps({"arrays": ARRAYS, "plain": PLAIN, "one": np.int64(7), "raw": b"z", "void": b""}, protocol)
    if protocol < 4 and core == "numpy.core":  # as numpy 1 wrote it; later protocols say how long a name is
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    found = read(content)
    assert found["plain"] == PLAIN
    assert (found["one"], found["raw"], found["void"]) == (7, "z", "")
    for name, array in ARRAYS.items():
        assert found["arrays"][name].dtype == array.dtype
        assert np.array_equal(found["arrays"][name], array), name


def test_a_pickle_of_python_2_is_read_as_python_reads_it() -> None:
    content = by_python2({"fine_labels": [3, 99], "data": CUBE.reshape(6, 4), "batch_label": "training batch 1 of 1"})
    theirs = pickle.loads(content, encoding="latin1")
    ours = read(content)
    assert ours.keys() == theirs.keys()
    assert np.array_equal(ours["data"], theirs["data"])
    assert np.array_equal(ours["data"], CUBE.reshape(6, 4))
    assert ours["fine_labels"] == theirs["fine_labels"] == [3, 99]
    assert ours["batch_label"] == theirs["batch_label"]


class Runs:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("protocol", range(6))
def test_no_command_of_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"data": CUBE, "labels": [Runs(tmp_path / "ran")]}, protocol)
    with pytest.raises(UserError, match=rf"the file would run {os.system.__module__}.system, .* nothing of it was run"):
        read(content)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists(), "the pickle is a working one"


FOREIGN = {
    "evaluated": b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.",
    "by a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "another of numpy": b"\x80\x02cnumpy\nload\nX\x01\x00\x00\x00x\x85R.",
    "of the codecs": b"\x80\x02c_codecs\ndecode\n.",
    "an object's maker": b"\x80\x02ccopyreg\n_reconstructor\n.",
    "as Python 0 names it": b"(S'true'\nios\nsystem\n.",
    "by number": b"\x80\x02\x82\x01.",
    "a set": pickle.dumps({1, 2}, 2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_arrays_do_not_need_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="the file (would run|is damaged, or no pickle of arrays)") as refused:
        read(FOREIGN[name])
    assert len(str(refused.value).splitlines()) == 1
    assert ("would run" in str(refused.value)) == (name != "by number")


WRONG = {
    "empty": b"",
    "text": b"hello",
    "cut short": pickle.dumps(CUBE, 4)[:-20],
    "an array of objects": pickle.dumps(np.array([{}], dtype=object), 4),
    "an array of fields": pickle.dumps(np.zeros(2, dtype="i4,f8"), 4),
    "an empty array in the making": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
    "a class": b"\x80\x02cnumpy\nndarray\n.",
    "a state for a class": b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00xK\x01sb.",
    "too long": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "other bytes than shape": pickle.dumps(CUBE, 3).replace(b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"),
    "bytes in another code": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R.",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_damaged_is_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="the file is damaged, or no pickle of arrays .*: delete it and") as refused:
        read(WRONG[name])
    assert len(str(refused.value).splitlines()) == 1


def test_a_pickle_of_python_2_has_the_opcodes_of_its_time() -> None:
    names = {op.name for op, *_ in pickletools.genops(by_python2({"data": CUBE}))}
    assert {"PROTO", "GLOBAL", "BINSTRING", "SHORT_BINSTRING"} <= names
    assert not names & {"BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "STACK_GLOBAL"}
