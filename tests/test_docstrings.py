"""Docstrings of the public names: summary, every argument, what is returned and raised, and an example that runs."""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import navigation
import pytest
import torch
from test_docs import own_registries  # noqa: F401  # a fixture
from torch import nn

import rankfold as rf

NAMES = [name for _, group in navigation.groups(navigation.index()) for name in group]
ARGUMENTS = re.compile(r"(?ms)^(?:Args|Attributes):\n((?:    .*\n?|\n)+)")


def found(name: str) -> Any:
    room, _, plain = name.rpartition(".")
    return getattr(importlib.import_module(f"rankfold.{room}") if room else rf, plain)


def arguments(thing: Any) -> list[str]:
    """What it is called with, by the names that must be told."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return []
    if thing in (rf.Objective, rf.Form):  # made by name, or by subclasses
        return ["name"]
    return [name for name in inspect.signature(thing).parameters if name != "self" and not name.startswith("_")]


def raises(thing: Any) -> bool:
    """Whether its own body, or that of its constructor, raises."""
    if inspect.isclass(thing):
        made = [] if is_dataclass(thing) else ["__init__"]  # that of a data class has no source
        bodies = [vars(thing).get(name) for name in (*made, "__post_init__")]
        return any(raises(body) for body in bodies if inspect.isfunction(body))
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def returns(thing: Any) -> bool:
    if inspect.isclass(thing):
        return False
    return inspect.signature(thing).return_annotation not in ("None", None)


def lacking(thing: Any, text: str) -> list[str]:
    """What a docstring does not say."""
    summary, _, rest = text.partition("\n")
    missing = [] if summary and summary.rstrip().endswith((".", ";", ":")) and not rest.split("\n")[0] else ["summary"]
    told = "".join(ARGUMENTS.findall(text))
    missing += [name for name in arguments(thing) if not re.search(rf"(?m)^    {re.escape(name)}: \S", told)]
    missing += ["Returns"] if returns(thing) and "\nReturns:\n" not in text else []
    missing += ["Raises"] if raises(thing) and "\nRaises:\n" not in text else []
    return missing + ([] if "\nExample:\n    >>> " in text else ["Example"])


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_everything(name: str) -> None:
    thing = found(name)
    assert lacking(thing, inspect.getdoc(thing) or "") == []


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``copy``, ``torch``, ``nn`` and ``rf`` imported, as the pages of the site say."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    modules = {"copy": copy, "torch": torch, "nn": nn, "rf": rf, "__name__": "example"}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(found(name)) or "", modules, name, None, None)
    assert example.examples
    told: list[str] = []
    ran = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.append)
    assert ran.failed == 0, "".join(told)


def test_what_is_left_out_is_noticed() -> None:
    def thing(first: int, second: int) -> int:
        """Add."""
        if second < 0:
            raise ValueError
        return first + second

    whole = "Add.\n\nArgs:\n    first: one.\n    second: another.\n\nReturns:\n    The sum.\n"
    whole += "\nRaises:\n    ValueError: below 0.\n\nExample:\n    >>> 1\n    1\n"
    assert lacking(thing, "Add.") == ["first", "second", "Returns", "Raises", "Example"]
    assert lacking(thing, whole) == []
    assert lacking(thing, whole.replace("second:", "third:")) == ["second"]
