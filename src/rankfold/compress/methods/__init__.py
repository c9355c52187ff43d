"""The methods by name, for the command line and for plans read from a file."""

from __future__ import annotations

from rankfold.compress.methods.cp import CP
from rankfold.compress.methods.maxnorm import MaxNorm
from rankfold.compress.methods.method import Method
from rankfold.compress.methods.nuclear import NuclearBall
from rankfold.compress.methods.project import Project
from rankfold.compress.methods.relu import ActivationAware
from rankfold.compress.methods.sequential import Sequential
from rankfold.compress.methods.truncate import Truncate
from rankfold.compress.methods.tucker import Tucker

METHODS: tuple[Method, ...] = (
    Project(), Sequential(), ActivationAware(), NuclearBall(), MaxNorm(), Truncate(), Tucker(), CP(),
)  # fmt: skip


def method_named(name: str | Method) -> Method:
    """The method called ``name``; anything that is a method already is returned as it is."""
    if not isinstance(name, str):
        return name
    for method in METHODS:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in METHODS)
    raise ValueError(f"no method named {name!r}; there are {known}")
