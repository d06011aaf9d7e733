"""A network of two parts: a body that represents inputs, a head that is linear in what the body returns."""

from torch import Tensor, nn

from fewshot.errors import UserError


class BodyAndHead(nn.Module):
    """head(body(x)). What tells the parts apart (ANIL, BOIL, ProtoMAML, R2-D2, …) needs both by these names.

    A network of your own need not be one of these: two attributes `body` and `head` will do.

    Args:
        body: inputs (M, …) -> embeddings (M, D).
        head: embeddings (M, D) -> predictions (M, outputs).
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(M, …) -> (M, outputs)."""
        return self.head(self.body(x))


def parts(model: nn.Module, user: str) -> tuple[nn.Module, nn.Linear]:
    """The model's body and head.

    Args:
        user: the algorithm that needs them, for the error.
    """
    body, head = getattr(model, "body", None), getattr(model, "head", None)
    if not (isinstance(body, nn.Module) and isinstance(head, nn.Linear)):
        missing = "`body` (a module)" if not isinstance(body, nn.Module) else "`head` (a torch.nn.Linear)"
        raise UserError(f"{user} needs a model of two parts, and {type(model).__name__} has no {missing}")
    return body, head


def embedding_size(model: nn.Module, user: str) -> int:
    """D of the embeddings (M, D) that the model's body gives."""
    return parts(model, user)[1].in_features


def is_head(model: nn.Module, name: str, user: str) -> bool:
    """Whether the parameter `name` of the model belongs to its head."""
    parts(model, user)
    return name.startswith("head.")
