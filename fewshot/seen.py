"""Whether a learner has seen the classes that it is to be tested on."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from fewshot.build import build
from fewshot.data.datamodule import EpisodeData
from fewshot.data.images import ImageSet, unturned
from fewshot.data.omniglot_runs import OmniglotRuns
from fewshot.data.task_data import TaskData
from fewshot.errors import UserError


def refuse_seen(data: TaskData, records: Mapping[str, dict[str, Any]], root: str) -> None:
    """Refuses checkpoints that were trained, or chosen, on classes of the test tasks.

    Of the official runs by their drawings, at the size of the runs; else by the names of the classes, where data set
    and folder are the same.

    Args:
        data: the test tasks.
        records: what the checkpoints say of their runs, by path; their code is trusted.
        root: where Omniglot lies now.
    """
    for path, record in records.items():
        stored = OmegaConf.create(record["config"])
        if isinstance(data, OmniglotRuns) and "image_size" in stored.data:
            stored.data.image_size = data.input_shape[-1]
        if str(stored.data.get("source", {}).get("_target_", "")).endswith("load_omniglot"):
            stored.data.root = root
        trained = build(stored.data)
        if not isinstance(trained, EpisodeData):
            continue
        if isinstance(data, OmniglotRuns):
            data.refuse_spoiled(*_known(trained))
        elif isinstance(data, EpisodeData) and _one_source(data, trained):
            images, known = _known(trained)
            _refuse_common(data, {unturned(images.names[number]) for number in known}, path)


def _known(trained: EpisodeData) -> tuple[ImageSet, list[int]]:
    """The images of a training, and the classes that trained or chose. Read only where they could be those of the
    test: what was trained on need not be on this machine."""
    trained.setup("test")
    assert trained.image_set is not None
    return trained.image_set, trained.classes["train"] + trained.classes["val"]


def _one_source(data: EpisodeData, trained: EpisodeData) -> bool:
    return data.root == trained.root and getattr(data.source, "func", 0) == getattr(trained.source, "func", 1)


def _refuse_common(data: EpisodeData, known: set[str], path: str) -> None:
    assert data.image_set is not None
    asked = {unturned(data.image_set.names[number]) for number in data.classes["test"]}
    if common := sorted(asked & known):
        raise UserError(
            f"{path} was trained, or chosen, on {len(common)} of the {len(asked)} test classes, {common[0]} among "
            "them: test it on data.split and seed as it was trained with"
        )
