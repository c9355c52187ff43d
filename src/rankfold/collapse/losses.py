"""The losses of the theory, for each sample: of outputs and of targets as vectors, so that targets can be averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖f − y‖², (n, …) and (n, …) → (n,): summed over the entries of a sample, as the paper's experiments have it.

    With p entries p times ``mean_squared_error``, so that its weight decay is p times as large.
    """
    return (outputs - targets).square().flatten(1).sum(1)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖f − y‖²/p, (n, …) and (n, …) → (n,): the mean over the p entries of a sample, as of ``nn.MSELoss``, ``fit``."""
    return (outputs - targets).square().flatten(1).mean(1)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−(1/p) Σ_j y_j log σ(f_j) + (1 − y_j) log σ(−f_j), logits (n, p) and targets (n, p) from 0 to 1 → (n,).

    The mean over the entries of a sample, as ``nn.BCEWithLogitsLoss`` and ``rf.fit``. Affine in the targets.
    """
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").flatten(1).mean(1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c y_c log softmax(f)_c, logits (n, C) and probabilities (n, C) → (n,). Affine in the targets."""
    return -(targets * F.log_softmax(outputs, 1)).sum(1)


LOSSES: Mapping[str, Loss] = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "mean-squared-error": mean_squared_error,
    "squared-error": squared_error,
}


def vectors(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices (n,) as one-hot vectors (n, C); targets that are vectors already come back as they are."""
    if labels.is_floating_point():
        return labels.to(dtype)
    return F.one_hot(labels, classes).to(dtype)
