"""The benchmark: one outer step of MAML, ours beside what else there is, on the same tensors in the same run."""
