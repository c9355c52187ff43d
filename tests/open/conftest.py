"""What a test registers is forgotten at its end, so that no other test meets it."""

import importlib
import sys

import pytest

from rankfold.compress import methods
from rankfold.compress.ranks import asked, rules
from rankfold.forms import form
from rankfold.objectives import names
from rankfold.sites import register_reader


class Mine:
    """The modules of ``tests/mine``; each is imported, and registers itself, when it is first named."""

    def __getattr__(self, kind: str):
        return importlib.import_module(f"mine.{kind}")


@pytest.fixture
def mine(monkeypatch):
    own = sys.modules[register_reader.__module__]._OWN
    tables = form._REGISTERED, methods._NAMED, rules._NAMED, asked._KINDS, names._NAMED
    before, readers = [dict(table) for table in tables], list(own)
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]
    yield Mine()
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)
    own[:] = readers
