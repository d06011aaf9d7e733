"""One table: every learner goes through the same properties. A new one is a new row."""

import copy
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from conftest import one_task, random_tasks
from torch import Tensor, nn

from fewshot import engine
from fewshot.algorithms.anil import ANIL
from fewshot.algorithms.base import Algorithm
from fewshot.algorithms.baselinepp import BaselinePlusPlus
from fewshot.algorithms.boil import BOIL
from fewshot.algorithms.cavia import CAVIA
from fewshot.algorithms.cnp import CNP
from fewshot.algorithms.embedding_based import EmbeddingBased
from fewshot.algorithms.imaml import IMAML
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.mamlpp import MAMLPlusPlus
from fewshot.algorithms.mann import MANN
from fewshot.algorithms.matchingnet import MatchingNet
from fewshot.algorithms.metaoptnet import MetaOptNet
from fewshot.algorithms.metasgd import MetaSGD
from fewshot.algorithms.protomaml import ProtoMAML
from fewshot.algorithms.protonet import ProtoNet
from fewshot.algorithms.r2d2 import R2D2
from fewshot.algorithms.relationnet import RelationNet
from fewshot.algorithms.reptile import Reptile
from fewshot.algorithms.snail import SNAIL
from fewshot.algorithms.transfer import Transfer
from fewshot.errors import UserError
from fewshot.inner_loop import gradient_descent
from fewshot.inner_optimizers import SGD, Params
from fewshot.models.conv4 import Conv4
from fewshot.models.mlp import MLP
from fewshot.models.running_statistics import RunningStatistics
from fewshot.tasks import Classification, TaskBatch

Names = Callable[[str], bool]
KIND = Classification(3)


class Row(NamedTuple):
    """What is to be known of a learner to test it."""

    make: Callable[[nn.Module], Algorithm]
    learns: Names = lambda name: True  # the parameters that the meta-gradient reaches
    adapts: Names | None = lambda name: name.startswith("model.")  # those that a task changes; None: by no gradient
    exact: bool = True  # the meta-gradient is the derivative of the meta-loss
    pooled: int = 4  # of the network


def steps(inner: int = 2, lr: float = 0.1) -> dict:
    return {"inner_steps": inner, "eval_inner_steps": inner, "inner_lr": lr}


def head(name: str) -> bool:
    return name.startswith("model.head.")


def normal(name: str) -> bool:
    """A scale or shift of a normalisation layer of the network."""
    return re.match(r"model\.body\.\d\.1\.", name) is not None


def norm_of(model: nn.Module) -> str:
    return "batch" if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) else "none"


ROWS = {
    "maml": Row(lambda m: MAML(m, KIND, create_graph=True, **steps())),
    "fomaml": Row(lambda m: MAML(m, KIND, create_graph=False, **steps()), exact=False),
    "maml, norms kept": Row(
        lambda m: MAML(m, KIND, create_graph=True, adapt_norm=False, **steps()),
        adapts=lambda name: not normal(name),
    ),
    "anil": Row(lambda m: ANIL(m, KIND, create_graph=True, **steps()), adapts=head),
    "boil": Row(lambda m: BOIL(m, KIND, create_graph=True, **steps()), adapts=lambda n: not head(n)),
    "metasgd": Row(lambda m: MetaSGD(m, KIND, create_graph=True, **steps())),
    "mamlpp": Row(
        lambda m: MAMLPlusPlus(
            m, KIND, create_graph=True, multi_step_until=9, second_order_from=0, running_momentum=0.1, **steps()
        ),
        learns=lambda name: not normal(name),  # each step has its own in their place
        adapts=lambda name: name.startswith("model.") and not normal(name),
    ),
    "protomaml": Row(lambda m: ProtoMAML(m, KIND, create_graph=True, **steps(lr=0.01))),
    "cavia": Row(
        lambda m: CAVIA(m, KIND, create_graph=True, context=4, layer="body.2.1", **steps()),
        adapts=lambda name: name == "context",
    ),
    "imaml": Row(
        lambda m: IMAML(m, KIND, regularization=200.0, cg_steps=15, **steps(inner=30, lr=0.004)),
    ),
    "reptile": Row(lambda m: Reptile(m, KIND, inner_batch=5, **steps()), exact=False),
    "r2d2": Row(lambda m: R2D2(m, KIND, regularization=1.0, scale=5.0), learns=lambda n: n != "shift", adapts=None),
    "metaoptnet": Row(lambda m: MetaOptNet(m, KIND, cost=0.1, solver_steps=25), adapts=None),
    "protonet": Row(lambda m: ProtoNet(m, KIND), adapts=None),
    "matchingnet": Row(lambda m: MatchingNet(m, KIND, scale=5.0), adapts=None),
    "matchingnet, in context": Row(lambda m: MatchingNet(m, KIND, scale=5.0, processing_steps=2), adapts=None),
    "relationnet": Row(lambda m: RelationNet(m, KIND, hidden=4, norm=norm_of(m)), adapts=None, pooled=2),
    **{
        f"mann, {memory}": Row(
            lambda m, memory=memory: MANN(m, KIND, memory=memory, slots=6, width=5, read_heads=2, hidden=7), adapts=None
        )
        for memory in ("lrua", "ntm", "dnc")
    },
    "snail": Row(lambda m: SNAIL(m, KIND, k_shot=2, filters=3, keys=[4, 5, 6], values=[3, 4, 5]), adapts=None),
    "cnp": Row(lambda m: CNP(m, KIND, code=4, encoder=[5], decoder=[6]), adapts=None),
    "transfer": Row(lambda m: Transfer(m, KIND, eval_inner_steps=2, inner_lr=0.1)),
    "baselinepp": Row(lambda m: BaselinePlusPlus(m, KIND, eval_inner_steps=5, inner_lr=0.1, scale=5.0), adapts=None),
}
ALL = pytest.mark.parametrize("name", ROWS)


def learner(name: str, norm: str = "batch") -> Algorithm:
    torch.manual_seed(0)
    return ROWS[name].make(Conv4((1, 16, 16), 3, hidden=8, norm=norm, pooled=ROWS[name].pooled)).double()


def dead(name: str) -> bool:
    """The bias of a convolution whose batch is normalised right after: its derivative is zero."""
    return name.replace("/", ".").endswith(".0.bias")


def gradients(algorithm: Algorithm, batch: TaskBatch) -> dict[str, Tensor]:
    algorithm.zero_grad()
    engine.meta_backward(algorithm, batch)
    return {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}


@ALL
def test_the_meta_gradient_reaches_what_it_should(name: str) -> None:
    found = gradients(learner(name), random_tasks())
    for parameter, value in learner(name).named_parameters():
        if not dead(parameter):
            reached = parameter in found and bool(found[parameter].abs().sum() > 1e-12)
            assert reached == ROWS[name].learns(parameter), parameter
            assert not reached or found[parameter].shape == value.shape


@ALL
def test_a_task_changes_what_it_should(name: str) -> None:
    """All else is bitwise what it was: ANIL's body, BOIL's head."""
    algorithm, row = learner(name), ROWS[name]
    if row.adapts is None:
        pytest.skip("fitted by a formula, or a head of its own")
    task = one_task(random_tasks())
    first, *_, last = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    for key in first:
        if not dead(key) and key not in ("weight", "bias") and not key.endswith((".mean", ".variance")):
            assert torch.equal(first[key], last[key]) != row.adapts(key), key


@ALL
@pytest.mark.parametrize("chunk", [None, 3])
def test_many_tasks_at_once_are_one_at_a_time(name: str, chunk: int | None) -> None:
    algorithm, batch = learner(name), random_tasks(4)
    params = dict(algorithm.named_parameters())
    outcomes = [algorithm.meta_loss(params, one_task(batch, task)) for task in range(4)]
    mean = torch.stack([outcome.loss for outcome in outcomes]).mean()
    learned = {key: value for key, value in params.items() if value.requires_grad}
    expected = torch.autograd.grad(mean, list(learned.values()), allow_unused=True)
    algorithm.task_chunk = chunk
    found = gradients(algorithm, batch)
    for parameter, value in zip(learned, expected, strict=True):
        assert (parameter in found) == (value is not None)
        if value is not None:
            torch.testing.assert_close(found[parameter], value, rtol=1e-7, atol=1e-10)
    observed = engine.meta_backward(algorithm, batch).observed
    for key, value in observed.items():
        torch.testing.assert_close(value, torch.stack([outcome.observed[key] for outcome in outcomes]).mean(0))


@ALL
def test_evaluation_is_fit_then_predict_and_leaves_everything_as_it_was(name: str) -> None:
    algorithm, batch = learner(name), random_tasks(3)
    before = copy.deepcopy(algorithm.state_dict())
    every = engine.evaluate(algorithm, batch, every_state=True)
    assert every.shape == (2, 3, algorithm.test_inner_steps + 1)
    assert not every.requires_grad
    for place in range(3):
        task = one_task(batch, place)
        states = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
        for number, state in enumerate(states):
            expected = torch.stack(algorithm.judge(state, task)[:2])
            torch.testing.assert_close(every[:, place, number], expected.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(engine.evaluate(algorithm, batch), every[..., -1:])
    for key, value in algorithm.state_dict().items():
        assert torch.equal(value, before[key]), key


@ALL
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_it_is_inductive_or_transductive_as_it_says(name: str, norm: str) -> None:
    """Inductive: a query's answer stays when the other queries change, or go."""
    algorithm, task = learner(name, norm), one_task(random_tasks())
    *_, fitted = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    together = algorithm.predict(fitted, task.query_x)
    others = algorithm.predict(fitted, torch.cat([task.query_x[:1], torch.rand_like(task.query_x[1:])]))
    alone = algorithm.predict(fitted, task.query_x[:1])
    torch.testing.assert_close(algorithm.predict(fitted, task.query_x.flip(0)).flip(0), together)
    unmoved = torch.allclose(together[0], others[0]) and torch.allclose(together[0], alone[0])
    assert unmoved == (not algorithm.transductive)
    assert norm == "batch" or unmoved


@ALL
def test_on_a_gpu_queries_are_answered_for_all_tasks_at_once(name: str) -> None:
    """There `predict` is vectorised; here it is called task by task, and the two agree."""
    algorithm, batch = learner(name), random_tasks(3)
    fitted = engine._fit(algorithm, batch, "test", every_state=False)[-1]
    with torch.no_grad():
        torch.testing.assert_close(
            torch.vmap(algorithm.predict)(fitted, batch.query_x), engine._predict(algorithm, fitted, batch.query_x)
        )


@ALL
def test_the_order_of_the_support_set_matters_only_where_it_says_so(name: str) -> None:
    algorithm, task = learner(name, "group"), one_task(random_tasks())
    params, order = dict(algorithm.named_parameters()), torch.tensor([3, 5, 0, 2, 4, 1])
    *_, drawn = algorithm.fit(params, task.support_x, task.support_y)
    *_, mixed = algorithm.fit(params, task.support_x[order], task.support_y[order])
    answers = [algorithm.predict(fitted, task.query_x) for fitted in (drawn, mixed)]
    assert torch.allclose(*answers, rtol=1e-6, atol=1e-8) == (not algorithm.ordered)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.exact])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_meta_gradient_is_the_finite_difference(name: str, norm: str) -> None:
    if norm == "none" and name in ("mamlpp", "cavia", "maml, norms kept"):
        pytest.skip("about normalisation")
    if norm == "batch" and name == "imaml":
        pytest.skip("descent ends hopping across a ReLU: no smooth minimum, of which alone there is a derivative")
    algorithm, task = learner(name, norm), one_task(random_tasks())
    params = dict(algorithm.named_parameters())
    loss = algorithm.meta_loss(params, task).loss
    learned = {key: value for key, value in params.items() if value.requires_grad}
    found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    torch.manual_seed(1)
    direction = {key: torch.randn_like(value) for key, value in learned.items()}
    along = sum((g * direction[key]).sum().item() for key, g in zip(learned, found, strict=True) if g is not None)
    # A step so small that no ReLU or maximum switches on the way: there the meta-loss jumps.
    eps, losses = 1e-7, []
    for sign in (+1, -1):
        moved = {key: p.detach() + sign * eps * direction.get(key, 0) for key, p in params.items()}
        losses.append(algorithm.meta_loss(moved, task).loss.item())
    assert along == pytest.approx((losses[0] - losses[1]) / (2 * eps), rel=1e-4, abs=1e-5)


def test_anil_with_a_body_that_learns_nothing_would_be_found_out() -> None:
    """ANIL in first order: the body still learns, from the queries."""
    algorithm = learner("anil")
    algorithm.create_graph = False
    found = gradients(algorithm, random_tasks())
    assert all(found[key].abs().sum() > 0 for key in found if not dead(key))


def on_quadratics(steps: int, lr: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Losses that differ from step to step: what our loop gives, and the paper's terms up to the order of lr."""
    torch.manual_seed(0)
    hessians = [root @ root.mT for root in torch.randn(steps, 4, 4, dtype=torch.float64)]
    centres = torch.randn(steps, 4, dtype=torch.float64)

    def loss(params: Params, given: None, step: int) -> Tensor:
        away = params["w"] - centres[step]
        return 0.5 * away @ hessians[step] @ away

    def descend(count: int, create_graph: bool) -> tuple[Tensor, Params]:
        w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        rate = {"optimizer": SGD(), "lr": lambda given, step: lr}
        *_, end = gradient_descent(loss, {"w": w}, steps=count, create_graph=create_graph, **rate)
        return w, end

    found = {}
    for name, create_graph in (("maml", True), ("fomaml", False)):
        w, end = descend(steps - 1, create_graph)
        (found[name],) = torch.autograd.grad(loss(end, None, steps - 1), w)
    w, end = descend(steps, False)
    found["reptile"] = ((w - end["w"]) / lr).detach()

    gradients = [-hessians[step] @ centres[step] for step in range(steps)]  # at the start, w = 0
    last = sum(hessians[-1] @ gradient for gradient in gradients[:-1])
    others = sum(hessian @ gradients[-1] for hessian in hessians[:-1])
    pairs = sum(hessians[i] @ gradients[j] for i in range(steps) for j in range(i))
    expected = {
        "maml": gradients[-1] - lr * last - lr * others,
        "fomaml": gradients[-1] - lr * last,
        "reptile": torch.stack(gradients).sum(0) - lr * pairs,
    }
    return {name: (found[name], expected[name]) for name in found}


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile"])
def test_algebra_of_the_reptile_paper(name: str, steps: int) -> None:
    """Nichol et al. 2018, §5: the three differ in how they weigh the same terms; what is left is of order lr²."""
    errors = []
    for lr in (1e-3, 1e-4):
        found, expected = on_quadratics(steps, lr)[name]
        errors.append((found - expected).norm().item())
    assert errors[1] < errors[0] / 50 or errors[0] < 1e-12
    apart = on_quadratics(steps, 1e-2)
    assert not torch.allclose(apart["maml"][0], apart["fomaml"][0], rtol=1e-3)


@pytest.mark.parametrize("inner_steps", [1, 2, 4])
def test_reptile_is_the_sum_of_the_gradients_taken(inner_steps: int) -> None:
    """With SGD, θ − φ = lr (g₁ + … + g_k); with one step it is joint training."""
    torch.manual_seed(0)
    algorithm = Reptile(Conv4((1, 16, 16), 3, hidden=8), KIND, **steps(inner_steps)).double()
    task = one_task(random_tasks())
    images, labels = torch.cat([task.support_x, task.query_x]), torch.cat([task.support_y, task.query_y])
    found = gradients(algorithm, TaskBatch(*(tensor[None] for tensor in task)))
    model, total = copy.deepcopy(algorithm.model), {}
    for _ in range(inner_steps):
        grads = torch.autograd.grad(KIND.loss(model(images), labels), list(model.parameters()))
        for (key, parameter), grad in zip(model.named_parameters(), grads, strict=True):
            total[key] = total.get(key, 0) + 0.1 * grad
            parameter.data -= 0.1 * grad
    for key, value in total.items():
        torch.testing.assert_close(found[f"model.{key}"], value, rtol=1e-7, atol=1e-12)


def test_serial_reptile_is_a_meta_batch_of_one() -> None:
    """φ ← φ + ε (φ̃ − φ), task after task, with outer SGD of step size ε."""
    algorithm = learner("reptile")
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.25)
    expected = {key: value.detach().clone() for key, value in algorithm.named_parameters()}
    for seed in (0, 1):
        batch = random_tasks(1, seed=seed)
        every = one_task(batch).all_as_queries()
        *_, trained = algorithm.fit(expected, every.query_x, every.query_y, stage="train")
        expected = {key: value + 0.25 * (trained[key] - value) for key, value in expected.items()}
        optimizer.zero_grad()
        engine.meta_backward(algorithm, batch)
        optimizer.step()
    for key, value in algorithm.named_parameters():
        torch.testing.assert_close(value.detach(), expected[key], rtol=1e-9, atol=1e-12)


def test_reptile_sees_all_images_in_turn() -> None:
    algorithm = learner("reptile")
    seen = [algorithm.examples(step, 12, "train") for step in range(5)]
    assert sorted(place for batch in seen for place in batch)[:4] == [0, 0, 0, 1]
    assert {place for batch in seen[:3] for place in batch} == set(range(12))
    assert algorithm.examples(0, 12, "val") == slice(None)


def test_imaml_solves_for_the_implicit_gradient() -> None:
    """On a quadratic support loss the solution and its derivative are known: (I + H/λ)⁻¹."""
    from fewshot.algorithms.imaml import conjugate_gradients

    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = torch.eye(6, dtype=torch.float64) + root @ root.mT / 2.0
    right = torch.randn(6, dtype=torch.float64)

    def product(vector: Params) -> Params:
        flat = matrix @ torch.cat([vector["a"], vector["b"]])
        return {"a": flat[:2], "b": flat[2:]}

    found = conjugate_gradients(product, {"a": right[:2], "b": right[2:]}, 6)
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), torch.linalg.solve(matrix, right))
    again = conjugate_gradients(product, {"a": right[:2], "b": right[2:]}, 40)
    torch.testing.assert_close(torch.cat([again["a"], again["b"]]), torch.linalg.solve(matrix, right))


def test_ridge_regression_is_that_of_the_other_system() -> None:
    from fewshot.algorithms.r2d2 import ridge

    torch.manual_seed(0)
    for images, size in ((5, 9), (9, 5)):
        x, y = torch.randn(images, size, dtype=torch.float64), torch.randn(images, 3, dtype=torch.float64)
        penalty = torch.tensor(0.7, dtype=torch.float64)
        expected = torch.linalg.solve(x.mT @ x + 0.7 * torch.eye(size, dtype=torch.float64), x.mT @ y)
        torch.testing.assert_close(ridge(x, y, penalty), expected)
        with torch.autocast("cpu", torch.bfloat16):
            half = ridge(x.bfloat16(), y.bfloat16(), penalty)
        torch.testing.assert_close(half.double(), expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("ways", "shots"), [(3, 1), (5, 2)])
def test_the_support_vector_machine_is_the_optimum(ways: int, shots: int) -> None:
    """Feasible, and as good as what SciPy's own solver finds for the same program."""
    from scipy.optimize import LinearConstraint, minimize

    from fewshot.algorithms.quadratic_program import solve_svm_dual

    torch.manual_seed(0)
    x = torch.randn(ways * shots, 8, dtype=torch.float64)
    targets = torch.eye(ways, dtype=torch.float64).repeat(shots, 1)
    gram, cost = x @ x.mT, 0.1
    alpha = solve_svm_dual(gram, targets, cost=cost, steps=20)
    assert (alpha <= cost * targets + 1e-7).all()
    assert alpha.sum(1).abs().max() < 1e-7

    def objective(flat) -> float:
        a = torch.as_tensor(flat).view(-1, ways)
        return (0.5 * (a * (gram @ a)).sum() - (a * targets).sum()).item()

    sums = torch.eye(len(x)).repeat_interleave(ways, 1).numpy()
    bounds = [(None, float(b)) for b in (cost * targets).flatten()]
    found = minimize(
        objective, torch.zeros(alpha.numel()).numpy(), bounds=bounds, constraints=LinearConstraint(sums, 0, 0)
    )
    assert objective(alpha.flatten()) == pytest.approx(found.fun, abs=1e-5)


def test_prototypes_give_the_distances_of_a_prototypical_network() -> None:
    algorithm, task = learner("protomaml"), one_task(random_tasks())
    first, *_ = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    support, query = algorithm.model(task.support_x), algorithm.model(task.query_x)
    centres = torch.stack([support[task.support_y == way].mean(0) for way in range(3)])
    distances = torch.cdist(query, centres).square()
    torch.testing.assert_close(algorithm.predict(first, task.query_x).log_softmax(1), (-distances).log_softmax(1))


def test_a_prototypical_network_is_the_start_of_protomaml() -> None:
    network, task = learner("protonet"), one_task(random_tasks())
    params = dict(network.named_parameters())
    (fitted,) = network.fit(params, task.support_x, task.support_y)
    support, query = network(task.support_x), network(task.query_x)
    centres = torch.stack([support[task.support_y == way].mean(0) for way in range(3)])
    expected = (-torch.cdist(query, centres).square()).log_softmax(1)
    torch.testing.assert_close(network.predict(fitted, task.query_x).log_softmax(1), expected)


def test_a_matching_network_attends_to_the_labels_of_what_is_alike() -> None:
    network, task = learner("matchingnet"), one_task(random_tasks())
    (fitted,) = network.fit(dict(network.named_parameters()), task.support_x, task.support_y)
    support, query = network(task.support_x), network(task.query_x)
    cosines = torch.cosine_similarity(query[:, None], support[None], dim=-1)
    probabilities = (5.0 * cosines).softmax(-1) @ torch.eye(3, dtype=torch.float64)[task.support_y]
    torch.testing.assert_close(network.predict(fitted, task.query_x).exp(), probabilities)


def test_full_context_is_a_bidirectional_reading_and_several_looks() -> None:
    """PyTorch's own LSTMs with the same weights give the same keys and queries."""
    network, task = learner("matchingnet, in context", "group"), one_task(random_tasks())
    params = dict(network.named_parameters())
    support, query = network(task.support_x), network(task.query_x)
    (fitted,) = network.fit(params, task.support_x, task.support_y)
    reader = nn.LSTM(support.shape[1], support.shape[1], bidirectional=True).double()
    for name, value in reader.named_parameters():
        cell = network.get_submodule("back" if name.endswith("_reverse") else "forth")
        value.data = cell.get_parameter(name.removesuffix("_reverse").removesuffix("_l0")).detach()
    forth, back = reader(support)[0].chunk(2, dim=1)
    torch.testing.assert_close(fitted.head.keys, support + forth + back)

    keys = fitted.head.keys
    looker = nn.LSTMCell(2 * support.shape[1], support.shape[1]).double()
    looker.load_state_dict(network.get_submodule("look").state_dict())
    hidden = cell = torch.zeros_like(query)
    for _ in range(2):
        read = torch.stack([torch.softmax(keys @ h, 0) @ keys for h in hidden])
        out, cell = looker(torch.cat([query, read], dim=1), (hidden, cell))
        hidden = out + query
    cosines = torch.cosine_similarity(hidden[:, None], keys[None], dim=-1)
    probabilities = (5.0 * cosines).softmax(-1) @ torch.eye(3, dtype=torch.float64)[task.support_y]
    torch.testing.assert_close(network.predict(fitted, task.query_x).exp(), probabilities)


def test_a_relation_network_learns_by_squared_errors() -> None:
    network, task = learner("relationnet"), one_task(random_tasks())
    outcome = network.meta_loss(dict(network.named_parameters()), task)
    (fitted,) = network.fit(dict(network.named_parameters()), task.support_x, task.support_y)
    relations = network.predict(fitted, task.query_x).sigmoid()
    wanted = torch.eye(3, dtype=torch.float64)[task.query_y]
    torch.testing.assert_close(outcome.loss, (relations - wanted).square().mean())


def test_refusals_of_the_metric_based() -> None:
    with pytest.raises(UserError, match="RelationNet halves maps twice, and these are 1×1: set model.pooled=2"):
        RelationNet(Conv4((1, 28, 28), 5), KIND, hidden=8, norm="batch")
    with pytest.raises(UserError, match="RelationNet needs a model that tells its map_shape"):
        RelationNet(MLP((1,), 3, hidden=[4]), KIND, hidden=8, norm="batch")
    with pytest.raises(UserError, match="algo.scale=0 must be positive"):
        MatchingNet(Conv4((1, 28, 28), 5), KIND, scale=0)
    with pytest.raises(UserError, match="algo.processing_steps=-1"):
        MatchingNet(Conv4((1, 28, 28), 5), KIND, scale=1, processing_steps=-1)
    with pytest.raises(UserError, match="algo.running_momentum=0 must be above 0"):
        ProtoNet(Conv4((1, 28, 28), 5), KIND, running_momentum=0)


def test_cavia_starts_from_the_network_as_it_is() -> None:
    algorithm, task = learner("cavia"), one_task(random_tasks())
    first, *_, last = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    torch.testing.assert_close(algorithm.predict(first, task.query_x), algorithm.model(task.query_x))
    assert not torch.allclose(algorithm.predict(last, task.query_x), algorithm.model(task.query_x))


def test_mamlpp_weighs_the_steps_by_a_schedule() -> None:
    algorithm = learner("mamlpp")
    algorithm.inner_steps, algorithm.multi_step_until = 5, 100
    for outer_step, last in ((0, 0.2), (50, 0.6), (99, 1 - 4 * 0.03 / 5), (100, 1.0)):
        algorithm.outer_step = outer_step
        weights = algorithm.step_weights()
        assert sum(weights) == pytest.approx(1)
        assert weights[-1] == pytest.approx(last)


def test_mamlpp_has_scales_and_shifts_of_its_own_for_every_step() -> None:
    algorithm, task = learner("mamlpp"), one_task(random_tasks())
    with torch.no_grad():
        for values in algorithm.norms.values():
            values.copy_(torch.randn_like(values))
    states = list(algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y))
    for row, state in enumerate(states):
        for key, values in algorithm.norms.items():
            assert torch.equal(state[key.replace("/", ".")], values[row])


def test_mamlpp_begins_in_first_order_if_asked() -> None:
    algorithm, batch = learner("mamlpp"), random_tasks()
    algorithm.second_order_from, algorithm.multi_step_until = 5, 0
    algorithm.outer_step = 4
    first = gradients(algorithm, batch)
    algorithm.outer_step = 5
    second = gradients(algorithm, batch)
    algorithm.create_graph, algorithm.outer_step = False, 5
    assert all(torch.equal(first[key], value) for key, value in gradients(algorithm, batch).items())
    assert any(not torch.allclose(first[key], second[key]) for key in second)


def test_mamlpp_uses_the_statistics_that_it_keeps() -> None:
    """They move towards what training shows, step by step of their own, and evaluation goes by them alone."""
    algorithm, batch = learner("mamlpp"), random_tasks()
    task = one_task(batch)
    assert not algorithm.transductive
    before = engine.evaluate(algorithm, batch)
    algorithm.statistics.momentum = 1.0
    algorithm.absorb(engine.meta_backward(algorithm, batch).observed)
    assert not torch.allclose(engine.evaluate(algorithm, batch), before)
    *_, fitted = algorithm.fit(dict(algorithm.named_parameters()), task.support_x, task.support_y)
    alone = torch.cat([algorithm.predict(fitted, image[None]) for image in task.query_x])
    torch.testing.assert_close(alone, algorithm.predict(fitted, task.query_x))
    buffer = algorithm.statistics.get_buffer("model/body/0/1/mean")
    convolution = algorithm.model.body[0][0]
    expected = torch.stack([convolution(x).mean((0, 2, 3)) for x in batch.support_x]).mean(0)
    torch.testing.assert_close(buffer[0], expected.detach())
    assert not torch.allclose(buffer[0], buffer[2])


@pytest.mark.parametrize("name", [name for name in ROWS if isinstance(learner(name), EmbeddingBased)])
def test_batch_norm_of_embeddings_goes_by_the_batch_in_training_and_by_running_statistics_after(name: str) -> None:
    algorithm, batch = learner(name), random_tasks()
    assert algorithm.transductive
    algorithm.statistics = RunningStatistics(algorithm, 1.0).double()
    assert not algorithm.transductive
    params, task = dict(algorithm.named_parameters()), one_task(batch)
    outcome = engine.meta_backward(algorithm, batch)
    convolution = algorithm.body[0][0]
    both = torch.cat([batch.support_x, batch.query_x], dim=1)  # all images of a task are one batch
    expected = torch.stack([convolution(x).mean((0, 2, 3)) for x in both]).mean(0)
    torch.testing.assert_close(outcome.observed["body.0.1.mean"][0], expected.detach())
    before = engine.evaluate(algorithm, batch)
    algorithm.absorb(outcome.observed)
    assert not torch.allclose(engine.evaluate(algorithm, batch), before)
    *_, fitted = algorithm.fit(params, task.support_x, task.support_y)
    alone = torch.cat([algorithm.predict(fitted, image[None]) for image in task.query_x])
    torch.testing.assert_close(alone, algorithm.predict(fitted, task.query_x))
    again = engine.meta_backward(algorithm, batch).loss
    torch.testing.assert_close(again, outcome.loss)  # training does not go by them


def test_steps_beyond_those_trained_with_take_the_last_ones_values() -> None:
    algorithm, batch = learner("mamlpp"), random_tasks(2)
    algorithm.test_inner_steps = 6
    assert torch.isfinite(engine.evaluate(algorithm, batch, every_state=True)).all()
    params = dict(algorithm.named_parameters())
    assert algorithm.lr(params, 5) == algorithm.lr(params, 1)


def test_momentum_is_an_inner_optimizer_like_any_other() -> None:
    torch.manual_seed(0)
    model = Conv4((1, 16, 16), 3, hidden=8)
    options = steps(3) | {"create_graph": True}
    plain, heavy = (
        MAML(copy.deepcopy(model), KIND, inner_optimizer=o, **options).double() for o in (SGD(), SGD(momentum=0.9))
    )
    first, second = (engine.evaluate(algorithm, random_tasks(), every_state=True) for algorithm in (plain, heavy))
    torch.testing.assert_close(first[..., :2], second[..., :2])
    assert not torch.allclose(first[..., 2:], second[..., 2:])
