"""Tensors in, tensors out: decompositions, streaming moments, projection, balanced factors."""

from rankfold.linalg.balanced import balanced_factors, product
from rankfold.linalg.decompositions import checked, eigh, singular_values, svd
from rankfold.linalg.errors import NonFiniteError, NotConvergedError, NotMaterialisedError
from rankfold.linalg.on_data.gram import gram
from rankfold.linalg.on_data.moments import Moments
from rankfold.linalg.on_data.projection import Projection, bias_from_inputs, bias_from_outputs, project, tails
from rankfold.linalg.on_data.regression import least_squares, squared_error
from rankfold.linalg.pivoting import Pivoted, pivoted
from rankfold.linalg.programs.activation_aware import ActivationAwareFit, activation_aware
from rankfold.linalg.programs.certificate import ProgramFit
from rankfold.linalg.programs.maxnorm import nuclear_max_norm
from rankfold.linalg.programs.nuclear import NuclearFit, nuclear_fit, nuclear_fit_rows, nuclear_radius, shrink_to_ball
from rankfold.linalg.programs.nuclear_tobit import nuclear_tobit

__all__ = [
    "ActivationAwareFit",
    "Moments",
    "NonFiniteError",
    "NotConvergedError",
    "NotMaterialisedError",
    "NuclearFit",
    "Pivoted",
    "ProgramFit",
    "Projection",
    "activation_aware",
    "balanced_factors",
    "bias_from_inputs",
    "bias_from_outputs",
    "checked",
    "eigh",
    "gram",
    "least_squares",
    "nuclear_fit",
    "nuclear_fit_rows",
    "nuclear_max_norm",
    "nuclear_radius",
    "nuclear_tobit",
    "pivoted",
    "product",
    "project",
    "shrink_to_ball",
    "singular_values",
    "squared_error",
    "svd",
    "tails",
]
