"""The best low-rank replacement of a matrix on given data, at every rank: output principal components.

With outputs Y = X Wᵀ of a weight W (m outputs, n inputs), the rank-r matrix Z that minimises ‖X Wᵀ − X Zᵀ‖ is
Q Qᵀ W, Q the top r eigenvectors of YᵀY = W (XᵀX) Wᵀ, and its squared error is the sum of the eigenvalues left
out. This is theorem 3.1 of "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", X⁺(XWᵀ)_r,
without the inverse, and the same optimum as whitening by the input Gram matrix, which loses half the digits when
that matrix is ill-conditioned and fails when it is singular. Either second moment will do, and the eigenproblem is
always of the smaller side.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.brief import brief
from rankfold.linalg.decompositions import checked, eigh, few_rows
from rankfold.linalg.on_data.gram import mirror, upper_product

# singular values below this fraction of the largest are refined: their squares have lost half their digits
_SMALL = 1e-4


@dataclass(frozen=True, eq=False)
class Projection:
    """Ordered factors of a weight (…, m, n), k = min(m, n), valid for every rank at once. Made by `project`.

    `singular_values` (…, k): float64, descending, of the outputs: in units of the statistics, so for a *sum*
    over rows the error is that of all the rows together.
    """

    singular_values: Tensor
    vectors: Tensor  # (…, k, k) float64 eigenvectors in the coordinates of the smaller side
    _reduced: Tensor  # (…, k, n) the weight in those coordinates, in the dtype of the factors, like what follows
    _basis: Tensor | None  # (…, m, k) from those coordinates to the outputs, after dividing by the triangle
    _triangle: Tensor | None
    _metric: Tensor | None  # lower Cholesky factor (…, m, m), or square roots (…, m)
    _of_inputs: bool = True  # which side's second moment it was made from

    __repr__ = brief

    def errors_on(self, statistic: Tensor) -> Tensor:
        """The error of these very factors at every rank 0 … k on other data: (…, k + 1), float64, never rising.

        `statistic`: second moment of the other data, of the side and in the units that `project` was given. Taken about
        the mean of the data the factors were made from, it counts what their bias misses there too.
        Cost O(n²k) or O(m²k) multiplications, no decomposition.
        """
        moment = _moment_of(
            checked(statistic), self._reduced.double(), self._metric, self._basis, self._triangle, self._of_inputs
        )
        energies = (self.vectors * (moment @ self.vectors)).sum(-2).clamp_min(0)
        return tails(energies.sqrt())

    @property
    def errors(self) -> Tensor:
        """Error ‖X(W − Z)ᵀ‖ at every rank 0 … k: (…, k + 1), float64, summed from the values left out."""
        return tails(self.singular_values)

    def factors(self, rank: int | None = None) -> tuple[Tensor, Tensor]:
        """The optimal `left` (…, m, rank) and `right` (…, rank, n) of Z = left right, in the statistics' dtype.

        `left` has orthonormal columns and `right` = leftᵀ W; with an output metric D, leftᵀ D left = I and
        `right` = leftᵀ D W. The factors of a smaller rank are their first columns and rows; at rank k the
        product is W itself. Cost O(m k rank). Raises `ValueError` when the rank is not within 0 … k.
        """
        k = self.singular_values.shape[-1]
        rank = k if rank is None else rank
        if not 0 <= rank <= k:
            raise ValueError(f"rank must be from 0 to {k}, got {rank}")
        vectors = self.vectors[..., :rank].to(self._reduced.dtype)
        right = vectors.mT @ self._reduced
        if self._triangle is not None:
            vectors = torch.linalg.solve_triangular(self._triangle, vectors, upper=True)
        left = vectors if self._basis is None else self._basis @ vectors
        if self._metric is None:
            return left.contiguous(), right
        if self._metric.ndim == self._reduced.ndim - 1:
            return left / self._metric.unsqueeze(-1), right
        return torch.linalg.solve_triangular(self._metric.mT, left, upper=True), right


def tails(singular_values: Tensor) -> Tensor:
    """√(Σ_{i>r} σ_i²) for r = 0 … k: (…, k) → (…, k + 1), the last one 0. Small values are added first."""
    none = singular_values.new_zeros(*singular_values.shape[:-1], 1)
    energies = torch.cat([singular_values.square(), none], -1)
    return energies.flip(-1).cumsum(-1).flip(-1).sqrt()


def project(
    weight: Tensor,
    *,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    metric: Tensor | None = None,
    inner: Tensor | None = None,
    ridge: float = 0.0,
    refine: bool = True,
) -> Projection:
    """The closed form of output-covariance projection, from the second moment of either side.

    `weight`: (m, n), or (g, m, n) for a batch of independent groups, any real dtype.
    `inputs`: XᵀX (…, n, n), or `outputs`: YᵀY (…, m, m) of Y = XWᵀ *without the bias*; exactly one of them,
    symmetric. Give centred sums for the optimum with a free bias (then `bias_from_inputs` or
    `bias_from_outputs`; a constant bias in Y does no harm), uncentred ones to keep the bias. Both sides give
    the same answer; the smaller one is cheaper to collect.
    `metric`: D, positive: (…, m, m) or its diagonal (…, m); minimises Σ (y − z)ᵀ D (y − z) and measures
    errors so.
    `inner`: WᵀDW (…, n, n), positive, in place of D: with `inputs`, for m ≥ n. It is all of D that the optimum needs
    there, so that no m × m matrix is ever formed.
    `ridge`: μ ≥ 0, minimises ‖X(W − Z)ᵀ‖² + μ‖W − Z‖² instead, which anchors Z at W off the data.

    The eigenproblem is formed and solved in float64, whatever the statistics are: in float32 a Gram matrix
    loses every singular value below 3e-4 of the largest. Factors and the products that make them have the
    dtype of the statistics if that is float32, else float64. Singular values below 1e-4 of the largest are solved for
    once more, apart from the large ones, so that they are as exact as from a singular value decomposition of
    W times the Cholesky root of XᵀX; where that root does not exist, those below √ε of the largest are noise,
    ε the machine epsilon of the statistics. `refine=False` saves that second decomposition, for whoever needs errors
    to 1e-8 of the norm only.

    No inverse of a statistic is taken, so rank-deficient ones need no care. When m > n, the m × n weight is
    reduced to its n × n triangular factor first (Cholesky of WᵀW while cond W < ε^(−1/4), Householder
    otherwise).
    Cost: one eigendecomposition of size k = min(m, n), and O(m n k) + O(n² k) or O(m² k) multiplications.
    Memory: the weight, and a few k × k and k × n matrices.

    Raises `ValueError` (shapes, metric not positive, ridge negative), `NonFiniteError`,
    `NotMaterialisedError`, `NotConvergedError`.
    """
    statistic = inputs if outputs is None else outputs
    if statistic is None or (inputs is not None and outputs is not None):
        raise ValueError("give either the second moment of the inputs or that of the outputs, and not both")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be at least 0 and finite, got {ridge}")
    dtype = torch.float32 if statistic.dtype == torch.float32 else torch.float64
    statistic = checked(statistic)
    if weight.ndim not in (2, 3):
        raise ValueError(f"a weight (m, n) or (g, m, n) was expected, got shape {tuple(weight.shape)}")
    *batch, m, n = weight.shape
    side, size = ("inputs", n) if outputs is None else ("outputs", m)
    if statistic.shape != (*batch, size, size):
        raise ValueError(
            f"second moment of the {side} of shape {tuple(statistic.shape)} does not fit "
            f"a weight of shape {tuple(weight.shape)}: expected {(*batch, size, size)}"
        )
    if inner is not None and (metric is not None or outputs is not None or m < n):
        raise ValueError(
            "WᵀDW can be given only with the second moment of the inputs, without another metric, and for m ≥ n"
        )
    reduced, basis, triangle, root = _coordinates(
        checked(weight, dtype).to(statistic.device), metric, inner, outputs is None, statistic.device
    )  # the wide copy has no name here: it goes as soon as it is weighed
    wide = reduced.double()
    moment = _moment_of(statistic, wide, root, basis, triangle, outputs is None)
    if ridge > 0:
        moment = moment + ridge * mirror(upper_product(wide, wide.mT))
    values, vectors = eigh(moment)
    values = values.sqrt()
    small = int((values <= _SMALL * values[..., :1]).sum(-1).max()) if refine and values.numel() else 0
    if small and outputs is None:
        anchored = statistic + ridge * torch.eye(n, dtype=statistic.dtype, device=statistic.device)
        values, vectors = _refined(values, vectors, small, anchored, wide)
    elif small:
        values, vectors = _refined(values, vectors, small, moment, None)
    return Projection(values, vectors, reduced, basis, triangle, root, outputs is None)


def restored(
    values: Tensor,
    vectors: Tensor,
    weight: Tensor,
    *,
    of_inputs: bool,
    metric: Tensor | None = None,
    inner: Tensor | None = None,
) -> Projection:
    """The projection with these `singular_values` and `vectors`, which `project` has found for this very `weight`,
    `metric` and `inner` from float64 statistics of its inputs or outputs. Decomposes nothing: who has many projections
    keeps of each the vectors alone, an eighth to a third of its memory. Cost O(m³ + m² n), or O(m n²)."""
    reduced, basis, triangle, root = _coordinates(
        checked(weight, vectors.dtype).to(vectors.device), metric, inner, of_inputs, vectors.device
    )
    return Projection(values, vectors, reduced, basis, triangle, root, of_inputs)


def _coordinates(
    weight: Tensor, metric: Tensor | None, inner: Tensor | None, of_inputs: bool, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(reduced, basis, triangle, root) of a `Projection`: that in which the smaller side is decomposed."""
    *batch, m, n = weight.shape
    root = None if metric is None else _root(checked(metric, weight.dtype).to(device), (*batch, m))
    if root is not None:
        weight = _times_root(root, weight)
    if inner is not None:  # its triangle R serves as well as one of D^½W: RᵀR is the same
        upper = _root(checked(inner, weight.dtype).to(device), (*batch, n), "WᵀDW").mT
        return upper, weight, upper, root
    if m <= n:
        return weight, None, None, root
    basis, triangle, reduced = _reduce(weight)
    if not of_inputs and triangle is not None:
        basis, triangle = torch.linalg.solve_triangular(triangle, basis, upper=True, left=False), None
    return reduced, basis, triangle, root


def _moment_of(
    statistic: Tensor,
    reduced: Tensor,
    root: Tensor | None,
    basis: Tensor | None,
    triangle: Tensor | None,
    of_inputs: bool,
) -> Tensor:
    """The second moment of the outputs, symmetric, in the coordinates in which they are decomposed: (…, k, k)."""
    if of_inputs:
        return mirror(upper_product(reduced @ statistic, reduced.mT))
    if root is not None:
        statistic = _times_root(root.double(), _times_root(root.double(), statistic).mT)
    if basis is None:
        return statistic
    return mirror(upper_product(basis.mT.double() @ statistic, basis.double()))


def _refined(
    values: Tensor, vectors: Tensor, small: int, moment: Tensor, reduced: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same decomposition with the last `small` values and vectors solved anew, free of the large ones.

    An eigenvalue of the Gram matrix C = B Bᵀ carries an error of ε times the largest. The rows of QᵀB, Q the last
    vectors, carry ε times the largest *singular* value instead, and their own Gram matrix is small throughout.
    B is `reduced` times the Cholesky root of `moment`; where there is none (singular), what is given is as good
    as the statistics allow, and is returned.
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    if bool(failed.any()):
        return values, vectors
    kept = vectors.shape[-1] - small
    last = vectors[..., kept:]
    rows = (last.mT if reduced is None else last.mT @ reduced) @ root
    energies, turn = eigh(rows @ rows.mT)
    values, order = torch.cat([values[..., :kept], energies.sqrt()], -1).sort(descending=True, stable=True)
    vectors = torch.cat([vectors[..., :kept], last @ turn], -1)
    return values, vectors.gather(-1, order.unsqueeze(-2).expand_as(vectors))


def _reduce(weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """(basis, triangle, R): weight = Q R, R (…, n, n), Q = basis triangle⁻¹, or basis if triangle is None."""
    triangle, failed = torch.linalg.cholesky_ex(upper_product(weight.mT, weight), upper=True)
    # orthonormal to ε·cond², so to √ε at worst
    limit = torch.finfo(weight.dtype).eps ** -0.25
    if weight.numel() and not bool(failed.any()) and bool((_condition(triangle) < limit).all()):
        return weight, triangle, triangle
    q, r = torch.linalg.qr(weight)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r)  # of Cholesky's triangle, which is unique
    return q * signs.unsqueeze(-2), None, r * signs.unsqueeze(-1)


def _condition(triangle: Tensor) -> Tensor:
    """Condition numbers of upper triangles (…, n, n), estimated from below, usually within a factor of two."""
    n = triangle.shape[-1]
    start = torch.arange(1, n + 1, dtype=triangle.dtype, device=triangle.device).square().sin()
    large = small = start.expand(*triangle.shape[:-2], n).unsqueeze(-1)
    for _ in range(4):
        large = triangle.mT @ (triangle @ (large / large.norm(dim=-2, keepdim=True)))
        small = small / small.norm(dim=-2, keepdim=True)
        half = torch.linalg.solve_triangular(triangle.mT, small, upper=False)
        small = torch.linalg.solve_triangular(triangle, half, upper=True)
    return (large.norm(dim=-2) * small.norm(dim=-2)).sqrt().squeeze(-1)


def _root(metric: Tensor, outputs: tuple[int, ...], name: str = "output metric") -> Tensor:
    if metric.shape == outputs and name == "output metric":
        if not bool((metric > 0).all()):
            raise ValueError("the output metric must be positive: clamp it from below")
        return metric.sqrt()
    if metric.shape != (*outputs, outputs[-1]):
        raise ValueError(
            f"{name} must have the shape {outputs} or {(*outputs, outputs[-1])}, got {tuple(metric.shape)}"
        )
    root, failed = torch.linalg.cholesky_ex(metric)
    if bool(failed.any()):
        raise ValueError(f"the {name} must be positive definite: add a multiple of the identity")
    return root


def _times_root(root: Tensor, a: Tensor) -> Tensor:
    return root.unsqueeze(-1) * a if root.ndim == a.ndim - 1 else root.mT @ a


def bias_from_inputs(weight: Tensor, left: Tensor, right: Tensor, mean: Tensor, bias: Tensor | None = None) -> Tensor:
    """The free bias c = b + (W − Z) x̄ of a replaced weight, from the mean input x̄ (…, n): (…, m), float64.

    `weight` (…, m, n), `left` (…, m, r), `right` (…, r, n), `bias` b (…, m) or None for 0.
    """
    x = checked(mean).unsqueeze(-1)
    shift = torch.cat([checked(part) @ x for part in few_rows(weight)], -2) - checked(left) @ (checked(right) @ x)
    return shift.squeeze(-1) if bias is None else checked(bias) + shift.squeeze(-1)


def bias_from_outputs(left: Tensor, mean: Tensor, bias: Tensor | None = None, metric: Tensor | None = None) -> Tensor:
    """The free bias c = ȳ − Q Qᵀ(ȳ − b) from the mean output ȳ (…, m), bias included: (…, m), float64.

    `left` Q (…, m, r) from `Projection.factors`, `bias` b (…, m) or None for 0; `metric` as it was given to
    `project` (then c = ȳ − Q Qᵀ D (ȳ − b)).
    """
    mean, left = checked(mean), checked(left)
    moved = (mean if bias is None else mean - checked(bias)).unsqueeze(-1)
    if metric is not None:
        metric = checked(metric)
        weighted = metric.unsqueeze(-1) * moved if metric.ndim == left.ndim - 1 else metric @ moved
    else:
        weighted = moved
    return mean - (left @ (left.mT @ weighted)).squeeze(-1)
