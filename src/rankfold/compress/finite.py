"""Weights that can be decomposed: materialised and finite; or an error that names the site."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from rankfold.linalg import NonFiniteError, NotMaterialisedError, checked
from rankfold.sites import Site


def check_finite(held: Iterable[tuple[Site, Tensor, Tensor | None]]) -> None:
    """``ValueError`` for the first site whose weight or bias is NaN, infinite or on the meta device.

    Cost: one pass over the weights, and one of them in float64.
    """
    for site, *tensors in held:
        try:
            for tensor in tensors:
                if tensor is not None:
                    checked(tensor)
        except NotMaterialisedError as error:
            raise ValueError(f"{site.title}: {error}") from error
        except NonFiniteError as error:
            raise ValueError(
                f"{site.title}: {error}: repair or reload its weights, or leave the layer out with where= (--exclude)"
            ) from error
