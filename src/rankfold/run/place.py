"""The directory of one run: the same request goes on in it, another one is refused, a restart replaces it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rankfold.run.disk.files import write_atomically

_SHORT = 60  # characters of a value that is still shown in an error


@dataclass(frozen=True)
class Place:
    """How runs of one kind keep what they were asked.

    ``file`` under the directory holds the request, which ``read`` and ``written`` turn into values and text. ``begun``
    says whether a run has come so far that another request would lose something; ``forget`` removes what a run wrote.
    ``free``: keys that may differ between two calls that continue each other. ``error``: the exception that is raised,
    with ``prefix`` before what is said of the directory. ``ours``: patterns of what may lie there before a run has
    begun, as hidden files may; what else does is somebody's, whether a file has the name of the request or not.
    ``hint``: what is said at the end where another request is refused, of the ``{directory}``.
    """

    file: str
    read: Callable[[Path], Mapping[str, Any]]
    written: Callable[[Mapping[str, Any]], bytes]
    begun: Callable[[Path], bool]
    forget: Callable[[Path], None]
    error: type[ValueError]
    free: Collection[str] = ()
    ours: Collection[str] = ()
    prefix: str = ""
    hint: str = ""

    def check(self, directory: Path) -> None:
        """``error`` for a directory in which there is anything else than a run of rankfold."""
        if directory.exists() and not directory.is_dir():
            raise self.error(f"{self.prefix}{directory} is a file: give a directory")
        if not directory.exists() or ((directory / self.file).exists() and self.begun(directory)):
            return
        ours = (".*", self.file, *self.ours)
        other = sorted(p.name for p in directory.iterdir() if not any(fnmatch(p.name, each) for each in ours))
        if other:
            raise self.error(
                f"{self.prefix}{directory} is not empty and holds no run of rankfold (it holds {other[0]}): give "
                "another directory"
            )

    def take(self, directory: Path, request: Mapping[str, Any], restart: bool = False) -> None:
        """Make ``directory``, which must be claimed, the place of ``request``: new, or the same one again.

        Raises ``error`` for a directory with other files in it, and for another request unless ``restart``, which
        forgets how far the earlier run had come.
        """
        self.check(directory)
        file = directory / self.file
        if file.exists() and (restart or not self.begun(directory)):
            self.forget(directory)
        elif file.exists():
            differing = self.differing(directory, request)
            if differing:
                raise self.error(
                    f"{directory} holds a run with other settings ({'; '.join(differing)}): give another "
                    f"directory, or --restart (restart=True) to replace it{self.hint.format(directory=directory)}"
                )
            return
        write_atomically(file, self.written(request))

    def differing(self, directory: Path, request: Mapping[str, Any]) -> list[str]:
        """What was asked otherwise of the run in ``directory``, in words; empty if it is this request."""
        before = self.read(directory / self.file)
        return [
            _said(key, before.get(key), request.get(key))
            for key in {**request, **before}
            if key not in self.free and before.get(key) != request.get(key)
        ]


def _said(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        return f"{key}: other {', '.join(map(str, inner))}"
    both = f"{_plain(before)} and is {_plain(now)}"
    return f"{key} was {both}" if len(both) <= _SHORT else f"{key}: not the same"


def _plain(value: Any) -> str:
    """As it was typed, where that is known: of a budget params=0.5."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict) and "kind" in value:
        others = [f"{other}" for name, other in value.items() if name != "kind"]
        return f"{value['kind']}={', '.join(others)}"
    return repr(value)
