"""Recovery of low-rank matrices from few linear measurements: operators, estimators, ratings, and what theory says of
them."""

from rankfold.recover.dynamics import Fitted, incremental, singular_value_recursion
from rankfold.recover.estimators import (
    AlternatingMinimization,
    CompressedDeepLinear,
    DeepLinear,
    LowRank,
    NuclearNorm,
    ScaledGradientDescent,
)
from rankfold.recover.operators import Entries, Gaussian, Identity, Mask, Measurements, Operator, entries, surrogate
from rankfold.recover.outcome import Point, Recovered, Rules, Watch

__all__ = [
    "AlternatingMinimization",
    "CompressedDeepLinear",
    "DeepLinear",
    "Entries",
    "Fitted",
    "Gaussian",
    "Identity",
    "LowRank",
    "Mask",
    "Measurements",
    "NuclearNorm",
    "Operator",
    "Point",
    "Recovered",
    "Rules",
    "ScaledGradientDescent",
    "Watch",
    "entries",
    "incremental",
    "singular_value_recursion",
    "surrogate",
]
