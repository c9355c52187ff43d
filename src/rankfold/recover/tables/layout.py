"""What the first lines of a text say of it: delimiter, header, columns; entries one a line, or a wide table."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile

from rankfold.recover.tables.columns import Columns, absent, asked, asked_of_pairs, by_header, by_order, plain, role_of
from rankfold.recover.tables.times import seconds

DELIMITERS = ("\t", ";", ",", "|", "::", " ")  # the first that makes three fields of line 1: a comma may stand in
# numbers, a space in names
UNIT = "\x1f"  # stands for a delimiter of two characters, which no csv reader takes
UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "?", "-")  # in the place of a value: there is none

NUMBERS = 0.75  # of the cells of a wide table that are numbers or empty: those that are not are faults


class Fault(ValueError):
    """Of one line, which its message begins with."""


@dataclass(frozen=True)
class Wanted:
    """What was asked of a file: ``columns`` by name, ``implicit`` feedback (there may be no values), times; whether
    line 1 is a ``header`` (None: by what it looks like). ``valued`` is False for pairs, whose values are not read."""

    columns: tuple[str, ...] | None = None
    implicit: bool = False
    time: bool = False
    header: bool | None = None
    valued: bool = True

    def read(self, columns: Columns) -> Columns:
        """Of the ``columns`` that were found, those that are read."""
        return columns if self.valued else replace(columns, value=None, counted=False)

    def asked(self, first: Sequence[str]) -> Columns:
        """The columns that were named, in a file whose line 1 is ``first``. Raises ``ValueError``."""
        names = self.columns or ()
        if not self.valued:
            return self.read(asked_of_pairs(first, names, time=self.time))
        return asked(first, names, implicit=self.implicit, time=self.time)


@dataclass(frozen=True)
class Layout:
    """How entries lie in a text: ``first``: the number of its first line with any text, counted from 1.

    ``columns`` is None for a wide table, a row of it a line; ``header``: the fields of line ``first`` where it is one.
    """

    delimiter: str
    first: int
    columns: Columns | None
    header: tuple[str, ...] | None
    fields: int

    @property
    def one(self) -> str:
        """The delimiter as one character, after `translated`."""
        return UNIT if len(self.delimiter) > 1 else self.delimiter

    @property
    def called(self) -> tuple[str, str]:
        """What rows and columns are called: a table says it of its rows alone, in its corner."""
        return ((self.header or ("",))[0] or "row", "column") if self.columns is None else self.columns.called

    @property
    def skip(self) -> int:
        """Lines before the first entry, if none of them is blank."""
        return self.first if self.header is not None else self.first - 1

    def translated(self, text: str) -> str:
        return text.replace(self.delimiter, UNIT) if len(self.delimiter) > 1 else text


def layout(head: str, wanted: Wanted) -> Layout:
    """The layout of a text that begins with ``head`` (whole lines). Raises ``Fault`` or ``ValueError``."""
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", head), 1) if line.strip()]
    if not lines:
        raise ValueError("the file is empty: it holds no entries")
    _check_comments(lines)
    _check_title(lines)
    with any_length():
        delimiter = _delimiter([line for _, line in lines[:2]])
    if delimiter == " " and "  " in lines[0][1].strip():
        raise Fault(
            f"line {lines[0][0]}: its fields lie several spaces apart: separate them by one space, a comma or a tab"
        )
    zero = next((number for number, line in lines if "\0" in line), None)
    if zero is not None:
        raise Fault(f"line {zero}: it holds a zero byte: is this a text file in UTF-8?")
    if lines[0][1].count('"') % 2:
        raise Fault(f"line {lines[0][0]}: {stray_quote(delimiter)}")
    with any_length():
        rows = [split(line, delimiter) for _, line in lines[:1000]]
    first, number = rows[0], lines[0][0]
    try:
        found = _found(first, rows[1:], delimiter, number, wanted)
        return found if found.columns is None else replace(found, columns=wanted.read(found.columns))
    except Fault:
        raise
    except ValueError as error:
        raise Fault(f"line {number}: {error}") from None


def first_fields(head: str) -> list[str]:
    """The fields of the first line of a text that begins with ``head``."""
    lines = [line for line in re.split("\r\n|\n|\r", head) if line.strip()]
    with any_length():
        return split(lines[0], _delimiter(lines[:2])) if lines else []


def _check_comments(lines: list[tuple[int, str]]) -> None:
    """``Fault`` for lines of remarks above the entries, which have other fields than these. A name may begin as they
    do."""
    remarks = [number for number, line in takewhile(lambda pair: pair[1].lstrip()[:1] in "#%", lines)]
    text = [line for _, line in lines[len(remarks) :][:2]]
    if not remarks or not text:
        return
    with any_length():
        delimiter = _delimiter(text)
        alike = [len(split(line, delimiter)) == len(split(text[0], delimiter)) for _, line in lines[: len(remarks)]]
    if not all(alike):
        raise Fault(
            f"line {remarks[0]}: it begins with {lines[0][1].lstrip()[0]}, as a remark does: leave lines of remarks out"
        )


def _check_title(lines: list[tuple[int, str]]) -> None:
    """``Fault`` for a line 1 that is one piece of text above lines of several fields."""
    if len(lines) < 3 or any('"' in line for _, line in lines[:3]):
        return
    with any_length():
        delimiter = _delimiter([line for _, line in lines[1:3]])
        title, above, below = (len(split(line, delimiter)) for _, line in lines[:3])
    if title == 1 and above == below > 2:
        raise Fault(
            f"line {lines[0][0]}: {lines[0][1].strip()!r} is a title, and no header or entry, as the lines below have "
            f"{above} fields: remove the line"
        )


def _found(first: list[str], below: list[list[str]], delimiter: str, number: int, wanted: Wanted) -> Layout:
    size = len(first)
    if wanted.columns is not None:
        return Layout(delimiter, number, (columns := _asked(first, below, wanted)), columns.header, size)
    if size < (2 if wanted.implicit else 3):
        raise Fault(too_few(number, first, delimiter, "row, column, value"))
    header = _header(first, below) if wanted.header is None else wanted.header
    if header and _wide(first, below):
        return Layout(delimiter, number, None, tuple(first), size)
    _check_table(first, below, header)
    if header:
        columns = by_header(first, implicit=wanted.implicit, time=wanted.time)
        return Layout(delimiter, number, columns, tuple(first), size)
    columns = _doubted(first, below, by_order(size, implicit=wanted.implicit, time=wanted.time), wanted)
    return Layout(delimiter, number, columns, None, size)


def _asked(first: list[str], below: list[list[str]], wanted: Wanted) -> Columns:
    """The columns that were asked for by name. Raises ``ValueError`` for one that the header does not have."""
    names = wanted.columns or ()
    nameless = [""] * len(first) if wanted.header is False else first
    columns = wanted.asked(nameless)
    if columns.header is not None or wanted.header is False:
        return columns
    there = [plain(name) for name in first]
    missing = [name for name in names if plain(name) not in there]
    texts = len(missing) < len(names) and not any(map(_numeric, first))
    looks = all(first) and (texts or _header(first, below))
    if wanted.header or looks:
        raise ValueError(absent(missing[0], first))
    return _doubted(first, below, columns, wanted)


def _doubted(first: list[str], below: list[list[str]], columns: Columns, wanted: Wanted) -> Columns:
    """``columns`` without a header, with line 1 beside where it may be one: its names come nowhere else in their
    columns, and no number says what they are."""
    if wanted.header is False or columns.value is not None or not below:
        return columns
    pair = (first[columns.row], first[columns.column])
    for at, name in zip((columns.row, columns.column), pair, strict=True):
        if _numeric(name) or any(row[at] == name for row in below if len(row) > at):
            return columns
    return replace(columns, doubt=pair)


def _header(first: Sequence[str], below: list[list[str]]) -> bool:
    """Whether line 1 names the columns: no number in it, and either a customary name or numbers below."""
    if any(_numeric(field) for field in first):
        return _names_numbers(first)
    return any(map(role_of, first)) or any(_numeric(field) for row in below for field in row)


def _names_numbers(first: Sequence[str]) -> bool:
    """Whether a line with numbers is the header of a wide table: user,101,102,103 above u1,5,,3."""
    named = first[0] == "" or bool(role_of(first[0]))
    return named and len(first) > 3 and len(set(first)) == len(first) and all(map(_numeric, first[1:]))


def _wide(first: Sequence[str], below: list[list[str]]) -> bool:
    """Whether each line has one row of a matrix: a name that comes once, then numbers or nothing."""
    roles = {role_of(name) for name in first[1:]}
    if len(first) < 4 or {"column", "value"} & roles or (role_of(first[0]) in ("column", "value") and "row" in roles):
        return False
    if len(set(first)) < len(first) or "time" in roles or not below:
        return False
    names = [row[0] for row in below if row]
    numbers = [field for row in below for field in row[1:]]
    fit = sum(_numeric(one) or one.lower() in UNKNOWN for one in numbers)
    return len(set(names)) == len(names) and fit >= NUMBERS * len(numbers)


def _check_table(first: list[str], below: list[list[str]], header: bool) -> None:
    """``Fault`` for many columns of numbers that nothing says the meaning of: by their order they would be entries, and
    they look like a table that lacks names of its rows, or of its columns."""
    size, rows = len(first), below if header else [first, *below]
    if size <= 4 or not rows or any(role_of(name) for name in first):
        return
    numbers = all(_numeric(field) or field.lower() in UNKNOWN for row in rows for field in row[1:])
    starts = [row[0] for row in rows if row]
    named = not all(_numeric(name) or name.lower() in UNKNOWN for name in starts)
    if numbers and (not named or (not header and len(set(starts)) == len(starts) > 1)):
        what = f"under {', '.join(first[:2])}, …" if header else "without a header"
        raise Fault(
            f"line 1: {size - named} columns of numbers {what} are neither a table nor entries: a table with a row in "
            "each line needs a header, and names in its first column; entries, one in each line, need --columns "
            "row,column,value (in Python columns=…); a matrix may also be given as X in an .npz"
        )


def too_few(line: int, fields: list[str], delimiter: str, order: str) -> str:
    """The sentence on a line with too few fields."""
    whole = delimiter.join(fields)
    for other in DELIMITERS:
        if other != delimiter and len(split(whole, other)) >= 3:
            return (
                f"line {line}: the delimiter of line 1, {delimiter!r}, makes {len(fields)} of 3 fields here, and "
                f"{other!r} makes three: use one delimiter throughout, and write decimals with a point"
            )
    if len(fields) == 2 and order == "row, column, value":
        by_order(2)  # says that two columns are implicit feedback
    return f"line {line}: there are {len(fields)} of 3 fields; is the file cut short? {order[0].upper()}{order[1:]}"


def stray_quote(delimiter: str) -> str:
    """The sentence on a quote that has no partner."""
    return (
        f'a quote (") opens a field here that does not close before a {delimiter!r} or the end of a line: remove '
        "it, or double it and quote the whole field"
    )


def number_of(text: str) -> float | None:
    """The number that ``text`` is, if it is one; not with Python's strokes between digits, as in 1_000."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def instead_of_a_number(text: str) -> str:
    """What to do about a text where a number should be, after a colon; empty where nothing is known."""
    if number_of(text.replace(",", ".")) is not None:
        return ": write decimals with a point"
    if seconds(text) is not None:
        return ": it is a time; say which columns are meant, in the order row, column, value (--columns)"
    return ""


@contextmanager
def any_length() -> Iterator[None]:
    """Fields may be longer than the 128 kB that csv takes without being told: up to 2 GB."""
    limit = csv.field_size_limit(sys.maxsize // 2**32)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def split(line: str, delimiter: str) -> list[str]:
    """The stripped fields of one line."""
    one = UNIT if len(delimiter) > 1 else delimiter
    fields = next(csv.reader([line.replace(delimiter, one)], delimiter=one), [])
    return [field.strip() for field in fields]


def _numeric(field: str) -> bool:
    return number_of(field.replace(",", ".")) is not None


def _delimiter(lines: list[str]) -> str:
    """Of the first line, by the second where a space would make three fields of names with spaces."""
    made = {one: [len(split(line, one)) for line in lines] for one in DELIMITERS}
    three = [one for one in DELIMITERS if made[one][0] >= 3]
    two = [one for one in DELIMITERS if set(made[one]) == {2} and one != " "]
    if three and not (three == [" "] and two and len(set(made[" "])) > 1):
        return three[0]
    return two[0] if two else max((",", ";", "\t", "|", " "), key=lines[0].count)
