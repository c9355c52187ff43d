"""Tensors in, tensors out: decompositions, streaming moments, projection, balanced factors."""

from rankfold.linalg.balanced import balanced_factors, product
from rankfold.linalg.decompositions import checked, eigh, singular_values, svd
from rankfold.linalg.errors import NonFiniteError, NotConvergedError, NotMaterialisedError
from rankfold.linalg.gram import gram
from rankfold.linalg.moments import Moments
from rankfold.linalg.projection import Projection, bias_from_inputs, bias_from_outputs, project, tails

__all__ = [
    "Moments",
    "NonFiniteError",
    "NotConvergedError",
    "NotMaterialisedError",
    "Projection",
    "balanced_factors",
    "bias_from_inputs",
    "bias_from_outputs",
    "checked",
    "eigh",
    "gram",
    "product",
    "project",
    "singular_values",
    "svd",
    "tails",
]
