"""Dynamical low-rank training: layers become left · core · right and are trained on the manifold of low rank."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from rankfold.induce.places import Make, put_
from rankfold.induce.places import choice as dlrt_choice  # noqa: F401  # by its own name
from rankfold.layers import DynamicLowRank
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.tangent import starting
from rankfold.sites import Site, unwrap
from rankfold.sites.find import Where

Model = TypeVar("Model", bound=nn.Module)


def dlrt_(model: Model, rank: int | None = None, where: Where | None = None) -> Model:
    """Put layers of low rank, to be trained by ``rankfold.Dlrt``, in place of linear layers and convolutions.

    Each weight W (m, n) becomes the product of its leading singular triples; training moves, adds and removes
    directions. **Build the optimizer afterwards**; a living one that holds a weight which is replaced is named in a
    ``UserWarning``. ``rankfold.fold_`` makes ordinary layers again, or, with ``keep=True``, factored ones. Left out are
    grouped and transposed convolutions, projections inside ``nn.MultiheadAttention``, tied and frozen weights,
    embeddings, and what ``rankfold.sites`` leaves out; ``rankfold.induce.dlrt_choice`` lists each with its reason.

    Args:
        model: changed in place.
        rank: at the start; half of min(m, n) by default, and never more.
        where: as in ``rankfold.sites``; without it the matrices whose smaller side is below 16 are left as they are.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: a rank below 1, a weight that is not finite or has no values yet,
            nothing that can be trained so.

    Cost: one SVD of each weight. Memory in training: r(m + n) + r² numbers in place of m·n for each layer.

    Source: Schotthöfer, Zangrando, Kusch, Ceruti, Tudisco 2022 (DLRT).
    Example:
        >>> net = rf.dlrt_(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rank=4)
        >>> net[0]
        DynamicLowRank(64, 32, rank=4)
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None for half of full rank, got {rank!r}")

    def make(site: Site, matrix: Tensor) -> Make:
        full = min(site.shape)
        try:
            triple = starting(matrix, min(rank or max(1, full // 2), full))
        except (NonFiniteError, RuntimeError) as error:
            raise ValueError(f"{site.title}: {error}; load or mend its weights first") from error

        def layer(ordinary: nn.Module, matrix: Tensor, transposed: bool) -> DynamicLowRank:
            parts = (part.to(matrix).contiguous() for part in (triple.left, triple.core, triple.right))
            return DynamicLowRank(ordinary, *parts, stored_transposed=transposed)

        return layer

    put_(model, where, "dlrt_", make)
    return model


def dynamic_layers(model: nn.Module) -> dict[str, DynamicLowRank]:
    """The layers of ``model`` in dynamical low-rank training, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, DynamicLowRank)}
