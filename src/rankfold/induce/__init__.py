"""Training in products: LoRITa (Alkhouri et al.) under plain weight decay, and compressed deep linear layers."""

from rankfold.induce.cdln import cdln_
from rankfold.induce.choose import Choice, Target, choose
from rankfold.induce.fold import factors, fold_, is_overparametrized
from rankfold.induce.overparametrize import overparametrize_
from rankfold.induce.penalty import factor_energy, schatten_penalty
from rankfold.induce.recipes import LORITA, LORITA_RELAXED, PAPER_FCN

__all__ = [
    "Choice", "LORITA", "LORITA_RELAXED", "PAPER_FCN", "Target", "cdln_", "choose", "factor_energy", "factors", "fold_",
    "is_overparametrized", "overparametrize_", "schatten_penalty",
]  # fmt: skip
