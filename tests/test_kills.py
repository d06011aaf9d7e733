"""A run that is killed at random moments and started again ends as if it had never been stopped."""

import random
from pathlib import Path

from reliability import differences, killed_run, whole_run


def test_killed_and_started_again_it_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Twice here, thirty times in docs/reliability.md."""
    steps = 300
    whole_run(tmp_path / "whole", steps)
    lives = list(killed_run(tmp_path / "killed", steps, 2, random.Random(1), shortest=8.0, longest=12.0))
    assert len(lives) == 2
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
