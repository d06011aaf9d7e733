"""Speed and memory of an outer step of MAML, beside the same step by other libraries.

python -m fewshot.bench
python -m fewshot.bench only=[omniglot_1_step] sides=[ours,loop]

All take the same weights and the same tensors, in one process and in turn, so that a machine that slows down
slows all of them; their meta-gradients are compared first, in 64 bits. A library that is not installed, or cannot do a
case, is named and left out. Times are medians.
"""

import contextlib
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewshot import engine
from fewshot.allocation import bytes_of, keep_freed_memory
from fewshot.augment import Augmentation
from fewshot.bench import peers
from fewshot.bench.agreement import ALLOWED, Agreement, Reference, meta_gradient
from fewshot.bench.case import Case
from fewshot.bench.drawing import drawing_ms
from fewshot.bench.figure import draw_growth
from fewshot.bench.measure import device_named, matmul_gflops, take_turns
from fewshot.bench.sides import OURS, PEERS, maml, step_of
from fewshot.build import build
from fewshot.errors import UserError, one_line_errors
from fewshot.evaluation import git_commit, versions, write_json
from fewshot.models.parts import BodyAndHead
from fewshot.precision import bfloat16_works
from fewshot.tasks import TaskBatch


@hydra.main(config_path="../../conf", config_name="bench", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Prints a row per side of every case and, last, the ratios; writes bench.json and growth.png."""
    with one_line_errors():
        benchmark(cfg)


def benchmark(cfg: DictConfig) -> None:
    """The whole run."""
    _refuse_unknown(cfg)
    device = device_named(cfg.device)
    keep_freed_memory()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as convolutions take by default
    bf16 = bfloat16_works(device.type)
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "matmul_gflops": matmul_gflops(device, torch.float32),
        "matmul_gflops_bf16": matmul_gflops(device, torch.bfloat16) if bf16 else None,
    }
    half = f"{machine['matmul_gflops_bf16']:.0f}" if bf16 else "none (an instruction is missing)"
    print(
        f"{machine['device']}, {machine['threads']} threads: products of matrices at {machine['matmul_gflops']:.0f} "
        f"GFLOP/s, in bfloat16 {half}",
        flush=True,
    )
    cases = [
        Case(name, create_graph=order == 2, **cfg.cases[name]) for name in cfg.only or cfg.cases for order in cfg.orders
    ]
    rows = [_measure(cfg, case, device, list(cfg.sides), machine) for case in cases]
    growth = [
        _measure(
            cfg, Case(f"{key}_{value}", **{**cfg.growth_from, key: value}), device, list(cfg.growth_sides), machine
        )
        | {"key": key, "value": value}
        for key, values in (cfg.growth if cfg.growth_sides else {}).items()
        for value in values
    ]
    record = {"rows": rows, "growth": growth, "machine": machine, "versions": versions(), "git": git_commit()}
    write_json(folder / "bench.json", record)
    if any(row["sides"] for row in growth):
        draw_growth(growth, folder / "growth.png")
    print(f"written: {folder / 'bench.json'}")
    for row in rows:
        _print_ratios(row, device)


def _refuse_unknown(cfg: DictConfig) -> None:
    for key, chosen, known in (
        ("sides", [*cfg.sides, *cfg.growth_sides], [*OURS, *PEERS]),
        ("only", cfg.only or [], list(cfg.cases)),
        ("orders", cfg.orders, [1, 2]),
    ):
        for name in chosen:
            if name not in known:
                raise UserError(f"{key}={name} is not one of {', '.join(map(str, known))}")


def _measure(
    cfg: DictConfig, case: Case, device: torch.device, names: list[str], machine: dict[str, Any]
) -> dict[str, Any]:
    """Checks, times and sizes up every side of a case."""
    torch.manual_seed(cfg.seed)
    network = case.network().to(device)
    batch = TaskBatch(*(tensor.to(device) for tensor in case.batch(cfg.seed)))
    steps, agreements, left_out = _prepare(case, network, batch, names, machine)
    flops = engine.count_flops(maml(case, network), batch)
    timings = take_turns(steps, repeats=cfg.repeats, seconds=cfg.seconds)
    order = "second" if case.create_graph else "first"
    print(f"\n{case.name}, {order} order: {flops / 1e9:.0f} GFLOP", flush=True)
    sides = {}
    for name, timing in timings.items():
        speed = flops / timing.median / 1e6
        peak = None if name == "jax" else bytes_of(steps[name], device)[1] / 1e6
        sides[name] = timing._asdict() | agreements[name]._asdict() | {"gflops": speed, "peak_mb": peak}
        print(
            f"  {name:18} {timing.median:8.1f} ms ({timing.low:.1f} to {timing.high:.1f})"
            f" {case.tasks / timing.median * 1e3:8.0f} tasks/s {speed:7.0f} GFLOP/s"
            f" {speed / (machine['matmul_gflops_bf16' if 'bf16' in name else 'matmul_gflops']):5.0%} of products"
            + ("" if peak is None else f" {peak:7.0f} MB")
            + (f"  gradient off by {off:.1%}" if (off := agreements[name].difference) > 1e-6 else ""),
            flush=True,
        )
    for name, why in left_out.items():
        print(f"  {name:18} left out: {why}", flush=True)
    augmentation: Augmentation = build(cfg.aug)
    drawing = drawing_ms(case, augmentation, device, repeats=cfg.repeats)
    print(
        f"  drawing the tasks  {drawing['plain']:8.1f} ms, {drawing['augmented']:.1f} ms with augmentation", flush=True
    )
    return {
        "case": case.__dict__,
        "order": 2 if case.create_graph else 1,
        "sides": sides,
        "left_out": left_out,
        "drawing_ms": drawing,
    }


def _prepare(
    case: Case, network: BodyAndHead, batch: TaskBatch, names: list[str], machine: dict[str, Any]
) -> tuple[dict[str, Callable[[], Any]], dict[str, Agreement], dict[str, str]]:
    """The steps that work and agree with the plain loop's, how well, and why the others are left out."""
    reference = Reference(case, network, batch)
    steps: dict[str, Callable[[], Any]] = {}
    agreements: dict[str, Agreement] = {}
    left_out: dict[str, str] = {}
    for name in names:
        if name in OURS and OURS[name][1] and not machine["matmul_gflops_bf16"]:
            left_out[name] = "no bfloat16 here"
            continue
        try:
            with _quiet():
                step = partial(meta_gradient, step_of(name, network, case), network, batch)
                agreement = reference.agreement(name, step())
        except (ImportError, UserError, peers.NotOffered) as error:
            left_out[name] = str(error).splitlines()[0]
            continue
        except Exception as error:  # a library that breaks is no reason to end the benchmark
            left_out[name] = f"broke: {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            continue
        if agreement.difference < ALLOWED:
            steps[name], agreements[name] = step, agreement
        else:
            left_out[name] = f"its meta-gradient differs by {agreement.difference:.1%} of the norm"
    return steps, agreements, left_out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What other libraries say of themselves when they are imported or compiled is not of this benchmark."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _print_ratios(row: dict[str, Any], device: torch.device) -> None:
    """Each of ours against the fastest of the others."""
    order = "second order" if row["order"] == 2 else "first order"
    others = {name: side["median"] for name, side in row["sides"].items() if name not in OURS}
    for name, side in row["sides"].items():
        if name in OURS and others:
            peer = min(others, key=lambda other: others[other])
            ratio, which = others[peer] / side["median"], f"{row['case']['name']}, {name}"
            print(f"{order}, {device.type}: {ratio:.2f} x the fastest peer ({peer}); {which}")


if __name__ == "__main__":
    main()
