"""Recovery of low-rank matrices from few linear measurements: operators, estimators, ratings, and what theory says of
them."""

from rankfold.recover.choose import METHODS, Choice, Tried, choices, completed, cross_validate, fit
from rankfold.recover.estimators.base import Recovery
from rankfold.recover.estimators.completion import (
    AlternatingMinimization,
    CompressedDeepLinear,
    DeepLinear,
    LowRank,
    NuclearNorm,
    ScaledGradientDescent,
)
from rankfold.recover.implicit.candidates import Candidate, candidates
from rankfold.recover.implicit.estimator import ImplicitFeedback
from rankfold.recover.implicit.search import choose
from rankfold.recover.implicit.splits import held_out
from rankfold.recover.mapped.entries import MappedEntries, read_mapped
from rankfold.recover.mapped.mapping import map_entries
from rankfold.recover.measurements.operators import Entries, Identity, Mask, Operator, entries, surrogate
from rankfold.recover.measurements.sensing import Gaussian, Measurements
from rankfold.recover.model import FactorModel, load
from rankfold.recover.ratings.estimator import Ratings
from rankfold.recover.solvers.deep_linear import Descent, compressed_start, descend, stable_rate, wide_start
from rankfold.recover.solvers.dynamics import Fitted, cosines, incremental, singular_value_recursion
from rankfold.recover.solvers.outcome import Point, Recovered, Rules, Watch
from rankfold.recover.tables.beside import read_pairs, read_test
from rankfold.recover.tables.npz import from_arrays, read_arrays, sensed
from rankfold.recover.tables.reading import read_plays, read_sides, read_triplets
from rankfold.recover.tables.sides import Sides, read_side
from rankfold.recover.tables.triplets import Triplets, triplets

__all__ = [
    "AlternatingMinimization",
    "Candidate",
    "Choice",
    "CompressedDeepLinear",
    "DeepLinear",
    "Descent",
    "Entries",
    "FactorModel",
    "Fitted",
    "Gaussian",
    "Identity",
    "ImplicitFeedback",
    "LowRank",
    "METHODS",
    "MappedEntries",
    "Mask",
    "Measurements",
    "NuclearNorm",
    "Operator",
    "Point",
    "Ratings",
    "Recovered",
    "Recovery",
    "Rules",
    "ScaledGradientDescent",
    "Sides",
    "Tried",
    "Triplets",
    "Watch",
    "candidates",
    "choices",
    "choose",
    "completed",
    "compressed_start",
    "cosines",
    "cross_validate",
    "descend",
    "entries",
    "fit",
    "from_arrays",
    "held_out",
    "load",
    "map_entries",
    "incremental",
    "read_arrays",
    "read_mapped",
    "read_pairs",
    "read_plays",
    "read_side",
    "read_sides",
    "read_test",
    "read_triplets",
    "sensed",
    "singular_value_recursion",
    "stable_rate",
    "surrogate",
    "triplets",
    "wide_start",
]
