"""The directory of one run: the same request goes on in it, another one is refused, a restart replaces it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
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
    with ``prefix`` before what is said of the directory. ``ours``: of files that may lie there before a run has begun,
    beside a request that was written here, as hidden ones may in any case; what else does is somebody's. ``hint``: what
    is said at the end where another request is refused, of the ``{directory}``.
    """

    file: str
    read: Callable[[Path], Mapping[str, Any]]
    written: Callable[[Mapping[str, Any]], bytes]
    begun: Callable[[Path], bool]
    forget: Callable[[Path], None]
    error: type[ValueError]
    free: Collection[str] = ()
    ours: re.Pattern[str] = re.compile("(?!)")
    prefix: str = ""
    hint: str = ""

    def check(self, directory: Path) -> None:
        """``error`` for a directory in which there is anything else than a run of rankfold."""
        if directory.exists() and not directory.is_dir():
            raise self.error(f"{self.prefix}{directory} is a file: give a directory")
        file = directory / self.file
        if not directory.exists() or (file.exists() and self.begun(directory)):
            return
        written = self._written(file)

        def ours(name: str) -> bool:
            return written and (name == self.file or self.ours.fullmatch(name) is not None)

        other = next((name for name in visible(directory) if not ours(name)), None)
        if other is not None:
            raise self.error(
                f"{self.prefix}{directory} is not empty and holds no run of rankfold (it holds {other}): give "
                "another directory"
            )

    def _written(self, file: Path) -> bool:
        """Whether a request is there just as it is written here."""
        with suppress(OSError, ValueError):
            return file.read_bytes() == self.written(self.read(file))
        return False

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


def visible(directory: Path, inside: str = "") -> Iterator[str]:
    """Every file below ``directory`` by its path in it, without those that are hidden, or lie in hidden folders."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from visible(path, f"{inside}{path.name}/")
        else:
            yield inside + path.name


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
