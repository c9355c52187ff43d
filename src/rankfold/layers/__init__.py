"""The factored layers: plain modules that code written for the dense layers can use without knowing.

Parameters are named ``down`` (n → r), ``core`` where there is one, and ``up`` (r → m, which carries the bias; in
pivoted layers it is made of ``up.rest`` and ``up.order``).
``weight`` is that of the dense layer: a product, formed only where it must be, that refuses to be written to.
"""

from rankfold.layers.attention import SplitAttention
from rankfold.layers.convolution import CPConv, FactoredConv, LowRankConv, SpatialConv2d, TuckerConv
from rankfold.layers.dynamic import DynamicLowRank, DynamicTucker
from rankfold.layers.embedding import LowRankEmbedding, PivotedEmbedding
from rankfold.layers.linear import LowRankConv1D, LowRankLinear
from rankfold.layers.phased import Approached, Phased, Scaled
from rankfold.layers.pivoted import Completion, PivotedConv, PivotedConv1D, PivotedLinear
from rankfold.layers.recurrent import SplitCell, SplitRecurrent
from rankfold.layers.residual import Int4, ResidualConv1D, ResidualLinear
from rankfold.layers.rounded import WholeNumbers, is_whole, numbers_of
from rankfold.layers.training import InTraining
from rankfold.layers.weights.errors import FactoredWriteError
from rankfold.layers.weights.weight import FactoredWeight, weight_of

__all__ = [
    "Approached", "CPConv", "Completion", "DynamicLowRank", "DynamicTucker", "FactoredConv", "FactoredWeight",
    "FactoredWriteError", "InTraining", "Int4", "LowRankConv", "LowRankConv1D", "LowRankEmbedding", "LowRankLinear",
    "Phased", "PivotedConv", "PivotedConv1D", "PivotedEmbedding", "PivotedLinear", "ResidualConv1D", "ResidualLinear",
    "Scaled", "SpatialConv2d", "SplitAttention", "SplitCell", "SplitRecurrent", "TuckerConv", "WholeNumbers",
    "is_whole", "numbers_of", "weight_of",
]  # fmt: skip
