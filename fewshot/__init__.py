"""fewshot: few-shot and meta-learning on PyTorch Lightning and Hydra.

`load` puts a trained model to use. Otherwise import the rooms you need (`fewshot.inner_loop`,
`fewshot.algorithms.maml`, …); nothing heavy is imported here, so that `python train.py --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from fewshot.predictor import FewShotClassifier, FewShotRegressor

__version__ = "0.1.0"


def load(
    path: str | Path, *, device: str | torch.device = "cpu", trust: Sequence[str] = (), transductive: bool = False
) -> FewShotClassifier | FewShotRegressor:
    """A trained model: `fewshot.load("RUN/checkpoints/best.ckpt").fit(images, labels).predict(more_images)`.

    Needs nothing but the checkpoint, which is read without running any code of its own, and writes nothing.

    Args:
        path: a checkpoint of train.py.
        device: where to compute, as "cuda".
        trust: modules beyond fewshot and `torch.optim` that the checkpoint's configuration may name: ["my_network"].
        transductive: answer the queries of a call as one batch, where batch normalisation goes by the batch: as
            evaluate.py does, but an answer then depends on the other queries. False: each by itself.

    Returns:
        A `fewshot.predictor.FewShotClassifier`, or a `FewShotRegressor` where training was regression.

    Raises:
        fewshot.errors.UserError: no such checkpoint, a damaged one, or one that names code of others.
    """
    from fewshot.predictor import load

    return load(path, device=device, trust=trust, transductive=transductive)
