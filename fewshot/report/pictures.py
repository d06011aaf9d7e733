"""Where a learner goes wrong: which classes it takes for which, and its hardest tasks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from fewshot import checkpoints, engine
from fewshot.build import build, learner_for
from fewshot.data.datamodule import EpisodeData
from fewshot.errors import UserError
from fewshot.figures import show_image
from fewshot.report.collect import Run
from fewshot.tasks import TaskBatch

_MOST_CLASSES = 20  # in a matrix that can be read
_BLOCKS = 8  # of the test tasks: 256 of them say which classes are mistaken


class Answers(NamedTuple):
    """What a learner answered to the first test tasks."""

    tasks: TaskBatch
    classes: Tensor  # (T, M) of the data set, right
    answered: Tensor  # (T, M) of the data set
    names: list[str]  # of the data set's classes

    @property
    def scores(self) -> Tensor:
        """(T,)"""
        return (self.classes == self.answered).double().mean(1)


def answers(run: Run, trust: Sequence[str] = ()) -> Answers | None:
    """Lets the run's checkpoint answer its first test tasks once more; None where there are no classes of images.

    Raises:
        UserError: its data set is not here, or its checkpoint names code that is not trusted.
    """
    path = run.record["checkpoint"] or str(run.folder / "checkpoints" / "best.ckpt")
    checkpoint = checkpoints.read(path)
    checkpoints.refuse_untrusted(checkpoint, path, trust)
    stored = checkpoint[checkpoints.RECORD]["config"]  # of which the rest has not been checked
    cfg = OmegaConf.create({k: v for k, v in stored.items() if k in checkpoints.SECTIONS or isinstance(v, str | int)})
    data = build(cfg.data)
    if not isinstance(data, EpisodeData):
        return None
    learner = learner_for(cfg, data.input_shape, data.kind)
    checkpoints.load_weights(learner, checkpoint, path)
    tasks, classes, answered = [], [], []
    for block in data.blocks("test")[:_BLOCKS]:
        drawn = data.draw("test", block)
        batch = data.gather(drawn)
        chosen = engine.predict(learner.algorithm, batch).argmax(-1)
        of_support = data.class_of(drawn.tasks.support_i)
        # The class of each label of a task: that of any of its support images.
        by_label = torch.empty((len(of_support), int(batch.support_y.max()) + 1), dtype=torch.long)
        by_label.scatter_(1, batch.support_y, of_support)
        tasks.append(batch)
        classes.append(by_label.gather(1, batch.query_y))
        answered.append(by_label.gather(1, chosen))
    names = data.image_set.names if data.image_set is not None else []
    joined = TaskBatch(*(torch.cat(tensors) for tensors in zip(*tasks, strict=True)))
    return Answers(joined, torch.cat(classes), torch.cat(answered), list(names))


def draw_confusion(found: Answers) -> Figure:
    """Of the queries of every class, or group of classes, the share that was taken for another.

    Classes are put together by the first part of their names (an alphabet) where there are many.
    """
    used = sorted(set(found.classes.flatten().tolist()) | set(found.answered.flatten().tolist()))
    label = {number: found.names[number] for number in used}
    if len(used) > _MOST_CLASSES:
        label = {number: name.split("/")[0] for number, name in label.items()}
    labels = sorted(set(label.values()))
    if len(labels) > _MOST_CLASSES:
        raise UserError(f"{len(labels)} classes are too many for a matrix")
    place = {number: labels.index(name) for number, name in label.items()}
    counts = np.zeros((len(labels), len(labels)))
    for true, answer in zip(found.classes.flatten().tolist(), found.answered.flatten().tolist(), strict=True):
        if true != answer:
            counts[place[true], place[answer]] += 1
    of_each = np.zeros(len(labels))
    np.add.at(of_each, [place[true] for true in found.classes.flatten().tolist()], 1)
    shares = counts / of_each[:, None]
    side = 1.5 + 0.24 * len(labels)
    figure = Figure(figsize=(side + 1.6, side + 1.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(100 * shares, cmap="Blues")
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set(xlabel="answered", ylabel="true")
    axis.set_title(f"wrong answers to {len(found.scores)} test tasks, % of the row's queries", fontsize=9)
    figure.colorbar(image, shrink=0.6)
    return figure


def draw_hardest(found: Answers, count: int = 3, queries: int = 10) -> Figure:
    """The tasks with the lowest scores: the support image of each class, and queries that were answered wrongly."""
    worst = found.scores.argsort(stable=True)[:count].tolist()
    ways = int(found.tasks.support_y.max()) + 1
    figure = Figure(figsize=(0.62 * (queries + 1.6), 0.66 * ways * len(worst) + 0.5 * len(worst)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(worst), 1)))
    for part, task in zip(parts, worst, strict=True):
        part.suptitle(f"test task {task + 1}: {100 * found.scores[task]:.0f} % right", fontsize=9, x=0.01, ha="left")
        axes = part.subplots(ways, queries + 2, squeeze=False, width_ratios=[1, 0.4, *[1] * queries])
        for axis in axes.flat:
            axis.axis("off")
        for way in range(ways):
            support = found.tasks.support_x[task][found.tasks.support_y[task] == way]
            show_image(axes[way, 0], support[0])
            of_class = found.classes[task][found.tasks.query_y[task] == way]
            wrong = (found.tasks.query_y[task] == way) & (found.answered[task] != found.classes[task])
            shown = found.tasks.query_x[task][wrong][:queries]
            for column, image in enumerate(shown, start=2):
                show_image(axes[way, column], image)
            axes[way, 1].text(0.5, 0.5, f"{len(of_class) - int(wrong.sum())}/{len(of_class)}", ha="center", fontsize=7)
    return figure
