"""The network of the field, and its layers with hand-written derivatives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import one_task, random_tasks, small_maml
from torch import Tensor, nn

from fewshot.errors import UserError
from fewshot.models.conv4 import Conv4
from fewshot.models.grey_convolution import GreyConv2d
from fewshot.models.norm_pool import BatchNormPoolReLU
from fewshot.models.normalization import BatchNorm, observed
from fewshot.models.pooling import MaxPool2x2
from fewshot.models.recurrent import LSTMCell


def test_parameter_count_of_the_literature() -> None:
    assert sum(p.numel() for p in Conv4((1, 28, 28), 5).parameters()) == 112_261


def derivatives(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Value, first and second derivatives of a scalar made from f."""
    value = f(*inputs)
    first = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((g**3).sum() for g in first), inputs)
    return [value, *first, *second]


def test_batch_norm_is_that_of_pytorch_up_to_the_second_derivative() -> None:
    torch.manual_seed(0)
    layer = BatchNorm(4).double()
    x, gamma, beta = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4, 5, 5), (4,), (4,)))

    def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,))

    def theirs(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, gamma, beta, training=True)

    for a, b in zip(derivatives(ours, x, gamma, beta), derivatives(theirs, x, gamma, beta), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert torch.autograd.gradgradcheck(ours, (x, gamma, beta))


@pytest.mark.parametrize("padding", [0, 1])
def test_the_convolution_of_grey_images_is_that_of_pytorch_up_to_the_second_derivative(padding: int) -> None:
    torch.manual_seed(0)
    layer = GreyConv2d(4, padding=padding).double()
    x = torch.randn(3, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    for a, b in zip(derivatives(ours, x, weight, bias), derivatives(theirs, x, weight, bias), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = torch.randn(5, 4, 1, 3, 3, dtype=torch.float64)
    for own, shared in ((weights, x), (weights, x.expand(5, *x.shape) + 1)):
        dims = (None if shared is x else 0, 0, None)
        torch.testing.assert_close(
            torch.vmap(ours, dims)(shared, own, bias), torch.vmap(theirs, dims)(shared, own, bias)
        )


def test_the_convolution_of_grey_images_in_half_precision() -> None:
    torch.manual_seed(0)
    layer, x = GreyConv2d(4, padding=1), torch.randn(3, 1, 7, 6)
    exact = layer(x)
    (gradient,) = torch.autograd.grad(exact.square().sum(), layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        (half,) = torch.autograd.grad(y.square().sum(), layer.weight)
    torch.testing.assert_close(y, exact)  # of 32 bits, as the layer after it computes
    torch.testing.assert_close(half, gradient, rtol=0.02, atol=0.02 * gradient.norm().item())
    rounded = layer.bfloat16()(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)


def test_batch_norm_of_a_constant_stays_finite() -> None:
    x = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    for value in derivatives(BatchNorm(3), x):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("side", [6, 7])
def test_pooling_is_that_of_pytorch_with_ties_and_up_to_the_second_derivative(side: int) -> None:
    # Few distinct values: most windows have several maxima, and the derivative belongs to one of them.
    x = torch.randint(4, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    for a, b in zip(derivatives(MaxPool2x2(), x), derivatives(lambda x: F.max_pool2d(x, 2), x), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(MaxPool2x2()(x), F.max_pool2d(x, 2))


def norm_pool_relu(layer: BatchNorm) -> Callable[..., Tensor]:
    return lambda x, gamma, beta: torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,))


def three_layers(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(F.batch_norm(x, None, None, gamma, beta, training=True), 2))


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("scales", [(0.5, 1.0, 2.0), (-0.7, 1.3, -2.0), (0.0, 1.0, -1.0)])
def test_norm_pool_and_relu_in_one_are_the_three_up_to_the_second_derivative(
    side: int, scales: tuple[float, ...]
) -> None:
    torch.manual_seed(0)
    layer = BatchNormPoolReLU(3).double()
    x, beta = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, side, side), (3,)))
    gamma = torch.tensor(scales, dtype=torch.float64, requires_grad=True)
    found, expected = derivatives(norm_pool_relu(layer), x, gamma, beta), derivatives(three_layers, x, gamma, beta)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), three_layers(x, layer.weight, layer.bias), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm_pool_relu(layer)(x, gamma, beta), expected[0], rtol=1e-12, atol=1e-12)


def test_norm_pool_and_relu_in_one_divide_ties_as_pytorch_does() -> None:
    # Few distinct values: most windows have several maxima, and the derivative belongs to the first of them.
    x = torch.randint(3, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    scales = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    shifts = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    both = (norm_pool_relu(BatchNormPoolReLU(3).double()), three_layers)
    for ours, theirs in zip(*(derivatives(f, x, scales, shifts) for f in both), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_norm_pool_and_relu_in_one_know_their_batch_and_take_the_statistics_of_others() -> None:
    x, layer = torch.randn(4, 3, 6, 6), BatchNormPoolReLU(3)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), observed(layer) as seen:
            layer(x)
        mean, variance = seen[""]
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))
    others = {"mean": torch.ones(3), "variance": torch.full((3,), 4.0)}
    expected = F.relu(F.max_pool2d((x - 1) / (4 + layer.eps) ** 0.5, 2))
    torch.testing.assert_close(torch.func.functional_call(layer, others, (x,)), expected)


@pytest.mark.parametrize("layer", [BatchNorm(3), MaxPool2x2(), BatchNormPoolReLU(3)])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_layer_vectorised_is_the_layer_on_each(layer: nn.Module, dim: int) -> None:
    x = torch.randn(4, 2, 3, 6, 6, dtype=torch.float64).movedim(0, dim).requires_grad_()
    layer = layer.double()
    together = derivatives(torch.vmap(layer, in_dims=dim), x)
    apart = derivatives(lambda x: torch.stack([layer(one) for one in x.unbind(dim)]), x)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)


def test_pooling_before_the_relu_changes_nothing() -> None:
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    usual, ours = (derivatives(f, x) for f in (lambda x: F.max_pool2d(F.relu(x), 2), lambda x: F.relu(MaxPool2x2()(x))))
    for a, b in zip(usual, ours, strict=True):
        assert torch.equal(a, b)


def test_whole_network_against_the_plain_one() -> None:
    torch.manual_seed(0)
    model = Conv4((1, 28, 28), 5).double()
    x = torch.rand(10, 1, 28, 28, dtype=torch.float64)
    expected = x
    for convolution, norm, *_ in list(model.body)[:-1]:
        expected = convolution(expected)
        expected = F.batch_norm(expected, None, None, norm.weight, norm.bias, training=True)
        expected = F.max_pool2d(F.relu(expected), 2)
    torch.testing.assert_close(model(x), model.head(expected.flatten(1)))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_train_and_eval_mode_agree_and_nothing_is_stored(norm: str) -> None:
    model, x = Conv4((1, 16, 16), 3, hidden=8, norm=norm), torch.rand(6, 1, 16, 16)
    assert not any(buffer.numel() for buffer in model.buffers())
    assert torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_inductive_or_transductive_as_the_result_will_say(norm: str) -> None:
    """Inductive: a query's answer stays when the other queries change. Transductive: it moves."""
    algorithm, task = small_maml(norm=norm), one_task(random_tasks())
    *_, fitted = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    together = algorithm.predict(fitted, task.query_x)
    others = algorithm.predict(fitted, torch.cat([task.query_x[:1], torch.rand_like(task.query_x[1:])]))
    alone = algorithm.predict(fitted, task.query_x[:1])
    shuffled = algorithm.predict(fitted, task.query_x.flip(0))
    torch.testing.assert_close(shuffled.flip(0), together)  # order says nothing, either way
    unmoved = torch.allclose(together[0], others[0]) and torch.allclose(together[0], alone[0])
    assert unmoved == (not algorithm.transductive)
    assert algorithm.transductive == (norm == "batch")


def test_the_backbone_has_second_derivatives() -> None:
    torch.manual_seed(0)
    model = Conv4((1, 16, 16), 2, hidden=8).double()
    x = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    names = ["body.0.0.weight", "head.bias"]

    def f(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    values = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradgradcheck(f, values)


def test_refusals() -> None:
    with pytest.raises(UserError, match="model.pooled=4 halves images so often: data.image_size=8 must be at least 16"):
        Conv4((1, 8, 8), 5)
    with pytest.raises(UserError, match="model.pooled=5 must be 0 to 4"):
        Conv4((1, 28, 28), 5, pooled=5)
    with pytest.raises(UserError, match="model.norm=instance is not one of"):
        Conv4((1, 28, 28), 5, norm="instance")
    with pytest.raises(UserError, match="divisible by 8, not 12"):
        Conv4((1, 28, 28), 5, hidden=12, norm="group")


def test_fewer_blocks_may_pool() -> None:
    model = Conv4((1, 28, 28), 5, hidden=8, pooled=2)
    assert model.map_shape == (8, 7, 7)
    assert model.body(torch.rand(2, 1, 28, 28)).shape == (2, 8 * 7 * 7)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 5)


def test_the_recurrent_cell_is_that_of_pytorch_and_can_be_vectorised() -> None:
    torch.manual_seed(0)
    ours, theirs = LSTMCell(3, 4), nn.LSTMCell(3, 4)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(5, 2, 3), (torch.randn(5, 2, 4), torch.randn(5, 2, 4))
    found = torch.vmap(ours)(x, state)
    for task in range(5):
        expected = theirs(x[task], (state[0][task], state[1][task]))
        torch.testing.assert_close(tuple(part[task] for part in found), expected)


def test_batch_norm_has_the_names_and_shapes_of_the_plain_one() -> None:
    """Checkpoints of a plain network load: names and shapes are those of nn.BatchNorm2d."""
    plain = nn.BatchNorm2d(8, track_running_stats=False).state_dict()
    assert {k: v.shape for k, v in BatchNorm(8).state_dict().items()} == {k: v.shape for k, v in plain.items()}


def test_blocks_of_four_widths() -> None:
    """The count of convolutions, scales and shifts, and head; and what comes out."""
    model = Conv4((1, 32, 32), 5, hidden=[2, 3, 4, 6])
    pairs = [(1, 2), (2, 3), (3, 4), (4, 6)]
    assert sum(p.numel() for p in model.parameters()) == sum(9 * i * o + 3 * o for i, o in pairs) + (6 * 4 + 1) * 5
    assert model.body(torch.rand(7, 1, 32, 32)).shape == (7, 6 * 2 * 2)
