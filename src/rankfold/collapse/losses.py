"""The losses of the theory, for each sample: of outputs and of targets as vectors, so that targets can be averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖f − y‖², (n, …) and (n, …) → (n,): summed over the entries of a sample, as the paper's experiments have it."""
    return (outputs - targets).square().flatten(1).sum(1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c y_c log softmax(f)_c, logits (n, C) and probabilities (n, C) → (n,). Affine in the targets."""
    return -(targets * F.log_softmax(outputs, 1)).sum(1)


LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "squared-error": squared_error}


def vectors(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices (n,) as one-hot vectors (n, C); targets that are vectors already come back as they are."""
    if labels.is_floating_point():
        return labels.to(dtype)
    return F.one_hot(labels, classes).to(dtype)
