"""Models and data sets of the papers, and the bundled digits, by name."""

from rankfold.zoo.errors import ZooError
from rankfold.zoo.models import default_data, example_input, model, model_names
from rankfold.zoo.resolve import Resolved, resolve
from rankfold.zoo.weights import load_weights

__all__ = [
    "Resolved",
    "ZooError",
    "default_data",
    "example_input",
    "load_weights",
    "model",
    "model_names",
    "resolve",
]
