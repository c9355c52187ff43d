"""Updates whose values are all finite, or an error that names the layer."""

from __future__ import annotations

from torch import Tensor

from rankfold.linalg.errors import NonFiniteError

_ANEW = "train it anew with a lower learning rate, or leave this layer out"


def finite_pair(name: str, pair: tuple[Tensor, Tensor], remedy: str = _ANEW) -> tuple[Tensor, Tensor]:
    """The two matrices of the update of the layer ``name``; ``NonFiniteError`` where one holds NaN or infinity."""
    for matrix in pair:
        if not bool(matrix.isfinite().all()):
            bad = int((~matrix.isfinite()).sum())
            raise NonFiniteError(
                f"{name}: {bad} of {matrix.numel()} values of a matrix of its update are NaN or infinite: {remedy}"
            )
    return pair
