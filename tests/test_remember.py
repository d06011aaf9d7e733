"""Copy and recall: the sequences are the papers', and a memory learns to answer them."""

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from fewshot.data.sequence_tasks import associative_recall, copy
from fewshot.errors import UserError
from fewshot.remember import remember


def test_copy_shows_vectors_then_a_mark_then_nothing() -> None:
    shown, answers = copy(torch.Generator().manual_seed(0), 3, bits=4, length=5)
    assert shown.shape == (11, 3, 5)
    assert torch.equal(shown[:5, :, :4], answers)
    assert torch.equal(shown[5], torch.eye(5)[4].expand(3, 5))
    assert not shown[6:].any()
    assert 0.2 < answers.mean() < 0.8


def test_recall_asks_for_the_item_after_the_one_that_is_shown() -> None:
    shown, answers = associative_recall(torch.Generator().manual_seed(0), 50, bits=6, items=4)
    assert shown.shape == (4 * 4 + 4 + 1 + 3, 50, 8)
    assert not shown[-3:].any()
    asked = shown[17:20, :, :6]
    for row in range(50):
        items = [shown[4 * i + 1 : 4 * i + 4, row, :6] for i in range(4)]
        (place,) = (i for i in range(3) if torch.equal(items[i], asked[:, row]))
        assert torch.equal(answers[:, row], items[place + 1])
    assert torch.equal(shown[:, 0, 6].nonzero().flatten(), torch.tensor([0, 4, 8, 12]))
    assert torch.equal(shown[:, 0, 7].nonzero().flatten(), torch.tensor([16, 20]))


def run(tmp_path, *overrides: str) -> float:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("remember", list(overrides), return_hydra_config=True)
    cfg.hydra.runtime.output_dir = str(tmp_path)
    cfg.hydra.job.num = 0
    HydraConfig.instance().set_config(cfg.copy())
    return remember(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))


@pytest.mark.parametrize("memory", ["lrua", "ntm", "dnc"])
def test_a_memory_learns_to_copy(tmp_path, memory: str) -> None:
    sizes = ("bits=3", "longest=2", "slots=8", "width=6", "hidden=32", "batch=16", "lr=0.01", "steps=500")
    assert run(tmp_path, f"memory={memory}", *sizes) < 0.1
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=sort", "task=sort is not one of copy, recall"),
        ("memory=tape", "memory=tape is not one of lrua, ntm, dnc"),
        ("shortest=0", "task=copy needs shortest=0 to be at least 1 and at most longest=10"),
        ("task=recall", "task=recall needs shortest=1 to be at least 2 and at most longest=10"),
        ("grad_clip=null", "grad_clip=None must be positive"),
        ("slots=0", "slots=0, width=20 and read_heads=1 must be at least 1"),
    ],
)
def test_refusals(tmp_path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, override)
