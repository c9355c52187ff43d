"""The way of a model through ``plan``: how many files it is handed to, and that it is never handed back up."""

import ast
import inspect
import sys
import textwrap
import tomllib
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from torch import nn

import rankfold as rf

ROOT = Path(__file__).parents[1]
SOURCE = Path(inspect.getfile(inspect.getmodule(rf.Plan))).parents[2]
# what hands a call through to the function that it stands for
DECORATORS = {("run/progress.py", "told"), ("run/ordinary.py", "outside"), ("observe/calls.py", "let_through")}
FILES = {"truncate": 13, "project": 12, "sequential": 15}
LONGEST = 60


def rooms() -> dict[str, int]:
    """The level of every room, the uppermost first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    return {room.strip(" ()"): level for level, layer in enumerate(layers) for room in layer.split("|")}


class Way:
    """Files and functions that get ``model`` itself as an argument, and calls among them."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.files, self.codes = model, Counter(), set[CodeType]()
        self.calls: set[tuple[str, str]] = set()

    def __enter__(self) -> "Way":
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        file = here(frame)
        if event != "call" or file is None or (file, frame.f_code.co_name) in DECORATORS:
            return
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        if any(frame.f_locals.get(name) is self.model for name in code.co_varnames[:count]):
            self.files[file] += 1
            self.codes.add(code)
            caller = frame.f_back
            while caller is not None and (here(caller), caller.f_code.co_name) in DECORATORS | {
                (None, caller.f_code.co_name)
            }:
                caller = caller.f_back
            if caller is not None:
                self.calls.add((here(caller) or "", file))


def here(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(SOURCE).as_posix() if path.is_relative_to(SOURCE) else None


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def taken(method: str) -> Way:
    model, data = small(), (torch.rand(64, 1, 6, 6), torch.randint(5, (64,)))
    with Way(model) as way:
        rf.plan(model, "params=0.6", method, data)
    return way


def lines(code: CodeType) -> int:
    """Of a function, less those of its docstring: it may say as much as it needs."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(code))).body
    told = node.body[0] if ast.get_docstring(node) is not None else None
    return len(inspect.getsourcelines(code)[0]) - (0 if told is None else told.end_lineno - told.lineno + 1)


@pytest.mark.parametrize("method", FILES)
def test_the_way_of_a_model_through_plan(method):
    way, level = taken(method), rooms()
    assert len(way.files) <= FILES[method], sorted(way.files)
    room = {file: level[file.split("/")[0].removesuffix(".py")] for file in way.files}
    up = [(caller, called) for caller, called in way.calls if caller in room and room[called] < room[caller]]
    assert not up
    long = {code.co_qualname: lines(code) for code in way.codes}
    assert max(long.values()) <= LONGEST, {name: lines for name, lines in long.items() if lines > LONGEST}


def test_the_trace_sees_a_file_and_a_call_back_up(monkeypatch):
    """What the test above is worth."""
    from rankfold.compress.planning import candidates

    real = candidates.check_finite
    model = small()

    def upwards(*args):
        rf.sites(model)
        rf.reestimate_(model, model, torch.rand(8, 1, 6, 6))
        return real(*args)

    monkeypatch.setattr(candidates, "check_finite", upwards)
    with Way(model) as way:
        rf.plan(model, "params=0.6", "truncate", example=torch.rand(1, 1, 6, 6))
    assert "compress/repair/batchnorm.py" in way.files
