"""Time, memory and arithmetic of a step."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds of a step."""

    median: float
    low: float
    high: float


def take_turns(sides: Mapping[str, Callable[[], Any]], *, repeats: int, seconds: float) -> dict[str, Timing]:
    """Times every side once in each of several rounds, so that a machine that slows down slows all of them.

    A turn begins with a step that does not count: the side before has left the caches, the allocator and threads of
    its own behind, and in training a step follows another of its kind.

    Args:
        sides: steps that have run once before.
        repeats: rounds.
        seconds: a side that was timed for so long in all sits the other rounds out.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, step in sides.items():
            if not times[name] or sum(times[name]) < 1e3 * seconds:
                step()
                synchronise()
                started = time.perf_counter()
                step()
                synchronise()
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: Timing(statistics.median(each), min(each), max(each)) for name, each in times.items()}


def matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a product of two square matrices, the best of a few: GFLOP/s."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        synchronise()
        started = time.perf_counter()
        a @ b
        synchronise()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def device_named(name: str) -> torch.device:
    """Of this name; "auto": the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
