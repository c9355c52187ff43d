"""What outputs and targets mean: the only room that knows. Built-in objectives, one's own, and how to tell which."""

from rankfold.objectives.answer import Answer, counting_tensors, main_tensor
from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import Evaluation, Figure, Figures, ObjectiveError
from rankfold.objectives.infer import Inferred, infer
from rankfold.objectives.kinds.classification import Classification, TokenClassification
from rankfold.objectives.kinds.embedding import Embedding
from rankfold.objectives.kinds.language import CausalLanguageModel, MaskedLanguageModel
from rankfold.objectives.kinds.multilabel import MultiLabel
from rankfold.objectives.kinds.regression import Regression
from rankfold.objectives.kinds.teacher import Teacher
from rankfold.objectives.names import objective_named, objective_names, register
from rankfold.objectives.own import objective

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
    "counting_tensors",
    "infer",
    "main_tensor",
    "objective",
    "objective_named",
    "objective_names",
    "register",
]
