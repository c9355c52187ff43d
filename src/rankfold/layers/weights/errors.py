"""Writing into a weight that is computed: refused, with the remedy."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

REMEDY = (
    "is a product of factors that is stored nowhere, so what is written there would be lost: write into the factors "
    "(layer.down.weight and the other parameters of the layer), or make the change before compressing (merge adapters "
    "first)"
)


class FactoredWriteError(RuntimeError):
    """Something tried to write into the weight of a factored layer; says what, and the remedy."""


def refuse(weight: Tensor, name: str) -> NoReturn:
    sizes = "×".join(str(size) for size in weight.shape)
    written = name.removesuffix(".set")
    raise FactoredWriteError(f"{written} would write into the weight of a factored layer ({sizes}), which {REMEDY}")
