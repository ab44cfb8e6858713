"""What turns features into classes: two small modules that save without pickle and export.

:class:`Linear` is a matrix and an offset: what ridge, logistic regression and prototypes come to.
:class:`Memory` keeps features of images with the shares of the classes that label spreading gave
them, and asks the nearest ones, as an attention would. :class:`Product` is what both agree on.
"""

from __future__ import annotations

from torch import Tensor, nn

from deepcluster.files import check

ASKED = 10  # remembered images that say what a new one is
SHARPNESS = 1 / 0.03  # of the cosine, in the weights of those
FLOOR = 1e-3  # share of a class that none of them has


class Linear(nn.Module):
    """``features @ weight + offset``.

    Args:
        weight: ``(d, classes)``.
        offset: ``(classes,)``.
    """

    def __init__(self, weight: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.offset: Tensor
        self.width, self.classes = weight.shape
        self.register_buffer("weight", weight.float())
        self.register_buffer("offset", offset.float())

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` -> logits ``(b, classes)``."""
        return features @ self.weight + self.offset


class Memory(nn.Module):
    """The shares of the nearest remembered images, nearer ones counting more.

    Args:
        keys: ``(m, d)`` features of length 1.
        values: ``(m, classes)`` shares of the classes, rows that add up to 1.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys: Tensor
        self.values: Tensor
        (count, self.width), (_, self.classes) = keys.shape, values.shape
        self.asked = min(ASKED, count)
        self.register_buffer("keys", keys.float())
        self.register_buffer("values", values.float())

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` of length 1 -> logits ``(b, classes)``."""
        near = (features @ self.keys.T).topk(self.asked, dim=1)
        weights = (near.values * SHARPNESS).softmax(dim=1)  # (b, ASKED)
        shares = (weights[:, :, None] * self.values[near.indices]).sum(dim=1)
        return (shares + FLOOR).log()


class Product(nn.Module):
    """The product of the probabilities of a memory and of a linear head, not normalised.

    Args:
        keys: of the memory.
        values: of the memory.
        weight: of the linear head, ``(d, classes)``.
        offset: of the linear head.
    """

    def __init__(self, keys: Tensor, values: Tensor, weight: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.memory, self.linear = Memory(keys, values), Linear(weight, offset)
        self.width, self.classes = self.linear.width, self.linear.classes

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` of length 1 -> logits ``(b, classes)``."""
        spread = self.memory(features).log_softmax(dim=1)
        both: Tensor = spread + self.linear(features).log_softmax(dim=1)
        return both


Head = Linear | Memory | Product
KINDS: dict[str, type[Linear] | type[Memory] | type[Product]] = {
    "linear": Linear,
    "memory": Memory,
    "product": Product,
}


def kind_of(head: Head) -> str:
    """The name of a head's kind in KINDS."""
    return next(name for name, kind in KINDS.items() if type(head) is kind)


def restored(kind: str, tensors: dict[str, Tensor]) -> Head:
    """The head that these tensors, from its ``state_dict``, belong to.

    Raises:
        DamagedError: they do not go together.
    """
    head = KINDS[kind](**{name.rpartition(".")[2]: value for name, value in tensors.items()})
    linear = head.linear if isinstance(head, Product) else head
    memory = head.memory if isinstance(head, Product) else head
    together = True
    if isinstance(linear, Linear):
        together = linear.offset.shape == (head.classes,) and linear.width == head.width
    if isinstance(memory, Memory):
        together &= len(memory.keys) == len(memory.values) > 0
        together &= (memory.width, memory.classes) == (head.width, head.classes)
    check(together, "its numbers do not go together")
    return head
