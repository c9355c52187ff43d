"""At which weight decay directions of the data die in a chain of layers: the transition of the rank, predicted.

For a chain of L linear layers with penalty λ‖Θ‖² and the mean over samples of ‖f(x) − y‖² the penalty on the product W
is λ L ‖W‖_{2/L}^{2/L}: it thresholds. A direction with input variance c and target q = s/√c, s its covariance with the
target, survives iff λ < g_L q^{2−2/L} c^{1/L}; for an autoencoder, q² = c, iff λ < g_L c. Exact for global minima of
linear chains on data whose directions decouple; a good guide for tanh networks, a rough one for others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.linalg import eigh, singular_values
from rankfold.linalg.brief import brief


def chain_factor(layers: int) -> float:
    """g_L: 1 for L ≤ 2 (for one layer decay never kills a direction: infinite), .3969, .2722, … from 3 on."""
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if layers == 1:
        return math.inf
    p = 2 / layers
    u = 2 * (1 - p) / (2 - p)
    return 1.0 if layers == 2 else (2 * u - u * u) * u**-p / layers


def critical_decay(layers: int, variance: float, target: float | None = None) -> float:
    """λ_c of one direction with input ``variance`` c and ``target`` q (by default √c: an autoencoder).

    λ of λ‖Θ‖² beside the mean squared error summed over outputs; torch's ``weight_decay`` for it is 2λ.
    """
    if variance < 0 or (target is not None and target < 0):
        raise ValueError(f"variance and target must be at least 0, got {variance} and {target}")
    q = math.sqrt(variance) if target is None else target
    if q == 0 or variance == 0:
        return 0.0
    return chain_factor(layers) * q ** (2 - 2 / layers) * variance ** (1 / layers)


def shrunk(layers: int, variance: float, target: float, decay: float) -> float:
    """The singular value w ≥ 0 that minimises c w² − 2 q√c w + λ L w^{2/L}: what is left of a direction.

    By Newton's method from the value without decay; 0 where that is lower. One layer: ridge, q√c / (c + λ).
    """
    if layers == 1:
        return target * math.sqrt(variance) / (variance + decay)
    if decay >= critical_decay(layers, variance, target) or variance == 0:
        return 0.0
    s = target * math.sqrt(variance)
    w, p = s / variance, 2 / layers
    for _ in range(100):
        slope = 2 * variance * w - 2 * s + 2 * decay * w ** (p - 1)
        curvature = 2 * variance + 2 * decay * (p - 1) * w ** (p - 2)
        step = slope / curvature if curvature > 0 else 0.0
        w -= step
        if abs(step) <= 1e-14 * w:
            break
    return w


@dataclass(frozen=True, eq=False)
class Transitions:
    """``decays`` (k,) descending: the weight decay at which the k-th strongest direction of the data dies.

    In the units of torch's coupled ``weight_decay``; infinite for one layer, in which none dies. ``layers``: L of the
    chain; ``about`` says how far to trust it.
    """

    decays: Tensor
    layers: int
    about: str

    __repr__ = brief

    def rank_at(self, decay: float) -> int:
        """How many directions survive: the predicted rank of every layer of the chain."""
        return int((self.decays > decay).sum())

    def decay_for(self, rank: int) -> float:
        """The least weight decay at which at most ``rank`` directions survive; 0 if there are no more anyway."""
        return float(self.decays[rank]) if rank < len(self.decays) else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"decays": self.decays.tolist(), "layers": self.layers, "about": self.about}


def transitions(
    inputs: Tensor, targets: Tensor, layers: int, *, loss: str = "squared-error", cut: float = 1e-6
) -> Transitions:
    """The transitions of a chain of ``layers`` on ``inputs`` (N, d) and ``targets`` (N, c), both centred (biases).

    Singular values q and right vectors v of Q = C_yx C_xx^{−1/2} (of mean moments); the direction of v has the variance
    1 / ‖C_xx^{−1/2} v‖². Eigenvalues of C_xx below ``cut`` of the largest are left out. ``loss`` "squared-error" is
    summed over the c outputs, "mean-squared-error" averaged. "cross-entropy" and "binary-cross-entropy" are replaced by
    their second-order expansions at equal logits and at 0, (1/2c)‖f − c y‖² and (1/8c)‖f − 4 y‖² + constants, which
    makes λ_c an estimate. Cost O(N d² + d³). Raises ``ValueError`` for shapes that do not fit, or an unknown loss.
    """
    if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"inputs of shape (N, d) and targets of shape (N, c) were expected, got {tuple(inputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    outputs = targets.shape[1]
    # (by how much the targets are stretched, what the squared error summed over outputs is multiplied by)
    known = {
        "squared-error": (1.0, 1.0),
        "mean-squared-error": (1.0, 1 / outputs),
        "cross-entropy": (outputs, 1 / (2 * outputs)),
        "binary-cross-entropy": (4.0, 1 / (8 * outputs)),
    }
    if loss not in known:
        raise ValueError(f"loss must be one of {', '.join(known)}, got {loss!r}")
    x, y = inputs.double() - inputs.double().mean(0), targets.double() - targets.double().mean(0)
    stretch, factor = known[loss]
    y = stretch * y
    values, vectors = eigh(x.mT @ x / len(x))
    keep = values > cut * max(float(values.max()), 0.0)
    if not bool(keep.any()) or not bool(y.any()):
        return Transitions(
            torch.zeros(0, dtype=torch.float64), layers, "the data are constant, so that there is nothing to learn"
        )
    root = vectors[:, keep] / values[keep].sqrt()  # C^{−1/2} up to a rotation: d × k
    q, axes = _right(y.mT @ x @ root / len(x))
    variances = 1 / (root @ axes).square().sum(0)
    taught = (q.square() > 1e-12 * q.square().max()) & (variances > 0)  # before λ_c: that of one layer is infinite
    pairs = zip(variances[taught].tolist(), q[taught].tolist(), strict=True)
    found = torch.tensor([2 * factor * critical_decay(layers, c, s) for c, s in pairs], dtype=torch.float64)
    about = "exact for linear chains in which each direction is learned by itself"
    if loss.endswith("cross-entropy"):
        about = f"an estimate: {loss} to second order"
    return Transitions(found.sort(descending=True).values, layers, about)


def _right(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors (columns)."""
    _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return s, vh.mT


def threshold_product(inputs: Tensor, targets: Tensor, layers: int, decay: float) -> Tensor:
    """The global minimiser W (c, d) over products of ``layers`` matrices where directions decouple exactly.

    Of (1/N)‖X Wᵀ − Y‖² + ``decay`` · L ‖W‖_{2/L}^{2/L}, by ``shrunk`` on every singular direction of the least-squares
    solution in the eigenbasis of C_xx; exact where C_yx and C_xx share it (an autoencoder), else an approximation.
    """
    count = len(inputs)
    x, y = inputs.double(), targets.double()
    covariance, cross = x.mT @ x / count, y.mT @ x / count
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    variances = ((vh @ covariance) * vh).sum(1)
    kept = [
        shrunk(layers, float(c), float(v) / math.sqrt(c), decay) if c > 0 else 0.0
        for c, v in zip(variances, s, strict=True)
    ]
    return (u * torch.tensor(kept, dtype=torch.float64)) @ vh


def schatten(matrix: Tensor, layers: int) -> float:
    """L ‖W‖_{2/L}^{2/L}: the least Σ‖W_i‖² over products of L factors that give W."""
    return layers * float(singular_values(matrix).pow(2 / layers).sum())
