"""Training that makes low rank: products under weight decay (LoRITa), compressed deep linear layers, DLRT."""

from rankfold.induce.cdln import cdln_
from rankfold.induce.choose import Choice, Target, choose
from rankfold.induce.dynamic.condition import Condition, Spread
from rankfold.induce.dynamic.dlrt import dlrt_, dlrt_choice
from rankfold.induce.dynamic.integrate import Dlrt
from rankfold.induce.fold import factors, fold_, is_overparametrized
from rankfold.induce.overparametrize import overparametrize_
from rankfold.induce.penalty import factor_energy, schatten_penalty
from rankfold.induce.recipes import LORITA, LORITA_RELAXED, PAPER_FCN
from rankfold.induce.ways import (
    Cuttlefish,
    FrobeniusDecay,
    LearningCompression,
    Maestro,
    Pufferfish,
    SparseFactors,
    Way,
)

__all__ = [
    "Choice", "Condition", "Cuttlefish", "Dlrt", "FrobeniusDecay", "LORITA", "LORITA_RELAXED", "LearningCompression",
    "Maestro", "PAPER_FCN", "Pufferfish", "SparseFactors", "Spread", "Target", "Way", "cdln_", "choose", "dlrt_",
    "dlrt_choice", "factor_energy", "factors", "fold_", "is_overparametrized", "overparametrize_", "schatten_penalty",
]  # fmt: skip
