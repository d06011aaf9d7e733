"""MAML and FO-MAML: learn an initialisation from which a few gradient steps learn a task."""

from fewshot.algorithms.gradient_based import GradientBased


class MAML(GradientBased):
    """Model-Agnostic Meta-Learning.

    C. Finn, P. Abbeel, S. Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
    ICML 2017. https://arxiv.org/abs/1703.03400

    The parameters are the start of gradient descent on the support loss of any task; meta-training
    moves them so that the loss on the task's queries, after those steps, is low. `create_graph` is the
    one difference between MAML (the meta-gradient passes through the inner steps) and FO-MAML (§5.2).

    Differs from the paper in that the inner loss is the mean over the support set, where the paper's code
    sums over it; all parameters adapt, batch-norm scale and shift included (`adapt_norm`), where that code
    adapts no batch-norm parameter; and pooling takes the place of strides (as in the networks of its
    successors).
    """
