"""One code for NumPy arrays (CPU, fastest on small matrices) and torch tensors (any device): the few calls that
differ."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

from rankfold.recover.measurements.lazy import Lazy

Array = Any  # numpy.ndarray or torch.Tensor: the solvers use what both have, @, *, .T, slices, linalg


def namespace(a: Array) -> ModuleType:
    """``torch`` for a tensor, else ``numpy``."""
    return torch if isinstance(a, torch.Tensor) else np


def like(value: Any, a: Array) -> Array:
    """``value`` (array, tensor, nested list) as the kind, dtype and device of ``a``."""
    if isinstance(a, torch.Tensor):
        return torch.as_tensor(value).to(a)
    return np.asarray(numpy(value), dtype=a.dtype)


def numpy(a: Array) -> np.ndarray:
    """On the CPU, as NumPy has it; a view where there can be one."""
    if not isinstance(a, torch.Tensor):
        return np.asarray(a)
    a = a.detach().cpu()
    return (a.float() if a.dtype == torch.bfloat16 else a).numpy()


def rounding(a: Array) -> float:
    """The least that numbers of its dtype differ by, beside one."""
    return float((torch.finfo if isinstance(a, torch.Tensor) else np.finfo)(a.dtype).eps)


def eye(k: int, a: Array) -> Array:
    """The k × k identity of the kind of ``a``."""
    return like(np.eye(k), a)


def normal(shape: tuple[int, ...], rng: np.random.Generator, a: Array) -> Array:
    """Standard normal numbers of the kind of ``a``: the same ones on every device."""
    return like(rng.standard_normal(shape), a)


def norm(a: Array) -> float:
    """Frobenius norm."""
    if isinstance(a, Lazy):
        return a.norm()
    return float(namespace(a).linalg.norm(a.reshape(-1)))


def dot(a: Array, b: Array) -> float:
    """Σ a b over all entries."""
    if isinstance(a, Lazy):
        return a @ b
    return float(a.reshape(-1) @ b.reshape(-1))


def orthonormal(a: Array) -> Array:
    """An orthonormal basis (m, k) of the columns of ``a`` (m, k)."""
    return namespace(a).linalg.qr(a)[0]


def contiguous(a: Array) -> Array:
    """Rows one after the other: products of thin matrices take several times as long otherwise."""
    return a.contiguous() if isinstance(a, torch.Tensor) else np.ascontiguousarray(a)


def side_by_side(*parts: Array) -> Array:
    return namespace(parts[0]).concatenate(parts, 1)


def stacked(*parts: Array) -> Array:
    return namespace(parts[0]).concatenate(parts, 0)
