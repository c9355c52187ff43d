"""Training and evaluation: one loop, one recipe, any model, any data, any objective."""

from rankfold.objectives import Evaluation
from rankfold.train.errors import TrainingError
from rankfold.train.evaluation import choose, counted, evaluate
from rankfold.train.fit import fit
from rankfold.train.history import Epoch, History, Progress, ProgressCallback
from rankfold.train.recipe import Augment, Distill, Plateau, Recipe, Relax
from rankfold.train.step.groups import parameter_groups

__all__ = [
    "Augment",
    "Distill",
    "Epoch",
    "Evaluation",
    "History",
    "Plateau",
    "Progress",
    "ProgressCallback",
    "Recipe",
    "Relax",
    "TrainingError",
    "choose",
    "counted",
    "evaluate",
    "fit",
    "parameter_groups",
]
