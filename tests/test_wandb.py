"""What a run writes for W&B, read back from its offline file: configuration, history, summary, tables, pictures."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Compose

from fewshot.runs import train

BLOCK = 32768  # of LevelDB's log format, which an offline run is written in


def records(path: Path) -> Iterator:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def _waited(path: Path) -> list:
    """The records of a run that has ended: W&B's own process may still be writing."""
    for _ in range(300):
        if any(record.HasField("exit") for record in records(path)):
            break
        time.sleep(0.1)
    return list(records(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wandb")


@pytest.fixture
def found(compose_cfg: Compose, run: Path) -> dict:
    if not (run / "results.json").exists():
        train(compose_cfg("logger=wandb", "tags=[one,two]", "task_name=mine", "algo=fomaml", folder=run))
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    told: dict = {"config": {}, "summary": {}, "history": [], "files": []}
    for record in _waited(file):
        if record.HasField("run"):
            told["run"] = record.run
            told["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.config.update:
            told["config"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update:
            told["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            told["history"].append(row)
        if record.HasField("exit"):
            told["exit"] = record.exit.exit_code
        told["files"] += [file.path for file in record.files.files]
    return told


def test_the_run_says_what_it_is(found: dict) -> None:
    assert found["run"].run_group == "mine"
    assert found["run"].job_type == "fomaml"
    assert list(found["run"].tags) == ["one", "two"]
    assert found["exit"] == 0


def test_the_whole_configuration_is_there(found: dict) -> None:
    config = found["config"]
    assert config["algo"]["create_graph"] is False
    assert config["data"]["n_way"] == 5
    assert config["trainer"]["max_steps"] == 6
    sections = ("algo", "aug", "data", "model", "outer", "trainer", "callbacks", "logger")
    assert "${" not in json.dumps([config[section] for section in sections]), "resolved"


def test_history_and_summary(found: dict, run: Path) -> None:
    steps = [row["trainer/global_step"] for row in found["history"] if "val/acc" in row]
    assert len(steps) == 2
    assert steps == sorted(steps)
    assert any("train/loss" in row for row in found["history"])
    results = json.loads((run / "results.json").read_text())
    told = {key: value for row in found["history"] for key, value in row.items()} | found["summary"]
    assert told["test/acc"] == pytest.approx(results["mean"])
    assert told["results/episodes_sha256"] == results["episodes_sha256"]
    assert told["results/protocol/sha256"] == results["protocol"]["sha256"]


def test_tables_charts_and_pictures(found: dict, run: Path) -> None:
    (media,) = run.glob("wandb/offline-run-*/files/media")
    written = [json.loads(path.read_text()) for path in media.rglob("*.table.json")]
    episodes = next(table for table in written if table["columns"][0] == "episode")
    steps = next(table for table in written if table["columns"][0] == "inner step")
    lines = (run / "episodes.csv").read_text().splitlines()[1:]
    assert [[float(cell) for cell in line.split(",")] for line in lines] == [
        list(map(float, r)) for r in episodes["data"]
    ]
    results = json.loads((run / "results.json").read_text())
    assert [row[1] for row in steps["data"]] == results["after_each_inner_step"]["mean"]
    assert {path.stem.split("_")[0] for path in media.rglob("*.png")} >= {"episode", "inner"}


def test_checkpoints_are_artifacts_when_asked(compose_cfg: Compose, tmp_path: Path) -> None:
    train(compose_cfg("logger=wandb", "logger.wandb.log_model=true", "test=false", folder=tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    ended = _waited(file)
    models = [record.artifact for record in ended if record.HasField("artifact") and record.artifact.type == "model"]
    assert {entry.path for artifact in models for entry in artifact.manifest.contents} == {"model.ckpt"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces' own code
def test_a_report_for_the_project_has_the_right_panels() -> None:
    pytest.importorskip("wandb_workspaces")
    from fewshot.report.wandb_report import build_report

    told = repr(build_report("fewshot", "someone", "mine").blocks)
    for panel in ("val/acc", "train/loss", "val/seconds", "test/acc", "JobType", "plots/episode"):
        assert panel in told, panel
