"""Trains a memory network on copying or on associative recall, and says how many bits it gets wrong.

python -m fewshot.remember task=copy memory=ntm
python -m fewshot.remember task=recall memory=dnc bits=6 shortest=2 longest=6

The last line and results.json give the share of wrong bits on 1000 fresh sequences of the longest kind.
"""

import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fewshot.allocation import keep_freed_memory
from fewshot.data.sequence_tasks import Sequences, associative_recall, copy
from fewshot.errors import UserError, one_line_errors
from fewshot.evaluation import git_commit, versions, write_json
from fewshot.memory.network import MEMORIES, MemoryNetwork

Draw = Callable[[torch.Generator, int, int], Sequences]  # (generator, batch, length)


@hydra.main(config_path="../conf", config_name="remember", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one job."""
    with one_line_errors():
        remember(cfg)


def remember(cfg: DictConfig) -> float:
    """Trains and tests; returns the share of wrong bits."""
    draw = drawer(cfg)
    keep_freed_memory()
    torch.manual_seed(cfg.seed)
    network, started = network_for(cfg, draw), time.perf_counter()
    learn(cfg, network, draw)
    return _report(cfg, network, draw, time.perf_counter() - started)


def drawer(cfg: DictConfig) -> Draw:
    """What draws the sequences of the task."""
    least = 2 if cfg.task == "recall" else 1  # of one item none is the next
    if not least <= cfg.shortest <= cfg.longest:
        raise UserError(
            f"task={cfg.task} needs shortest={cfg.shortest} to be at least {least} and at most longest={cfg.longest}"
        )
    for key in ("bits", "hidden", "batch", "steps", "report_every", "lr", "grad_clip"):
        if not (cfg[key] and cfg[key] > 0):
            raise UserError(f"{key}={cfg[key]} must be positive")
    if not 0 <= cfg.grow_steps <= cfg.steps:
        raise UserError(f"grow_steps={cfg.grow_steps} must be from 0 to steps={cfg.steps}")
    if cfg.task == "copy":
        return lambda generator, batch, length: copy(generator, batch, bits=cfg.bits, length=length)
    if cfg.task == "recall":
        return lambda generator, batch, length: associative_recall(generator, batch, bits=cfg.bits, items=length)
    raise UserError(f"task={cfg.task} is not one of copy, recall")


def network_for(cfg: DictConfig, draw: Draw) -> MemoryNetwork:
    """The controller and its memory, untrained."""
    if cfg.memory not in MEMORIES:
        raise UserError(f"memory={cfg.memory} is not one of {', '.join(MEMORIES)}")
    inputs = draw(torch.Generator(), 1, cfg.longest).shown.shape[-1]
    memory = MEMORIES[cfg.memory](cfg.slots, cfg.width, cfg.read_heads)
    return MemoryNetwork(inputs, cfg.bits, memory=memory, hidden=cfg.hidden)


def learn(cfg: DictConfig, network: MemoryNetwork, draw: Draw) -> None:
    """Trains on sequences of random length, and prints how many bits of the latest were wrong."""
    generator = torch.Generator().manual_seed(cfg.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.lr)
    started, wrong = time.perf_counter(), []
    for step in range(1, cfg.steps + 1):
        longest = longest_at(step, cfg)
        length = int(torch.randint(cfg.shortest, longest + 1, (), generator=generator))
        sequences = draw(generator, cfg.batch, length)
        logits = respond(network, sequences)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, sequences.answers).backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), cfg.grad_clip)
        optimizer.step()
        wrong.append(wrong_bits(logits, sequences))
        if step % cfg.report_every == 0:
            latest = sum(wrong[-cfg.report_every :]) / cfg.report_every
            print(
                f"step {step}/{cfg.steps}  wrong bits {latest:.2%}  {time.perf_counter() - started:.0f} s", flush=True
            )


def longest_at(step: int, cfg: DictConfig) -> int:
    """The longest sequences that are drawn at a step: of two lengths at first, after `grow_steps` of all.

    Easy first, with some of all that came before among it, after W. Zaremba, I. Sutskever: Learning to Execute. 2014.
    """
    if step > cfg.grow_steps:
        return cfg.longest
    first = min(cfg.shortest + 1, cfg.longest)
    return first + (cfg.longest - first) * step // (cfg.grow_steps + 1)


def respond(network: MemoryNetwork, sequences: Sequences) -> Tensor:
    """The network's answers at the steps where they are due: logits (due, B, bits)."""
    state, outputs = network.blank(sequences.shown[0]), []
    for shown in sequences.shown:
        output, state = network(shown, state)
        outputs.append(output)
    return torch.stack(outputs[-len(sequences.answers) :])


def wrong_bits(logits: Tensor, sequences: Sequences) -> float:
    """The share of bits that are answered wrongly."""
    return ((logits > 0) != (sequences.answers > 0.5)).float().mean().item()


@torch.no_grad()
def _report(cfg: DictConfig, network: MemoryNetwork, draw: Draw, seconds: float) -> float:
    sequences = draw(torch.Generator().manual_seed(cfg.seed + 1_000_000), 1000, cfg.longest)
    wrong = wrong_bits(respond(network, sequences), sequences)
    folder = Path(HydraConfig.get().runtime.output_dir)
    found = {"wrong_bits": wrong, "sequences": 1000, "train_seconds": seconds}
    config = OmegaConf.to_container(cfg, resolve=True)
    write_json(folder / "results.json", found | {"config": config, "git_commit": git_commit(), "versions": versions()})
    print(f"{cfg.task}, {cfg.memory}: {wrong:.2%} of the bits wrong, on 1000 sequences of length {cfg.longest}")
    return wrong


if __name__ == "__main__":
    with one_line_errors():
        main()
