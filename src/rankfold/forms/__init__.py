"""How a matrix is stored in a network: one file for each form, which counts its cost, builds and fills its module."""

from rankfold.forms import (  # noqa: F401  # they register themselves
    cp,
    dense,
    factored,
    int8,
    pivoted,
    residual,
    shared,
    spatial,
    tucker,
)
from rankfold.forms.form import Call, Factors, Form, form_named, offered, register
from rankfold.forms.layer import Convolution, Layer, Share, Side

__all__ = ["Call", "Convolution", "Factors", "Form", "Layer", "Share", "Side", "form_named", "offered", "register"]
