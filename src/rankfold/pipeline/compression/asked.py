"""Objects that decide a result as plain values, so that the request of another one is another request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from rankfold.run.digest import digest
from rankfold.run.mark import mark
from rankfold.sites import Names, sites
from rankfold.sites.wish import Where

_PLAIN = (str, int, float, bool, type(None))


def layers_of(model: nn.Module, where: Where) -> Any:
    """A choice of layers: patterns as they are, of a function the layers that it chooses."""
    if isinstance(where, Names):
        return asdict(where)
    return [site.name for site in sites(model, where)] if callable(where) else where


def valued(value: Any, known: Collection[Any]) -> Any:
    """A method or an objective: its name, where it is one of the ``known``, for which the name stands in every version;
    else its class and all that it holds."""
    return value.name if value in known else {"name": value.name, **_values(value)}


def _values(value: Any) -> dict[str, Any]:
    held = {each.name: getattr(value, each.name) for each in fields(value)} if is_dataclass(value) else vars(value)
    return {"class": _title(type(value)), **{name: _plain(each) for name, each in held.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, FunctionType):  # another one may have the same name, as all lambdas have
        code = value.__code__
        constants = [each for each in code.co_consts if isinstance(each, _PLAIN)]
        return f"{_title(value)} {mark([code.co_code.hex(), code.co_names, constants])}"
    return _values(value) if is_dataclass(value) and not isinstance(value, type) else _title(type(value))


def _title(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
