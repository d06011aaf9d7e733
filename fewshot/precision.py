"""Which precisions a run may compute in."""

import subprocess
import sys

from fewshot.errors import UserError


def refuse_half(precision: object) -> None:
    """Sixteen bits with a range too small for inner gradients; told before Lightning changes it without asking."""
    if precision in ("16-mixed", "16-true", "16", 16):
        raise UserError(
            f"trainer.precision={precision}: inner gradients are not scaled and underflow in half precision; "
            "use 32-true or bf16-mixed"
        )


def refuse_double(precision: object) -> None:
    """What is drawn has 32 bits, and a layer of 64 does not take it."""
    if precision in ("64-true", "64", 64):
        raise UserError(f"trainer.precision={precision}: images are drawn in 32 bits; use 32-true or bf16-mixed")


def refuse_missing_bfloat16(precision: object, device: str) -> None:
    """What would end the process without a word.

    Args:
        precision: of `lightning.Trainer`.
        device: "cpu" or "cuda".
    """
    if str(precision).startswith("bf16") and not bfloat16_works(device):
        raise UserError(
            f"trainer.precision={precision}: this machine's {device} cannot multiply matrices in bfloat16 (it may "
            "promise an instruction that it lacks: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 does without); use 32-true"
        )


def bfloat16_works(device: str) -> bool:
    """Whether a product in bfloat16 survives: some virtual processors promise instructions that they do not have,
    and the process dies of the first one. So another process tries."""
    probe = "import sys, torch; a = torch.ones(64, 64, device=sys.argv[1]).bfloat16(); (a @ a).sum().item()"
    return subprocess.run([sys.executable, "-c", probe, device], capture_output=True).returncode == 0
