"""Speed and memory of a meta-step, beside the same step as a plain loop over tasks.

python -m fewshot.bench
python -m fewshot.bench inner_steps=[1,3] tasks=8

Both take the same weights and the same tensors, in one process and in turn, so that a machine that slows
down slows both; their meta-gradients are checked to be equal first. Times are medians.
"""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call

from fewshot import engine
from fewshot.algorithms.maml import MAML
from fewshot.errors import UserError, one_line_errors
from fewshot.evaluation import git_commit, versions, write_json
from fewshot.inner_optimizers import Params
from fewshot.models.conv4 import Conv4
from fewshot.tasks import Classification, TaskBatch


class PlainConv4(nn.Module):
    """What anyone writes first: PyTorch's own layers in the usual order, on the parameters of a `Conv4`."""

    def __init__(self, model: Conv4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in list(model.body.children())[:-1]:
            assert isinstance(block, nn.Sequential)
            convolution, norm = block[0], block[1]
            plain = norm
            if isinstance(norm, nn.BatchNorm2d):
                plain = nn.BatchNorm2d(norm.num_features, track_running_stats=False)
                plain.weight, plain.bias = norm.weight, norm.bias
            layers += [convolution, plain, nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), model.head)

    def forward(self, x: Tensor) -> Tensor:
        """Images (M, C, H, W) -> logits (M, n_out)."""
        return self.layers(x)


def plain_loop(model: nn.Module, batch: TaskBatch, *, steps: int, lr: float, create_graph: bool) -> None:
    """One meta-step by `torch.autograd.grad`, one task after another; adds to `.grad` of the model."""
    loss = nn.functional.cross_entropy
    params: Params = dict(model.named_parameters())
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        fast = params
        for _ in range(steps):
            support_loss = loss(functional_call(model, fast, (support_x,)), support_y)
            gradients = torch.autograd.grad(support_loss, list(fast.values()), create_graph=create_graph)
            fast = {name: value - lr * g for (name, value), g in zip(fast.items(), gradients, strict=True)}
        (loss(functional_call(model, fast, (query_x,)), query_y) / len(batch.support_y)).backward()


@hydra.main(config_path="../conf", config_name="bench", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Prints a row per configuration and, last, the ratios; writes bench.json."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device)
    engine.keep_freed_memory()
    torch.manual_seed(cfg.seed)
    batch = _batch(cfg, device)
    rows = [_measure(cfg, batch, device, steps, order) for steps in cfg.inner_steps for order in (2, 1)]
    folder = Path(HydraConfig.get().runtime.output_dir)
    machine = {"device": _device_name(device), "threads": torch.get_num_threads(), "peak_rss_mb": _peak_mb(device)}
    write_json(folder / "bench.json", {"rows": rows, "machine": machine, "versions": versions(), "git": git_commit()})
    print(f"{machine['device']}, {machine['threads']} threads; peak memory {machine['peak_rss_mb']:.0f} MB for both")
    print(f"written: {folder / 'bench.json'}")
    for row in rows:
        order = "second order" if row["order"] == 2 else "first order"
        print(f"{order}, {device.type}: {row['ratio']:.2f} x the plain loop ({row['inner_steps']} inner steps)")


def _batch(cfg: DictConfig, device: torch.device) -> TaskBatch:
    """Random images and labels: what is in them does not change the time."""
    draw = torch.Generator().manual_seed(cfg.seed)
    tensors = []
    for per_class in (cfg.k_shot, cfg.q_query):
        shape = (cfg.tasks, cfg.n_way * per_class, 1, cfg.image_size, cfg.image_size)
        tensors += [torch.rand(shape, generator=draw), torch.arange(cfg.n_way).repeat(cfg.tasks, per_class)]
    return TaskBatch(*(tensor.to(device) for tensor in tensors))


def _measure(cfg: DictConfig, batch: TaskBatch, device: torch.device, steps: int, order: int) -> dict[str, Any]:
    model = instantiate(cfg.model, input_shape=(1, cfg.image_size, cfg.image_size), n_out=cfg.n_way).to(device)
    plain = PlainConv4(model)
    second = order == 2
    options = dict(inner_steps=steps, eval_inner_steps=steps, inner_lr=cfg.inner_lr, create_graph=second)
    algorithm = MAML(model, Classification(cfg.n_way), task_chunk=cfg.task_chunk, **options)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: engine.meta_backward(algorithm, batch),
        "loop": lambda: plain_loop(plain, batch, steps=steps, lr=cfg.inner_lr, create_graph=second),
    }
    _check_equal(model, sides)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(cfg.repeats):
        for name, step in sides.items():
            model.zero_grad()
            _synchronise(device)
            started = time.perf_counter()
            step()
            _synchronise(device)
            times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["loop"] / medians["ours"]
    spread = {name: f"{min(values):.0f}-{max(values):.0f}" for name, values in times.items()}
    print(
        f"order {order}, {steps} inner steps: ours {medians['ours']:.0f} ms ({spread['ours']}), "
        f"plain loop {medians['loop']:.0f} ms ({spread['loop']}), "
        f"{cfg.tasks / medians['ours'] * 1e3:.0f} tasks/s",
        flush=True,
    )
    return {"order": order, "inner_steps": steps, "ratio": ratio, "ms": times, "median_ms": medians}


def _check_equal(model: Conv4, sides: dict[str, Callable[[], Any]]) -> None:
    """Runs each side once, which warms it up, and compares the two meta-gradients."""
    gradients = {}
    for name, step in sides.items():
        model.zero_grad()
        step()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    difference = (gradients["ours"] - gradients["loop"]).norm() / gradients["loop"].norm()
    if not difference < 0.05:  # 32-bit rounding, amplified where a ReLU or a maximum switches
        raise UserError(f"the two meta-gradients differ by {difference:.1%}: what follows would compare nothing")
    print(f"meta-gradients agree to {difference:.1e} of their norm")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    with one_line_errors():
        main()
