"""Weights that can be decomposed: materialised and finite; or an error that names the site."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from rankfold.linalg import NonFiniteError, NotMaterialisedError, checked
from rankfold.sites import Site


def check_finite(root: nn.Module, sites: Iterable[Site]) -> None:
    """``ValueError`` for the first weight or bias that is NaN, infinite or on the meta device; attention must be split.

    Cost: one pass over the weights, and one of them in float64.
    """
    for site in sites:
        try:
            for tensor in (site.weight(root), site.bias(root)):
                if tensor is not None:
                    checked(tensor)
        except NotMaterialisedError as error:
            raise ValueError(f"{site.title}: {error}") from error
        except NonFiniteError as error:
            raise ValueError(f"{site.title}: {error}; mend them, or leave the site out with where=") from error
