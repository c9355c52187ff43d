"""Singular value and symmetric eigenvalue decompositions that survive what torch's do not.

torch returns NaN without raising for a matrix with infinity, raises for half precision on the CPU, stays
silently on the meta device, and gives up when its one driver does not converge. Here every input is checked,
widened to float64 and passed down a chain of drivers.
"""

import torch
from torch import Tensor

from rankfold.linalg.errors import NonFiniteError, NotConvergedError, NotMaterialisedError

_TOGETHER = 1 << 20  # numbers of a matrix


def few_rows(matrix: Tensor) -> tuple[Tensor, ...]:
    """`matrix` (…, m, n) in views of a few rows, of which what is made one after the other takes little memory."""
    return matrix.split(max(1, _TOGETHER // max(matrix.shape[-1], 1)), -2)


def checked(a: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """`a` detached and widened to `dtype`, with every value known to be finite.

    Any real dtype is taken: integers, float8, float16 and bfloat16 included. A device without float64
    (Apple's mps) is left for the CPU.

    Raises `NotMaterialisedError` (meta tensor), `NonFiniteError`, `TypeError` (complex).
    """
    if a.is_meta:
        raise NotMaterialisedError(
            f"a tensor of shape {tuple(a.shape)} is on the meta device, without values: load its weights first"
        )
    if a.is_complex():
        raise TypeError(f"a tensor of shape {tuple(a.shape)} is {a.dtype}: only real matrices are supported")
    a = a.detach()
    if a.device.type == "mps":
        a = a.cpu()
    # float8 has neither isfinite nor a direct way to float64 on every device
    wide = a.to(torch.float32).to(dtype) if a.dtype.itemsize == 1 and a.is_floating_point() else a.to(dtype)
    # a finite sum has finite terms; an infinite one may be mere overflow, so then every value is looked at
    if not bool(torch.isfinite(wide.sum())) and not bool((finite := torch.isfinite(wide)).all()):
        bad = int(finite.numel() - finite.sum())
        raise NonFiniteError(
            f"{bad} of {wide.numel()} values in a tensor of shape {tuple(a.shape)}, {a.dtype}, are NaN or infinite"
        )
    return wide


def _matrix(a: Tensor, dtype: torch.dtype) -> Tensor:
    if a.ndim not in (2, 3):
        raise ValueError(f"a matrix (m, n) or a batch of them (g, m, n) was expected, got shape {tuple(a.shape)}")
    return checked(a, dtype)


def svd(a: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition a = u diag(s) vh, values descending.

    `a`: (m, n) or (g, m, n) of any real dtype. Returns `u` (…, m, k), `s` (…, k), `vh` (…, k, n) in `dtype`,
    k = min(m, n); zero-size matrices give empty results. Detached from autograd. Cost O(m n min(m, n)) per
    matrix.

    When the first driver does not converge: LAPACK's gesvd in float64 on the CPU, then the eigenvalues of the
    smaller Gram matrix (values below 1e-8 of the largest are then noise).

    Raises `NonFiniteError`, `NotMaterialisedError`, `NotConvergedError`, `ValueError` (not a matrix),
    `TypeError` (complex).
    """
    a = _matrix(a, dtype)
    if a.numel() == 0:
        *batch, m, n = a.shape
        k = min(m, n)
        return a.new_zeros(*batch, m, k), a.new_zeros(*batch, k), a.new_zeros(*batch, k, n)
    try:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
    except torch.linalg.LinAlgError:
        return _svd_slow(a)
    return (u, s, vh) if bool(torch.isfinite(s).all()) else _svd_slow(a)


def singular_values(a: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values of `a` (m, n) or (g, m, n), descending: (…, min(m, n)) in `dtype`. Errors as `svd`."""
    a = _matrix(a, dtype)
    if a.numel() == 0:
        return a.new_zeros(*a.shape[:-2], min(a.shape[-2:]))
    try:
        # LAPACK takes two to nine times as long for a wide matrix as for its transpose
        s = torch.linalg.svdvals(a.mT if a.shape[-2] < a.shape[-1] else a)
    except torch.linalg.LinAlgError:
        return _svd_slow(a)[1]
    return s if bool(torch.isfinite(s).all()) else _svd_slow(a)[1]


def eigh(a: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric positive semidefinite matrix, values descending and clamped
    at 0.

    `a`: (n, n) or (g, n, n) of any real dtype; the lower triangle is read. Returns values (…, n) and
    orthonormal columns (…, n, n) in `dtype`. The small negative values that rounding gives a rank-deficient
    Gram matrix become 0. Values below n · machine epsilon · the largest are noise. Detached from autograd.
    Cost O(n³) per matrix.

    When the first driver does not converge: LAPACK's syev in float64 on the CPU, then the singular vectors.

    Raises as `svd`, and `ValueError` when the matrix is not square.
    """
    a = _matrix(a, dtype)
    if a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a square matrix was expected, got shape {tuple(a.shape)}")
    if a.numel() == 0:
        return a.new_zeros(a.shape[:-1]), a.new_zeros(a.shape)
    try:
        values, vectors = torch.linalg.eigh(a)
        sound = bool(torch.isfinite(values).all())
    except torch.linalg.LinAlgError:
        sound = False
    if not sound:
        values, vectors = _eigh_slow(a)
    return values.flip(-1).clamp_min(0.0), vectors.flip(-1)


def _svd_slow(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    matrices = a.reshape(-1, *a.shape[-2:]).to("cpu", torch.float64)
    triples = [_svd_one(matrix) for matrix in matrices]
    u, s, vh = (torch.stack(part).to(a) for part in zip(*triples, strict=True))
    return (
        u.reshape(*a.shape[:-1], -1),
        s.reshape(*a.shape[:-2], -1),
        vh.reshape(*a.shape[:-2], -1, a.shape[-1]),
    )


def _svd_one(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    import scipy.linalg  # the last resort: seldom needed, slow to import

    try:
        u, s, vh = scipy.linalg.svd(a.numpy(), full_matrices=False, lapack_driver="gesvd")
        return torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vh)
    except scipy.linalg.LinAlgError:
        return _svd_by_gram(a)


def _svd_by_gram(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m, n = a.shape
    if m < n:
        u, s, vh = _svd_by_gram(a.mT)
        return vh.mT, s, u.mT
    scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
    scaled = a / scale
    try:
        v = torch.linalg.eigh(scaled.mT @ scaled)[1].flip(-1)
    except torch.linalg.LinAlgError as cause:
        raise NotConvergedError(
            f"the singular value decomposition of a matrix of shape {(m, n)} did not converge (its largest entry "
            f"is {float(scale):.3g}): check the weights, or leave this matrix out"
        ) from cause
    # QR, not division by the values: columns that belong to tiny ones stay orthonormal
    u, r = torch.linalg.qr(scaled @ v)
    s = r.diagonal()
    u = u * torch.where(s < 0, -1.0, 1.0)
    s, order = s.abs().sort(descending=True)
    return u[:, order], s * scale, v[:, order].mT


def _eigh_slow(a: Tensor) -> tuple[Tensor, Tensor]:
    matrices = a.reshape(-1, *a.shape[-2:]).to("cpu", torch.float64)
    pairs = [_eigh_one(matrix) for matrix in matrices]
    values, vectors = (torch.stack(part).to(a) for part in zip(*pairs, strict=True))
    return values.reshape(a.shape[:-1]), vectors.reshape(a.shape)


def _eigh_one(a: Tensor) -> tuple[Tensor, Tensor]:
    import scipy.linalg

    try:
        values, vectors = scipy.linalg.eigh(a.numpy(), driver="ev")
        return torch.from_numpy(values), torch.from_numpy(vectors)
    except scipy.linalg.LinAlgError:
        lower = a.tril()
        u, s, _ = _svd_one(lower + lower.tril(-1).mT)
        return s.flip(-1), u.flip(-1)
