"""The twelve-layer network, and conv4 at 32 channels: sizes of the literature, tasks together as alone, any learner."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Compose, one_task, random_tasks
from torch import Tensor, nn

from fewshot import engine
from fewshot.algorithms.maml import MAML
from fewshot.build import build_learner
from fewshot.errors import UserError
from fewshot.models.conv4 import Conv4
from fewshot.models.resnet12 import ResNet12
from fewshot.tasks import Classification

TINY = (4, 6, 6, 8)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [((3, 84, 84), 32_901), ((3, 32, 32), 29_541)],  # of miniImageNet: MAML's network, by its paper's architecture
)
def test_conv4_of_32_channels_has_the_parameters_of_the_literature(
    compose_cfg: Compose, shape: tuple[int, ...], parameters: int
) -> None:
    hidden = compose_cfg("model=conv4_32", small=False).model.hidden
    side = shape[-1] // 16
    convolutions = 3 * 32 * 9 + 3 * 32 * 32 * 9 + 4 * 32
    assert size(Conv4(shape, 5, hidden=hidden)) == parameters == convolutions + 4 * 2 * 32 + (32 * side**2 + 1) * 5


@pytest.mark.parametrize(
    ("hidden", "parameters"), [((64, 160, 320, 640), 12_424_320), ((64, 128, 256, 512), 7_996_800)]
)
def test_resnet12_has_the_parameters_of_the_literature(hidden: tuple[int, ...], parameters: int) -> None:
    """Of MetaOptNet and of TADAM, "12.4 M" and "8.0 M" in later papers."""
    by_hand, width = 0, 3
    for channels in hidden:
        by_hand += 9 * channels * (width + 2 * channels) + width * channels + 4 * 2 * channels
        width = channels
    with torch.device("meta"):
        model = ResNet12((3, 84, 84), 5, hidden=hidden)
    assert size(model.body) == parameters == by_hand
    assert model.map_shape == (hidden[-1], 5, 5)
    assert model.head.in_features == 25 * hidden[-1]


def test_what_is_typed_is_metaoptnets(compose_cfg: Compose, fake_cifar) -> None:
    cfg = compose_cfg("data=cifar_fs", f"data.root={fake_cifar}", "model=resnet12", "algo=protonet", small=False)
    _, learner = build_learner(cfg)
    assert size(learner.algorithm.body) == 12_424_320


def plain(model: ResNet12, x: Tensor) -> Tensor:
    """The network written with PyTorch's functions, in the order of the paper."""

    def normalised(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        x = F.conv2d(x, convolution.weight, padding=convolution.padding)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

    for block in list(model.body)[:4]:
        first, second, third = (list(block.residual)[place : place + 2] for place in (0, 3, 6))
        y = F.leaky_relu(normalised(*first, x), 0.1)
        y = F.leaky_relu(normalised(*second, y), 0.1)
        y = normalised(*third, y) + normalised(*block.shortcut, x)
        x = F.max_pool2d(F.leaky_relu(y, 0.1), 2)
    return model.head(x.mean((2, 3)) if model.map_shape[1:] == (1, 1) else x.flatten(1))


@pytest.mark.parametrize("averaged", [False, True])
def test_the_whole_network_against_the_plain_one(averaged: bool) -> None:
    torch.manual_seed(0)
    model = ResNet12((3, 34, 34), 5, hidden=TINY, average=averaged).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # scales and shifts too
    x = torch.rand(6, 3, 34, 34, dtype=torch.float64)
    assert model.body(x).shape == (6, 8 if averaged else 8 * 2 * 2)
    torch.testing.assert_close(model(x), plain(model, x))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_train_and_eval_mode_agree_and_nothing_is_stored(norm: str) -> None:
    model, x = ResNet12((1, 16, 16), 3, hidden=(8, 8, 8, 16), norm=norm), torch.rand(6, 1, 16, 16)
    assert not any(buffer.numel() for buffer in model.buffers())
    assert torch.equal(model.train()(x), model.eval()(x))
    alone = torch.cat([model(image[None]) for image in x])
    assert torch.allclose(alone, model(x), atol=1e-5) == (norm != "batch")


def small_maml(*, norm: str = "batch", average: bool = False, create_graph: bool = True) -> MAML:
    torch.manual_seed(0)
    options = dict(inner_steps=2, eval_inner_steps=2, inner_lr=0.05, create_graph=create_graph)
    model = ResNet12((1, 16, 16), 3, hidden=(8, 8, 8, 8), norm=norm, average=average)
    return MAML(model, Classification(3), **options).double()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("averaged", [False, True])
def test_tasks_together_are_the_tasks_alone(norm: str, averaged: bool) -> None:
    algorithm, batch = small_maml(norm=norm, average=averaged), random_tasks()
    engine.meta_backward(algorithm, batch)
    together = {name: parameter.grad.clone() for name, parameter in algorithm.named_parameters()}
    algorithm.zero_grad()
    params = dict(algorithm.named_parameters())
    for task in range(4):
        (algorithm.meta_loss(params, one_task(batch, task)).loss / 4).backward()
    for name, parameter in algorithm.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    assert max(gradient.abs().max() for gradient in together.values()) > 1e-4


def test_the_meta_gradient_is_of_second_order() -> None:
    """That of finite differences, along a random direction; that of first order is another."""
    batch = random_tasks(2)
    slopes = []
    for create_graph in (True, False):
        algorithm = small_maml(create_graph=create_graph)
        engine.meta_backward(algorithm, batch)
        torch.manual_seed(1)
        direction = {name: torch.randn_like(parameter) for name, parameter in algorithm.named_parameters()}
        slopes.append(sum((p.grad * direction[name]).sum().item() for name, p in algorithm.named_parameters()))

    def loss(step: float) -> float:
        params = {name: p.detach() + step * direction[name] for name, p in algorithm.named_parameters()}
        with torch.enable_grad():
            return sum(algorithm.meta_loss(params, one_task(batch, task)).loss.item() for task in range(2)) / 2

    step = 1e-9  # small: where a maximum changes places the inner gradient, and so the loss, jumps
    assert slopes[0] == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-5)
    assert abs(slopes[1] - slopes[0]) > 0.01 * abs(slopes[0])


WITHOUT = ("own", "zero", "hausdorff")  # to be written; without a network
ALGOS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml") if path.stem not in WITHOUT)
OWN = {
    "cavia": ["algo.layer=body.2.residual.7"],
    "relationnet": ["data.image_size=64"],
    "reptile": ["algo.inner_steps=2", "algo.inner_batch=3", "data.q_query=1", "data.meta_batch_size=2"],
    "snail": ["algo.filters=8", "algo.keys=[8,8,8]", "algo.values=[8,8,8]"],
    "imaml": ["algo.inner_steps=2", "algo.cg_steps=2"],
    "mamlpp": ["algo.inner_steps=2", "algo.eval_inner_steps=2", "algo.running_momentum=0.1"],
    "nearest": ["algo.space=network"],
}


@pytest.mark.parametrize("algo", ALGOS)
def test_every_learner_takes_it(compose_cfg: Compose, algo: str) -> None:
    small = ("model=resnet12", "model.hidden=[8,8,8,8]", "data.meta_batch_size=2", "data.eval_q_query=1")
    few = ["algo.eval_inner_steps=1"] if "eval_inner_steps" in compose_cfg(f"algo={algo}").algo else []
    data, learner = build_learner(compose_cfg(f"algo={algo}", *small, *few, *OWN.get(algo, [])))
    if algo != "nearest":
        found = engine.meta_backward(learner.algorithm, data.task_batch("train", 0))
        assert torch.isfinite(found.loss).all()
        body = [p for name, p in learner.algorithm.named_parameters() if "residual" in name]
        assert len(body) >= 4 * 9
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in body)
    predictions = engine.predict(learner.algorithm, data.task_batch("val", 0))
    assert predictions.shape[-1] == 5
    assert torch.isfinite(predictions).all()


def test_refusals() -> None:
    with pytest.raises(UserError, match="model=resnet12 halves images four times: data.image_size=15 is below 16"):
        ResNet12((3, 15, 15), 5)
    with pytest.raises(UserError, match=r"model.hidden=\[64, 128, 256\] must be four numbers of at least 1"):
        ResNet12((3, 32, 32), 5, hidden=(64, 128, 256))
    with pytest.raises(UserError, match=r"model=resnet12 takes images \(C, H, W\), not inputs of shape \(1,\)"):
        ResNet12((1,), 1)
    with pytest.raises(UserError, match="model.norm=instance is not one of"):
        ResNet12((3, 32, 32), 5, hidden=TINY, norm="instance")
    with pytest.raises(UserError, match="model.norm=group needs model.hidden divisible by 8, not 4"):
        ResNet12((3, 32, 32), 5, hidden=TINY, norm="group")
