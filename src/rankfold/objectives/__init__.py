"""What outputs and targets mean: the only room that knows. Built-in objectives, one's own, and how to tell which."""

from rankfold.objectives.answer import Answer, main_tensor
from rankfold.objectives.classification import Classification, TokenClassification
from rankfold.objectives.embedding import Embedding
from rankfold.objectives.infer import Inferred, infer, objective_named, register
from rankfold.objectives.language import CausalLanguageModel, MaskedLanguageModel
from rankfold.objectives.multilabel import MultiLabel
from rankfold.objectives.objective import Evaluation, Figure, Figures, Objective, ObjectiveError, objective
from rankfold.objectives.regression import Regression
from rankfold.objectives.teacher import Teacher

__all__ = [
    "Answer",
    "CausalLanguageModel",
    "Classification",
    "Embedding",
    "Evaluation",
    "Figure",
    "Figures",
    "Inferred",
    "MaskedLanguageModel",
    "MultiLabel",
    "Objective",
    "ObjectiveError",
    "Regression",
    "Teacher",
    "TokenClassification",
    "infer",
    "main_tensor",
    "objective",
    "objective_named",
    "register",
]
