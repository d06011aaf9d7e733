"""A trained model in somebody else's program: `fewshot.load(CKPT).fit(images, labels).predict(images)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fewshot import checkpoints, engine
from fewshot.algorithms.base import Algorithm, Fitted, last
from fewshot.build import learner_for
from fewshot.data.given import read_images, read_numbers
from fewshot.data.images import paper_is_white
from fewshot.errors import UserError
from fewshot.inner_optimizers import Params
from fewshot.labels import encode
from fewshot.tasks import Classification, Regression, TaskKind


class Trained:
    """What a checkpoint holds: an algorithm with its weights, for tasks of any kind that it can be asked.

    Args:
        path: of the checkpoint.
        device: where to compute.
        trust: modules, or parts of them, beyond this project and `torch.optim` that its configuration may name.
        transductive: whether queries are answered as one batch where batch normalisation goes by the batch.
    """

    def __init__(self, path: str | Path, device: str | torch.device, trust: Sequence[str], transductive: bool) -> None:
        self.path = str(path)
        self._checkpoint = checkpoints.read(self.path)
        checkpoints.refuse_untrusted(self._checkpoint, self.path, [trust] if isinstance(trust, str) else list(trust))
        record = self._checkpoint[checkpoints.RECORD]
        self.cfg: DictConfig = OmegaConf.create(record["config"])
        self.input_shape: tuple[int, ...] = tuple(record["input_shape"])
        self.outputs: int = record["n_out"]  # of the model's head
        self.device = _available(device)
        self.transductive = transductive

    def algorithm(self, kind: TaskKind) -> Algorithm:
        """The algorithm for tasks of this kind; leaves PyTorch's random numbers as they were."""
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            learner = learner_for(self.cfg, self.input_shape, kind)
        checkpoints.load_weights(learner, self._checkpoint, self.path)
        return learner.algorithm.eval().requires_grad_(False).to(self.device)

    def learn(self, algorithm: Algorithm, support_x: Tensor, support_y: Tensor) -> "Task":
        """Fits a task, its support set in random order, always the same one, as training has it: a learner that
        reads it in order, or a few images at a time, must not find one class after the other."""
        order = torch.randperm(len(support_x), generator=torch.Generator().manual_seed(0))
        params: Params = dict(algorithm.named_parameters())
        with torch.inference_mode(False), torch.no_grad():
            x, y = (part[order].to(self.device) for part in (support_x, support_y))
            return Task(algorithm, last(algorithm.fit(params, x, y, stage="test")), x, self.transductive)


class Task(NamedTuple):
    """A learned task."""

    algorithm: Algorithm
    fitted: Fitted
    support_x: Tensor
    transductive: bool

    def answer(self, query_x: Tensor) -> Tensor:
        """Predictions on the CPU: (M, …) -> (M, N)."""
        with torch.inference_mode(False), torch.no_grad():
            query_x = query_x.to(self.support_x.device, copy=True)  # one made in inference mode cannot be computed with
            if self.transductive and self.algorithm.transductive:
                found = self.algorithm.predict(self.fitted, query_x)
            else:
                found = engine.predict_one_by_one(self.algorithm, self.fitted, self.support_x, query_x)
        if bad := int(found.isnan().flatten(1).any(1).sum()):
            raise UserError(
                f"{bad} of {len(found)} inputs have no answer: adapting to this support set came to numbers that are "
                "not finite"
            )
        return found.cpu()


@final
class FewShotClassifier:
    """Learns classes from a few images of each, with what a checkpoint has learned about learning.

    As in scikit-learn: `fit` returns the classifier itself and may be called again with other classes. What a query is
    answered does not depend on the other queries of the call: where batch normalisation goes by the batch, it is
    answered in the company of the support set alone (`fewshot.engine.predict_one_by_one`), unless loaded with
    `transductive=True`. Then all of a call are one batch, as in `evaluate.py`; accuracies are those that it reports as
    transductive, higher, and an answer changes with its company.

    Images are what `fewshot.data.given.read_images` takes: PIL images, arrays (M, H, W) or (M, H, W, C), tensors
    (M, C, H, W), lists of any sizes.

    Attributes:
        classes_: the labels, sorted (in order of appearance where they cannot be): (N,).
        inverted_: whether images are inverted, light paper made 0 and dark ink 1.
    """

    classes_: NDArray[Any]
    inverted_: bool

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._algorithm = trained.algorithm(Classification(trained.cfg.data.n_way, trained.outputs))
        self._task: Task | None = None

    def __repr__(self) -> str:
        """The algorithm and where its weights are from."""
        return f"{type(self).__name__}({type(self._algorithm).__name__}, {self._trained.path})"

    def fit(self, images: Any, labels: Any, *, invert: bool | None = None) -> "FewShotClassifier":
        """Learns from labelled images.

        Args:
            images: of at least two classes, as many of each as you like (`relationnet`: equally many). As many classes
                as trained with, or any number where the algorithm makes a head for every task; `transfer`: at most
                that many.
            labels: what each is: strings, numbers or anything that can be a key of a dictionary.
            invert: whether dark ink on light paper is made light on dark, here and in `predict`. None: where the model
                was trained on grey images whose ink is 1, as Omniglot's, and the borders of these are bright.

        Raises:
            UserError: images or labels that cannot be, or do not go together; the classifier stays as it was.
        """
        classes, codes = encode(labels)
        pixels = self._read(images)
        if len(codes) != len(pixels):
            raise UserError(f"{len(pixels)} images and {len(codes)} labels: every image needs one label")
        self._refuse_shots(classes, codes)
        algorithm = self._for_ways(len(classes))
        inverted = self._paper_is_white(pixels) if invert is None else invert
        self._task = self._trained.learn(algorithm, self._inputs(pixels, inverted), codes)
        self._algorithm, self.classes_, self.inverted_ = algorithm, classes, inverted
        return self

    def predict(self, images: Any) -> NDArray[Any]:
        """The label of every image: (M,), of the labels' type."""
        chosen = self._logits(images).argmax(-1)
        return self.classes_[chosen.numpy()]

    def predict_proba(self, images: Any) -> NDArray[np.float64]:
        """The probability of every class for every image, (M, N), in the order of `classes_`: the softmax of what
        the algorithm predicts.

        How far it can be believed says `ece` in results.json; of `relationnet`, whose predictions are no
        log-probabilities, the order alone means something.
        """
        return self._logits(images).double().softmax(-1).numpy()

    def _logits(self, images: Any) -> Tensor:
        if self._task is None:
            raise UserError("predict before fit: first fit(images, labels)")
        logits = self._task.answer(self._inputs(self._read(images), self.inverted_))
        return logits[:, : len(self.classes_)]  # of a classifier of more classes, which started from their heads

    def _read(self, images: Any) -> NDArray[np.uint8] | Tensor:
        """Images as pixels (M, H, W, C); what a model of no images takes as numbers."""
        shape = self._trained.input_shape
        if len(shape) == 3 and shape[1] == shape[2]:
            return read_images(images, channels=shape[0], image_size=shape[1])
        return read_numbers(images, shape, "inputs")

    def _paper_is_white(self, pixels: NDArray[np.uint8] | Tensor) -> bool:
        source = self._trained.cfg.data.get("source")
        as_they_are = source is not None and source.get("invert") is False  # a folder of images, trained on as it was
        return not (isinstance(pixels, Tensor) or pixels.shape[-1] > 1 or as_they_are) and paper_is_white(pixels)

    def _inputs(self, pixels: NDArray[np.uint8] | Tensor, inverted: bool) -> Tensor:
        if isinstance(pixels, Tensor):
            return pixels
        return torch.from_numpy(255 - pixels if inverted else pixels).movedim(-1, 1).to(torch.float32).div(255)

    def _for_ways(self, ways: int) -> Algorithm:
        algorithm, trained, name = self._algorithm, self._trained.outputs, type(self._algorithm).__name__
        if not algorithm.can_answer(ways):
            if algorithm.fixed_labels:
                raise UserError(f"{ways} classes, but {name} has a head for {trained}: at most so many")
            raise UserError(
                f"{ways} classes, but {name} learned one head for tasks of {trained}: give {trained}, or take an "
                "algorithm that makes a head for every task, as protonet or r2d2"
            )
        if ways == algorithm.kind.outputs("test"):
            return algorithm
        return self._trained.algorithm(Classification(ways, trained))

    def _refuse_shots(self, classes: NDArray[Any], codes: Tensor) -> None:
        if len(classes) < 2:
            raise UserError(f"{len(codes)} images of {len(classes)} class: at least 2 classes are needed")
        shots = codes.bincount()
        if self._algorithm.even_shots and shots.min() < shots.max():
            few, many = (classes[int(place)] for place in (shots.argmin(), shots.argmax()))
            raise UserError(
                f"{shots.min()} images of {few} and {shots.max()} of {many}: {type(self._algorithm).__name__} needs as "
                "many of each class"
            )


@final
class FewShotRegressor:
    """Learns a function from a few of its points, with what a checkpoint has learned about learning."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._algorithm = trained.algorithm(Regression(trained.outputs))
        self._task: Task | None = None
        self._flat = False

    def __repr__(self) -> str:
        """The algorithm and where its weights are from."""
        return f"{type(self).__name__}({type(self._algorithm).__name__}, {self._trained.path})"

    def fit(self, x: Any, y: Any) -> "FewShotRegressor":
        """Learns from points: x (M, inputs) and y (M, outputs), of one input or output also (M,)."""
        inputs = read_numbers(x, self._trained.input_shape, "x")
        targets = read_numbers(y, (self._trained.outputs,), "y")
        if len(inputs) != len(targets):
            raise UserError(f"{len(inputs)} x and {len(targets)} y: every x needs one y")
        self._task = self._trained.learn(self._algorithm, inputs, targets)
        self._flat = np.ndim(y) == 1
        return self

    def predict(self, x: Any) -> NDArray[np.float32]:
        """The function at other points: (M, outputs), or (M,) where y was."""
        if self._task is None:
            raise UserError("predict before fit: first fit(x, y)")
        found = self._task.answer(read_numbers(x, self._trained.input_shape, "x")).numpy()
        return found[:, 0] if self._flat else found


def load(
    path: str | Path, *, device: str | torch.device = "cpu", trust: Sequence[str] = (), transductive: bool = False
) -> FewShotClassifier | FewShotRegressor:
    """What `fewshot.load` does."""
    trained = Trained(path, device, trust, transductive)
    return FewShotClassifier(trained) if "n_way" in trained.cfg.data else FewShotRegressor(trained)


def _available(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device={device} cannot be used here ({str(error).splitlines()[0]})") from error
