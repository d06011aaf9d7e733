"""What the README tells people to type works, and what it names is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, make_image_folder, write_runs
from PIL import Image, ImageDraw

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ")
]


SYMBOLS = ("sun", "moon", "star", "tree", "boat")
OWN_FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, flags=re.DOTALL)


def run(command: str, folder: Path, *small: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)[1:]
    words = [str(ROOT / word) if (ROOT / word).suffix == ".py" and (ROOT / word).exists() else word for word in words]
    path = os.pathsep.join([str(ROOT), str(folder)])  # as if the files of the reader lay beside train.py
    environment = os.environ | {"PYTHONPATH": path, "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, *words, *small], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name, text in OWN_FILES:
        (folder / name).write_text(text)
    done = run("python train.py", folder, *SMALL, "trainer.max_steps=3", "hydra.run.dir=RUN")
    assert done.returncode == 0, done.stderr
    done = run("python -m fewshot.draw_tasks out=TASKS", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    make_image_folder(folder / "IMAGES")
    make_photographs(folder)
    return folder


def make_photographs(folder: Path) -> None:
    """PHOTOS/NAME/1.png of five symbols, dark dots on paper that is not white; NEW has the same, in other sizes."""
    (folder / "NEW").mkdir()
    for number, name in enumerate(SYMBOLS):
        photo = Image.new("RGB", (64, 48), (190, 185, 170))
        ImageDraw.Draw(photo).ellipse((12 + 6 * number, 8, 30 + 6 * number, 14 + 6 * number), fill=(40, 40, 60))
        (folder / "PHOTOS" / name).mkdir(parents=True)
        photo.save(folder / "PHOTOS" / name / "1.png")
        photo.resize((128, 96)).save(folder / "NEW" / f"{number}.png")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts(command: str, trained: Path, tmp_path: Path) -> None:
    """With small data, a small network and few steps; RUN and TASKS were made before."""
    small = [override for override in SMALL if not override.startswith("data=strokes") or "ckpt_path" not in command]
    if "data=folder" in command:
        small = [override for override in small if not override.startswith(("data=strokes", "data.source."))]
        small += ["data.image_size=16"]
    if "model=own" in command:
        small = [override for override in small if not override.startswith("model.")]
    if "fewshot.bench" in command:
        small = ["only=[omniglot_1_step]", "sides=[ours,loop]", "growth_sides=[]", "repeats=1"]
    if "fewshot.bench.race" in command:
        small = ["data=strokes", "data.split=official", "data.val_episodes=2", "every=1", "max_steps=1"]
        small += ["sides=[ours,loop]", "case.hidden=4", "data.meta_batch_size=2"]
    if "fewshot.remember" in command:
        small = ["steps=2", "slots=4", "width=3", "hidden=4", "batch=2"]
    if "5w1s_protonet" in command:  # its split is Omniglot's alone, and so many classes are not in the small data
        small = [*small, "data.split=official", "data.train_n_way=5"]
    if "protocol=" in command:  # it says how many
        small = [override for override in small if not override.startswith(("episodes=", "outer.curve"))]
    if "omniglot_20runs" in command:
        small += [f"data.root={write_runs(tmp_path)}"]
    if "within_alphabet" in command:
        small += ["data.source.characters=20"]
    command = command.replace("OTHER", "RUN/checkpoints/last.ckpt")
    if "grid=" in command:
        small += ["grid.episodes=2", "grid.steps=[0,1]"]
    if "--help" in command or "--cfg" in command or "photographs.py" in command:
        small = []
    if "sweep=hw15" in command:
        small += ["experiment=hw15_simple,hw15_boss", "seed=1"]
    if "sweep=baselines" in command:
        small += ["algo=maml,protonet", "seed=1", "trainer.max_steps=3"]
    if "fewshot.report" in command:
        command, small = command.replace("DIR", "RUN"), []
    if "hw15_report" in command:
        small += ["data.num_classes=10,20"]
    if "out=TASKS" in command:
        command = command.replace("out=TASKS", f"out={tmp_path / 'TASKS'}")
    if "trainer=gpu" in command:
        small = ["--cfg", "job"]  # there may be no GPU here
    done = run(command, trained, *small)
    assert done.returncode == 0, done.stderr
    if "photographs.py" in command:
        told = [line.split() for line in done.stdout.splitlines()]
        assert [file for file, *_ in told] == [f"{number}.png" for number in range(5)]
        assert {symbol for _, symbol, _ in told} <= set(SYMBOLS)
        assert all(0.2 <= float(sure) <= 1 for *_, sure in told)


def test_there_are_commands_and_the_two_of_the_start() -> None:
    assert len(COMMANDS) >= 8
    assert "make demo" in README
    assert "make test" in README


def test_what_a_user_writes_is_short() -> None:
    assert [name for name, _ in OWN_FILES] == ["photographs.py", "my_algorithm.py", "my_network.py"]
    for name, text in OWN_FILES:
        assert len([line for line in text.splitlines() if line.strip()]) < 20, name


def test_links_and_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_logged_name_is_in_the_glossary() -> None:
    glossary = README.split("## What the numbers are called")[1].split("\n## ")[0]
    for name in (
        "loss",
        "acc",
        "acc_step_K",
        "loss_step_K",
        "grad_norm",
        "lr",
        "tasks_per_second",
        "gflops_per_second",
        "peak_memory_mb",
        "ci95",
    ):
        assert f"`{name}`" in glossary or f"/{name}`" in glossary, name


def test_the_layout_names_every_file() -> None:
    for path in sorted((ROOT / "fewshot").rglob("*.py")):
        if path.name != "__init__.py":
            assert path.name in README, f"{path.name} is not in the README's layout"
