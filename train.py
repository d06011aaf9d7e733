"""Meta-trains a few-shot learner.

python train.py algo=maml aug=rotate                          Omniglot 5-way 1-shot
python train.py algo=fomaml data=strokes                      the embedded data set: no download
python train.py -m algo=maml,fomaml aug=none,rotate seed=1,2  a sweep
python train.py ckpt_path=RUN/checkpoints/last.ckpt           go on with a run
python train.py --cfg job                                     what would run
"""

import sys

import hydra
from omegaconf import DictConfig

from fewshot.checkpoints import recall
from fewshot.errors import one_line_errors
from fewshot.jobs import run_job
from fewshot.start import agree_on_start
from fewshot.usage import answer_help


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Runs one job; a sweeper gets the best validation value."""
    from fewshot.runs import train  # torch and Lightning load here, so that --help and --cfg answer at once

    with one_line_errors():
        return run_job(train, cfg)


if __name__ == "__main__":
    with one_line_errors():
        answer_help(sys.argv[1:], __doc__ or "", "train")
        agree_on_start()
        sys.argv[1:] = recall(sys.argv[1:], resume=True)
        main()
