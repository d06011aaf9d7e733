"""The official one-shot benchmark of Omniglot: twenty runs, each twenty characters of one alphabet.

B. Lake, R. Salakhutdinov, J. Tenenbaum: Human-level concept learning through probabilistic program induction.
Science 350, 2015. https://github.com/brendenlake/omniglot, folder python/one-shot-classification
"""

import contextlib
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewshot.data.images import ImageSet
from fewshot.data.omniglot import shrink
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError
from fewshot.tasks import Classification, TaskBatch

RUNS = 20
CHARACTERS = 20  # of a run; one drawing to learn from and one to classify, by two drawers
_NAMES = ("all_runs", "all_runs.zip")


class OmniglotRuns(TaskData):
    """The twenty runs as test tasks; there is nothing to train on.

    The benchmark's score is the mean error over the runs, 400 trials in all: one minus the mean accuracy.

    Args:
        root: the folder of `all_runs.zip`, or of it unpacked.
        image_size: H = W in pixels; the scans of 105 are brought to it as Omniglot's are.
        train_outputs: classes that the learner was trained for; None: twenty.
    """

    def __init__(self, root: str, *, image_size: int, train_outputs: int | None = None) -> None:
        super().__init__(
            meta_batch_size=1, steps_per_epoch=1, val_episodes=1, test_episodes=RUNS, seed=0, eval_seed=0, num_workers=0
        )
        self.tasks = load_runs(root, image_size)
        self.train_outputs = train_outputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, H, W)."""
        return tuple(self.tasks.support_x.shape[2:])

    @property
    def kind(self) -> Classification:
        """Of twenty classes."""
        return Classification(CHARACTERS, self.train_outputs)

    @property
    def task_name(self) -> str:
        """What is printed."""
        return "20-way 1-shot, the official 20 runs,"

    def record(self) -> dict[str, Any]:
        """The shape; the classes are the benchmark's."""
        shape = {"n_way": CHARACTERS, "k_shot": 1, "q_query": 1}
        return {"split": "omniglot_20runs", "quarter_turns": False, "within_alphabet": True, **shape}

    def drawn(self, split: str, step: int) -> TaskBatch:
        """All runs, of which there is one block."""
        if split != "test":
            raise UserError(f"the 20 runs are for testing: there are none for split '{split}'")
        return self.tasks

    def gather(self, drawn: TaskBatch) -> TaskBatch:
        """They are there already."""
        return drawn

    def episodes_sha256(self, split: str) -> str:
        """Of every pixel and label."""
        digest = hashlib.sha256()
        for tensor in self.draw(split, 0):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def refuse_spoiled(self, image_set: ImageSet, known: list[int]) -> None:
        """Refuses a learner that has seen a character of the runs.

        Args:
            image_set: what it was trained on.
            known: the classes that trained it, or that its checkpoint was chosen by.
        """
        if image_set.images.shape[1:] != self.tasks.support_x.shape[2:]:
            return  # of another size or in colour: other images
        seen = {
            image.numpy().tobytes(): image_set.names[number] for number in known for image in image_set.of_class(number)
        }
        spoiled: dict[int, list[str]] = {}
        for run in range(RUNS):
            shown = torch.cat([self.tasks.support_x[run], self.tasks.query_x[run]]).mul(255).round().to(torch.uint8)
            names = {seen[key] for image in shown if (key := image.numpy().tobytes()) in seen}
            if names:
                spoiled[run + 1] = sorted(names)
        if spoiled:
            first = next(iter(spoiled.values()))[0]
            raise UserError(
                f"this learner was trained, or chosen, on characters of {len(spoiled)} of the {RUNS} runs "
                f"({', '.join(map(str, spoiled))}), {first} among them: train on the background set alone, with "
                "data.split=official or background_characters"
            )


def load_runs(root: str, image_size: int) -> TaskBatch:
    """The runs as tasks: support and queries (20, 20, 1, image_size, image_size), ink = 1.

    Raises:
        UserError: not there, or not whole; names the file.
    """
    folder = Path(root)
    found = next((folder / name for name in _NAMES if (folder / name).exists()), None)
    if found is None:
        raise UserError(
            f"no all_runs.zip in {root}: put it there (github.com/brendenlake/omniglot, folder "
            "python/one-shot-classification), or name its folder with data.root=DIR"
        )
    try:
        with contextlib.ExitStack() as opened:
            place = found if found.is_dir() else zipfile.Path(opened.enter_context(zipfile.ZipFile(found)))
            runs = [_run(place / f"run{number:02d}", found, image_size) for number in range(1, RUNS + 1)]
    except UserError:
        raise
    except Exception as error:  # readers of archives and images raise whatever comes to them at a broken file
        raise UserError(f"{found} is damaged ({error}): delete it and fetch it again") from error
    return TaskBatch(*(torch.stack(parts) for parts in zip(*runs, strict=True)))


def _run(place: Any, found: Path, image_size: int) -> TaskBatch:
    """One run, its classes in the order of their files, its items in theirs."""
    pairs = [line.split() for line in (place / "class_labels.txt").read_text().splitlines() if line.strip()]
    classes = [f"{place.name}/training/class{number:02d}.png" for number in range(1, CHARACTERS + 1)]
    items = [f"{place.name}/test/item{number:02d}.png" for number in range(1, CHARACTERS + 1)]
    answers = dict(pairs)
    if sorted(answers) != items or sorted(answers.values()) != classes:
        raise UserError(
            f"{found} has a {place.name}/class_labels.txt of {len(answers)} items, wanted are item01 to "
            f"item{CHARACTERS} with a class of their own each: fetch it again"
        )
    support, query = (
        torch.from_numpy(np.stack([_image(place.parent, name, found, image_size) for name in names]))
        for names in (classes, items)
    )
    labels = torch.tensor([classes.index(answers[item]) for item in items])
    # In random order, always the same: learners that read one after the other were trained so.
    order = torch.randperm(CHARACTERS, generator=torch.Generator().manual_seed(0))
    return TaskBatch(support[order], order, query, labels)


def _image(root: Any, name: str, found: Path, image_size: int) -> np.ndarray:
    with (root / name).open("rb") as file, Image.open(file) as image:
        return shrink(image, image_size, found)[None].astype(np.float32) / 255
