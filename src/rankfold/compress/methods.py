"""The methods by name, for the command line and for plans read from a file."""

from __future__ import annotations

from rankfold.compress.cp import CP
from rankfold.compress.method import Method
from rankfold.compress.project import Project
from rankfold.compress.sequential import Sequential
from rankfold.compress.truncate import Truncate
from rankfold.compress.tucker import Tucker


def method_named(name: str | Method) -> Method:
    """The method called ``name``; anything that is a method already is returned as it is."""
    if not isinstance(name, str):
        return name
    for method in (Project(), Sequential(), Truncate(), Tucker(), CP()):
        if method.name == name:
            return method
    raise ValueError(f"no method named {name!r}; there are project, sequential, truncate, tucker and cp")
