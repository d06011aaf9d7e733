"""The benchmark: one outer step of MAML, ours beside what else there is, on the same tensors in the same run."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages; read when PyTorch is loaded
