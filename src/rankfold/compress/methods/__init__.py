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


_NAMED: dict[str, Method] = {method.name: method for method in METHODS}


def register_method(method: Method) -> Method:
    """Make a method of one's own known by its name, to plans and to files that name it.

    Args:
        method: an object with ``name``, ``forms``, ``needs_data`` and ``decompose``; see docs/inside.md.

    Returns:
        ``method``.

    Raises:
        ValueError: what is missing of it, or a name that is taken.

    Example:
        >>> from rankfold.compress.methods.truncate import Truncate
        >>> _ = rf.register_method(Truncate(name="mine"))
        >>> rf.plan(nn.Sequential(nn.Linear(8, 8)), "params=0.9", "mine", example=torch.randn(1, 8)).method
        'mine'
    """
    _NAMED[method_named(method).name] = method
    return method


def method_named(name: str | Method) -> Method:
    """The method called ``name``; anything that is a method already is returned as it is."""
    if not isinstance(name, str):
        lacking = [part for part in ("name", "forms", "needs_data", "decompose") if not hasattr(name, part)]
        if lacking or isinstance(name, type):
            raise ValueError(
                "method= must be the name of a method, or an object with name, forms, needs_data and "
                f"decompose(…); got {name!r}"
            )
        return name
    if name in _NAMED:
        return _NAMED[name]
    raise ValueError(
        f"there is no method named {name!r}: the methods are {', '.join(_NAMED)}. Register a method of your own "
        "before reading a plan that names it (rankfold.register_method)"
    )
