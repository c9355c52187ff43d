"""How a matrix is stored in a network: one file for each form, which counts its cost, builds and fills its module."""

from rankfold.forms import cp, dense, factored, pivoted, shared, spatial, tucker  # noqa: F401  # they register themselves
from rankfold.forms.form import Call, Factors, Form, form_named, offered, register
from rankfold.forms.layer import Convolution, Layer, Side

__all__ = ["Call", "Convolution", "Factors", "Form", "Layer", "Side", "form_named", "offered", "register"]
