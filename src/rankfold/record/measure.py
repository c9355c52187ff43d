"""One matrix at one moment of a training: its spectrum, that of its update, and how far its subspaces moved."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankfold.linalg import NonFiniteError, NotConvergedError, svd
from rankfold.linalg.manifold.subspaces import subspace_distance
from rankfold.spectrum import Spectrum, rounding, spectrum

Subspaces = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Measurement:
    """``weight`` and ``update`` are None, and numbers NaN, where ``note`` says why there is none.

    ``extra``: what the recorder's probe said of this site, by column.
    """

    epoch: float
    weight: Spectrum | None
    update: Spectrum | None
    gap: float
    left_distance: float
    right_distance: float
    note: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)


def missing(epoch: float, note: str) -> Measurement:
    return Measurement(epoch, None, None, math.nan, math.nan, math.nan, note)


def measure(
    epoch: float, matrix: Tensor, start: Tensor, before: Subspaces | None, rank: int
) -> tuple[Measurement, Subspaces | None]:
    """Measure W(t) = ``matrix`` (m, n), or (groups, m, n), against W(0) = ``start`` of the same shape.

    ``before``: the leading subspaces, left (…, m, r) and right (…, n, r), of the measurement before this one; those of
    this one are returned for the next, r = min(rank, m, n). They are None, which ``note`` says, where W(t) has no r
    singular values above rounding (``rankfold.spectrum.rounding``): what is spanned then is arbitrary. Groups: spectra
    as in ``rankfold.spectrum``, the mean of the distances, the smallest gap (σ_r − σ_{r+1}) / σ_r.
    Weights that are not finite, or that no driver decomposes, give a measurement that says so.
    Cost: one singular value decomposition of W(t) with vectors, one of W(t) − W(0) without, in float64.
    """
    wide = matrix.shape[-2] < matrix.shape[-1]  # LAPACK takes up to four times as long for it as for its transpose
    try:
        u, s, vh = svd(matrix.mT if wide else matrix)
    except (NonFiniteError, NotConvergedError) as error:
        return missing(epoch, str(error)), None
    if wide:
        u, vh = vh.mT, u.mT
    m, n = matrix.shape[-2:]
    weight = Spectrum(s if s.ndim == 1 else s.square().sum(0).sqrt(), (m, n))
    update, notes = None, list[str]()
    try:
        update = spectrum(matrix.double() - start.double())
    except (NonFiniteError, NotConvergedError) as error:
        notes.append(f"update: {error}")
    rank = min(rank, m, n)
    gap, left, right, now = math.nan, math.nan, math.nan, None
    standing = int((s > rounding(s, (m, n), torch.finfo(matrix.dtype).eps)[..., None]).sum(-1).min())
    if standing < rank:
        notes.append(f"no gap and no distances: {standing} of {rank} singular values stand out of rounding")
    else:
        behind = s[..., rank] if rank < min(m, n) else torch.zeros_like(s[..., 0])
        gap = float((1 - behind / s[..., rank - 1]).min())
        rows = torch.contiguous_format  # a copy of its own: a view would keep all vectors
        now = u[..., :rank].clone(memory_format=rows), vh[..., :rank, :].mT.clone(memory_format=rows)
    if now is not None and before is not None:
        left, right = (float(subspace_distance(*pair).mean()) for pair in zip(before, now, strict=True))
    return Measurement(epoch, weight, update, gap, left, right, "; ".join(notes)), now
