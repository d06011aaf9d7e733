"""What `--help` prints: the program's own description, every choice of every group, the configuration."""

import shutil
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

_CONF = Path(__file__).resolve().parents[1] / "conf"
_COMMANDS = ("@package", "python ", "make ")  # comments that say how, not what


def answer_help(arguments: list[str], description: str, config_name: str) -> None:
    """Prints the help and ends the program if it was asked for; otherwise does nothing.

    Hydra's own help copies all that is registered with it once for every group, a second's work where its
    sweepers are installed, and says of a choice only its name.
    """
    if not {"-h", "--help"} & set(arguments):
        return
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        cfg = compose(config_name, overrides)
    parts = [description.strip(), "Groups: GROUP=CHOICE\n\n" + _choices()]
    parts += ["Keys: KEY=VALUE\n\n" + OmegaConf.to_yaml(cfg).strip()]
    parts += ["Flags: -m (sweep), --cfg job (print the configuration, run nothing), --config-dir DIR (your own conf/)"]
    print("\n\n".join(parts))
    sys.exit(0)


def _choices() -> str:
    """A line per file of conf/GROUP: its name and what its first comment says."""
    width = shutil.get_terminal_size((120, 0)).columns
    lines = []
    for group in sorted(path for path in _CONF.rglob("*") if path.is_dir()):
        files = sorted(path for path in group.glob("*.yaml") if path.stem != "base")
        lines += [str(group.relative_to(_CONF))] if files else []
        for file in files:
            line = f"  {file.stem:<24} {_first_comment(file)}".rstrip()
            lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "\n".join(lines)


def _first_comment(file: Path) -> str:
    comments = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    told = [comment for comment in comments if not comment.startswith(_COMMANDS)]
    return next(iter(told or comments[-1:]), "")
