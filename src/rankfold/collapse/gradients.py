"""The rank of the gradient of a batch, counted in samples, features, patches and tokens (proposition 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankfold.batches import forward, in_eval_mode
from rankfold.collapse.backward import layer_rows
from rankfold.collapse.centroid import without_grad_mode as thawed
from rankfold.collapse.features import order_of_calls
from rankfold.collapse.losses import Loss
from rankfold.sites import opened, sites, unwrap


@dataclass(frozen=True)
class GradientRank:
    """The numerical ``rank`` of ∇_W of one layer on a batch, and what bounds it.

    ``samples``: proposition 3.1, for layers that see one row for each sample (None otherwise). ``rows``: distinct rows
    that meet the matrix: features of a dense layer, patches of a convolution, tokens of a projection; labels may
    differ. ``slopes``: distinct gradients at the output that are not 0. ``key``: of a key projection of softmax
    attention, the dimension that its tokens span about each sequence's mean, at most Σ (T_s − 1): softmax does not see
    what all keys of a sequence have in common, so that Σ_t δ_t = 0 in each. None of other layers.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    samples: int | None
    rows: int
    slopes: int
    key: int | None = None

    @property
    def bound(self) -> int:
        """The least of all of them."""
        known = (*self.shape, self.rows, self.slopes, self.samples, self.key)
        return min(value for value in known if value is not None)


def distinct(rows: Tensor, relative: float = 1e-10) -> int:
    """How many different rows there are, up to ``relative`` of the largest entry (equal samples round apart)."""
    if not rows.numel() or not bool(rows.any()):
        return min(len(rows), 1)
    return len((rows / (relative * rows.abs().max())).round().unique(dim=0))


def numerical_rank(matrix: Tensor, relative: float = 1e-9) -> int:
    """Singular values above ``relative`` times the largest; 0 of a zero matrix."""
    values = torch.linalg.svdvals(matrix.double())
    return int((values > relative * values[0]).sum()) if len(values) and values[0] > 0 else 0


def gradient_ranks(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> dict[str, GradientRank]:
    """Every site whose rows can be taken apart, on one batch; use float64, or ranks are those of rounding.

    Cost: one forward and backward pass, one decomposition of each gradient, and a sort of the rows.
    """
    root = unwrap(model)
    with in_eval_mode(root), thawed(root), opened(root):
        names = order_of_calls(root, [site.name for site in sites(root)], lambda: forward(root, inputs))
        found = {}
        for name, a, delta in layer_rows(root, names, inputs, targets, loss, 1 / len(inputs)):
            alone = len(a) == len(inputs)
            nonzero = delta[delta.abs().sum(1) > 0]
            found[name] = GradientRank(
                name,
                (delta.shape[1], a.shape[1]),
                numerical_rank(delta.mT @ a),
                len(inputs) if alone else None,
                distinct(a),
                distinct(nonzero) if len(nonzero) else 0,
                _key_rank(a, len(inputs)) if name.endswith("k_proj") and not alone else None,
            )
        return found


def _key_rank(tokens: Tensor, samples: int) -> int:
    sequences = tokens.unflatten(0, (samples, -1))
    return numerical_rank((sequences - sequences.mean(1, keepdim=True)).flatten(0, 1))
