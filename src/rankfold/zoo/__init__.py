"""Models and data sets of the papers, and the bundled digits, by name."""

from rankfold.zoo.data import data_names, load_data
from rankfold.zoo.errors import ZooError
from rankfold.zoo.models import default_data, example_input, model, model_names
from rankfold.zoo.resolve import Resolved, resolve
from rankfold.zoo.split import Batches, Data, Split
from rankfold.zoo.text import Texts, text
from rankfold.zoo.weights import load_weights

__all__ = [
    "Batches",
    "Data",
    "Resolved",
    "Split",
    "Texts",
    "ZooError",
    "data_names",
    "default_data",
    "example_input",
    "load_data",
    "load_weights",
    "model",
    "model_names",
    "resolve",
    "text",
]
