"""How far a least-squares fit may leave its anchor: the ridge, chosen by two-fold cross-validation from moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from rankfold.linalg.cross_moments import CrossMoments
from rankfold.linalg.decompositions import checked, eigh

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the inputs
STANDARD = 1e-3  # where nothing can be held out


@dataclass(frozen=True)
class Ridge:
    """``value`` in units of the Gram matrix. Squared errors of one row, on rows that were fitted and on others.

    The latter is None where there was one fold only.
    """

    value: float
    fitted: float
    held_out: float | None


def anchored_path(gram: Tensor, cross: Tensor, anchor: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """argmin tr[Z G Zᵀ − 2 Z B] + μ ‖Z − A‖² for every μ of ``ridges``: weights (…, m, n), float64.

    ``gram`` G (…, n, n), ``cross`` B (…, n, m), ``anchor`` A (…, m, n); directions in which the data say nothing are
    left as the anchor has them. Cost: for each ridge one Cholesky factorisation, n³/3; where that fails (no ridge on
    singular moments) one eigendecomposition.
    """
    gram, anchor = checked(gram), checked(anchor)
    pull = checked(cross) - gram @ anchor.mT
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    path, spectrum = [], None
    for ridge in ridges:
        root, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        if not bool(failed.any()):
            path.append(anchor + torch.cholesky_solve(pull, root).mT)
            continue
        values, vectors = spectrum = spectrum or eigh(gram)
        damped = values + ridge
        usable = damped > 1e-12 * values[..., :1]
        scale = torch.where(usable, 1 / torch.where(usable, damped, torch.ones_like(damped)), 0.0)
        path.append(anchor + (vectors @ (scale.unsqueeze(-1) * (vectors.mT @ pull))).mT)
    return path


def squared_error(weight: Tensor, moments: CrossMoments, metric: Tensor | None = None) -> float:
    """Mean of (t − Z x − free bias)ᵀ D (t − Z x − free bias) over the rows; D diagonal (…, m), ones if None.

    ``weight`` Z (…, m, n). At least 0; of an error far below 1e-15 of the targets' energy no digit is right.
    """
    weight = weight.double()
    fitted = (weight * (weight @ moments.gram - 2 * moments.cross.mT)).sum(-1)
    by_output = (moments.energy + fitted).clamp_min(0)
    return float((by_output if metric is None else by_output * metric).sum())


def choose_ridge(
    folds: Sequence[CrossMoments], anchor: Tensor, metric: Tensor | None = None, ridges: Sequence[float] = RIDGES
) -> Ridge:
    """The ridge with which a fit on one fold errs least on the other; of such as differ by less than a thousandth of
    that error, or by rounding, the one nearest to ``STANDARD``.

    ``metric``: diagonal weights of the outputs (…, m). With one fold (or an empty one) it is ``STANDARD``, unchecked.
    Cost: one Cholesky factorisation of size n for each fold and ridge.
    """
    known = [fold for fold in folds if fold.count]
    scale = [float(fold.gram.diagonal(dim1=-2, dim2=-1).mean()) for fold in known]
    if len(known) < 2:
        value = STANDARD * (scale[0] if scale else 0.0)
        fit = anchored_path(known[0].gram, known[0].cross, anchor, [value])[0] if known else anchor
        return Ridge(value, squared_error(fit, known[0], metric) if known else 0.0, None)
    unit = sum(scale) / len(scale)
    values = [ridge * unit for ridge in ridges]
    fitted, held_out = [0.0] * len(values), [0.0] * len(values)
    for fold, other in ((known[0], known[1]), (known[1], known[0])):
        for i, weight in enumerate(anchored_path(fold.gram, fold.cross, anchor, values)):
            fitted[i] += squared_error(weight, fold, metric) / 2
            held_out[i] += squared_error(weight, other, metric) / 2
    energy = sum(float(fold.energy.sum()) for fold in known)
    enough = 1.001 * min(held_out) + 1e-9 * energy
    usable = [i for i in range(len(values)) if held_out[i] <= enough]
    best = min(usable, key=lambda i: abs(log(ridges[i] / STANDARD)))
    return Ridge(values[best], fitted[best], held_out[best])
