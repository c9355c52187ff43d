"""Whether a weight is being made for whoever reads it: what that calls is no step of the network, which only reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

_Make = TypeVar("_Make", bound=Callable[..., Any])


class _Reads(threading.local):
    under_way = 0


_READS = _Reads()


def being_read() -> bool:
    """Whether this thread is making a weight at the moment."""
    return _READS.under_way > 0


def made_to_be_read(make: _Make) -> _Make:
    """``make``, which gives a weight to its reader, such that ``being_read`` within."""

    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return make(*args, **kwargs)
        _READS.under_way += 1
        try:
            return make(*args, **kwargs)
        finally:
            _READS.under_way -= 1

    return cast(_Make, made)
