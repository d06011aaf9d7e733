"""fewshot: few-shot and meta-learning on PyTorch Lightning and Hydra.

Import the rooms you need (`fewshot.inner_loop`, `fewshot.algorithms.maml`, …); nothing heavy is
imported here, so that `python train.py --help` answers at once.
"""

__version__ = "0.1.0"
