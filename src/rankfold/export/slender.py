"""Axes of size 1 in an example, which torch takes for constants: those at which the model runs with 2 as well."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankfold.costs import Example, evaluating
from rankfold.export.trace import Axis, flat


def slender(root: nn.Module, example: Example) -> set[Axis]:
    """Where the example has a size of 1 behind the first axis that can be 2, at this place of all inputs or of one."""
    ones = [
        (which, place) for which, x in enumerate(flat(example)) for place in range(1, x.dim()) if x.shape[place] == 1
    ]
    found: set[Axis] = set()
    for place in sorted({place for _, place in ones}):
        together = {axis for axis in ones if axis[1] == place}
        for axes in (together, *({axis} for axis in sorted(together))):
            if not axes <= found and _runs(root, doubled(example, found | axes)):
                found |= axes
    return found


def doubled(example: Example, axes: Set[Axis]) -> Example:
    """The example with everything twice along these axes."""
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for which, axis in axes:
        leaf = leaves[places[which]]
        leaves[places[which]] = torch.cat([leaf, leaf], axis)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Example(args, kwargs, example.samples)


def _runs(root: nn.Module, given: Example) -> bool:
    with evaluating(root):
        try:
            root(*given.args, **given.kwargs)
        except Exception:  # a size that the model does not take, which it may say in any way
            return False
    return True
