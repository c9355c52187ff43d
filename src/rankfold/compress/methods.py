"""The methods by name, for the command line and for plans read from a file."""

from __future__ import annotations

from rankfold.compress.cp import CP
from rankfold.compress.maxnorm import MaxNorm
from rankfold.compress.method import Method
from rankfold.compress.nuclear import NuclearBall
from rankfold.compress.project import Project
from rankfold.compress.relu import ActivationAware
from rankfold.compress.sequential import Sequential
from rankfold.compress.truncate import Truncate
from rankfold.compress.tucker import Tucker

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
