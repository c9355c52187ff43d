"""Dynamical low-rank training: layers become left · core · right and are trained on the manifold of low rank."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

from torch import Tensor, nn

from rankfold.induce.places import Make, put_
from rankfold.induce.places import choice as dlrt_choice  # noqa: F401  # by its own name
from rankfold.layers import DynamicLowRank, DynamicTucker
from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold import tangent, tucker
from rankfold.sites import Form, Site, unwrap
from rankfold.sites.wish import Where

Model = TypeVar("Model", bound=nn.Module)
Convolutions = Literal["matrix", "tucker"]


def dlrt_(
    model: Model, rank: int | None = None, where: Where | None = None, *, convolutions: Convolutions = "matrix"
) -> Model:
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
        convolutions: "matrix", outputs by patches; or "tucker", a kernel with an orthonormal basis along its outputs
            and one along its inputs, which ``fold_(…, keep=True)`` makes a ``TuckerConv``. There ``rank`` is that of
            the outputs, and the inputs keep the same share, as in the form ``tucker`` of plans; 1×1 convolutions stay
            matrices.

    Returns:
        ``model``.

    Raises:
        ValueError: before anything is changed: a rank below 1, a weight that is not finite or has no values yet,
            nothing that can be trained so.

    Cost: one SVD of each weight, two of a kernel in Tucker's form. Memory in training: r(m + n) + r² numbers in place
    of m·n for each layer.

    Source: Schotthöfer, Zangrando, Kusch, Ceruti, Tudisco 2022 (matrices); Zangrando, Schotthöfer, Ceruti, Kusch,
    Tudisco 2024 (Tucker).

    Example:
        >>> net = rf.dlrt_(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rank=4)
        >>> net[0]
        DynamicLowRank(64, 32, rank=4)
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None for half of full rank, got {rank!r}")

    if convolutions not in get_args(Convolutions):
        raise ValueError(f"convolutions must be one of {', '.join(get_args(Convolutions))}, got {convolutions!r}")

    def make(site: Site, matrix: Tensor) -> Make:
        full, conv = min(site.shape), site.layer.convolution
        begin = min(rank or max(1, full // 2), full)
        point: tangent.Triple | tucker.TuckerPoint
        try:
            if convolutions == "tucker" and conv is not None and conv.points > 1:
                ladder = tuple(_pair(site, at) for at in range(1, full + 1))
                kernel = matrix.reshape(conv.channels_out, conv.channels_in, *conv.kernel)
                point = tucker.starting(kernel, begin, ladder)
            else:
                point = tangent.starting(matrix, begin)
        except (NonFiniteError, RuntimeError) as error:
            raise ValueError(f"{site.title}: {error}: load or repair its weights first") from error

        def layer(ordinary: nn.Module, matrix: Tensor, transposed: bool) -> DynamicLowRank:
            left, core, right = (part.to(matrix).contiguous() for part in (point.left, point.core, point.right))
            if isinstance(point, tucker.TuckerPoint):
                return DynamicTucker(ordinary, left, core, right, point.ladder)
            return DynamicLowRank(ordinary, left, core, right, stored_transposed=transposed)

        return layer

    put_(model, where, "dlrt_", make)
    return model


def _pair(site: Site, rank: int) -> tuple[int, int]:
    p, q = Form.TUCKER.ranks_of(site.layer, rank)
    return p, q


def dynamic_layers(model: nn.Module) -> dict[str, DynamicLowRank]:
    """The layers of ``model`` in dynamical low-rank training, by name."""
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, DynamicLowRank)}
