"""How long it takes to draw a meta-batch."""

import statistics
import time

import torch
from lightning.fabric.utilities import move_data_to_device

from fewshot.augment import Augmentation, Identity
from fewshot.bench.case import Case
from fewshot.bench.measure import synchronise
from fewshot.data.datamodule import EpisodeData
from fewshot.data.images import ImageSet

_CLASSES, _DRAWINGS = 1000, 20  # Omniglot's background set has 964 classes


def drawing_ms(case: Case, augmentation: Augmentation, device: torch.device, *, repeats: int) -> dict[str, float]:
    """Median milliseconds to draw the tasks of a case and to gather their images on the device: as they are
    ("plain"), and augmented. The images are random: what is in them does not change the time."""
    found = {}
    for name, chosen in (("plain", Identity()), ("augmented", augmentation)):
        data = _data(case, chosen)
        times = []
        for step in range(repeats + 1):
            synchronise()
            started = time.perf_counter()
            data.gather(move_data_to_device(data.draw("train", step), device))
            synchronise()
            times.append((time.perf_counter() - started) * 1e3)
        found[name] = statistics.median(times[1:])  # the first one brings the images to the device
    return found


def _data(case: Case, augmentation: Augmentation) -> EpisodeData:
    """Random images, as many as Omniglot has in training."""
    images = torch.randint(256, (_CLASSES * _DRAWINGS, 1, case.image_size, case.image_size), dtype=torch.uint8)
    names = tuple(str(number) for number in range(_CLASSES))
    image_set = ImageSet(images, (_DRAWINGS,) * _CLASSES, names, ("",) * _CLASSES)
    return EpisodeData(
        lambda root, image_size: image_set,
        "",
        image_size=case.image_size,
        split="random_classes",
        num_classes=None,
        n_way=case.n_way,
        k_shot=case.k_shot,
        train_n_way=case.n_way,
        train_k_shot=case.k_shot,
        q_query=case.q_query,
        eval_q_query=case.q_query,
        meta_batch_size=case.tasks,
        steps_per_epoch=1,
        val_episodes=1,
        test_episodes=1,
        seed=0,
        eval_seed=0,
        augmentation=augmentation,
    )
