"""A report is not written over files that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rankfold.run.disk.container import parsed

_HEAD = 1024  # bytes, in which every page of rankfold, of any version, forbids itself to fetch anything
_PAGE = b"""content="default-src 'none'; style-src 'unsafe-inline'"""


def check_replaceable(
    directory: Path,
    names: Iterable[str],
    ours: Callable[[Any], bool],
    report: str,
    error: type[ValueError] = ValueError,
) -> None:
    """``error``, before any work, where one of the files ``names`` in ``directory`` would be replaced that rankfold did
    not write. Ours are those beside a file ``report`` whose JSON is ``ours``."""
    if directory.exists() and not directory.is_dir():
        raise error(f"{directory} is a file: give a directory")
    there = [directory / name for name in names if (directory / name).exists()]
    if there and not _told(directory / report, ours):
        raise error(foreign(there[0]))


def check_page(file: Path) -> None:
    """``ValueError``, before any work, where a page would replace a file that is no page of rankfold."""
    if file.is_file():
        with file.open("rb") as opened:
            if (head := opened.read(_HEAD)) and _PAGE not in head:
                raise ValueError(foreign(file, "file"))


def foreign(file: Path, other: str = "directory") -> str:
    """What is said of a file that is left alone."""
    return f"{file} is there already, and rankfold did not write it: give another {other}, or move it first"


def _told(report: Path, ours: Callable[[Any], bool]) -> bool:
    try:
        return ours(parsed(report.read_bytes()))
    except (OSError, ValueError, TypeError):  # also what is no JSON object
        return False
