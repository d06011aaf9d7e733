"""Says how well a meta-trained learner learns classes it has never seen.

python evaluate.py ckpt_path=RUN/checkpoints/best.ckpt        mean ± 95 % interval over 1000 test episodes
python evaluate.py ckpt_path=… episodes=2000 algo.eval_inner_steps=10
python evaluate.py ckpt_path=… grid=default                   against way, shot and inner steps
python evaluate.py algo=nearest data=strokes                  what needs no training needs no checkpoint
"""

import sys

import hydra
from omegaconf import DictConfig

from fewshot.checkpoints import recall
from fewshot.errors import one_line_errors
from fewshot.start import agree_on_start
from fewshot.usage import answer_help


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs one evaluation."""
    from fewshot.runs import evaluate  # torch and Lightning load here, so that --help and --cfg answer at once

    with one_line_errors():
        evaluate(cfg)


if __name__ == "__main__":
    with one_line_errors():
        answer_help(sys.argv[1:], __doc__ or "", "evaluate")
        agree_on_start()
        sys.argv[1:] = recall(sys.argv[1:], resume=False)
        main()
