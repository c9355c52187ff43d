"""Which column of a table is the row, the column and the value: by customary names in its header, else by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

ROLES = ("row", "column", "value")
NAMES = {
    "row": "row user customer reviewer rater viewer reader listener member person profile subject student patient",
    "column": "column col item movie film product asin book isbn song track artist joke article game restaurant",
    "value": "value rating score stars star overall grade entry count plays listens clicks",
    "time": "timestamp time datetime date when unixreviewtime",
    "ignored": "day year index",
}
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names.split()}
NO_VALUE = "two columns that tell who did what are implicit feedback: add --implicit (in Python implicit=True)"


@dataclass(frozen=True)
class Columns:
    """The positions of row, column and value among ``fields`` columns; ``header``: their names, where there are any.

    ``value`` is None where each line counts once, ``time`` where no time is read.
    """

    row: int
    column: int
    value: int | None
    fields: int
    header: tuple[str, ...] | None = None
    time: int | None = None
    counted: bool = True  # each line once, where there is no value: not so of pairs to predict
    doubt: tuple[str, ...] = ()  # line 1, where it is read as an entry and may be a header

    @property
    def needed(self) -> tuple[int, ...]:
        """The positions that are read."""
        return tuple(at for at in (self.row, self.column, self.value, self.time) if at is not None)

    @property
    def called(self) -> tuple[str, str]:
        """The names of row and column in the header; without one what they are."""
        header = self.header or ("",) * self.fields
        return header[self.row] or ROLES[0], header[self.column] or ROLES[1]

    def remark(self) -> str:
        """What was taken as what, in a sentence."""
        others = [number for number in range(self.fields) if number not in self.needed]
        if self.header is None:
            more = f"; {listed([str(number + 1) for number in others])} ignored" if others else ""
            numbers = ", ".join(str(at + 1) for at in self.needed)
            roles = ", ".join(self.roles())
            doubt = ""
            if self.doubt:
                doubt = (
                    f"; line 1 ({', '.join(self.doubt)}) is read as an entry, though its names come nowhere else: if "
                    "it is a header, say --header, otherwise --no-header (in Python header=True or False)"
                )
            return f"no header: columns {numbers} are {roles}{more}{doubt}"
        told = self._named()
        more = f"; {listed([self.header[number] or 'the nameless' for number in others])} ignored" if others else ""
        counted = ", each line counted once" if self.value is None and self.counted else ""
        return f"line 1 taken as a header: {', '.join(told)}{counted}{more}"

    def roles(self) -> list[str]:
        """Of the positions that are read, in their order."""
        return [role for _, role in self._pairs()]

    def _named(self) -> list[str]:
        """ "user is the row", "item the column", …, of columns with a header."""
        header = self.header or ()
        return [f"{header[at]} {'is ' * (not number)}the {role}" for number, (at, role) in enumerate(self._pairs())]

    def _pairs(self) -> list[tuple[int, str]]:
        given = zip((self.row, self.column, self.value, self.time), (*ROLES, "time"), strict=True)
        return [(at, role) for at, role in given if at is not None]

    def order(self) -> str:
        """The order in which fields are read, for a line that cannot be."""
        if self.header is not None:
            return f"by the header {', '.join(self._named())}"
        role_of = dict(self._pairs())
        told = [role_of.get(number, "ignored") for number in range(max(self.needed) + 1)]
        if self.fields > len(told) + 1:
            told.append(f"{self.fields - len(told)} more ignored")
        elif self.fields > len(told):
            told.append("ignored")
        return f"the order is {', '.join(told)}; there is no header"


def by_order(fields: int, *, implicit: bool = False, time: bool = False) -> Columns:
    """Row, column, value, time in that order. Raises ``ValueError`` where there are too few of ``fields`` columns."""
    value = 2 if fields > 2 else None
    when = None
    if time:
        when = 3 if fields > 3 else None
        if when is None:
            raise ValueError(
                f"there is no column of times, as there are {fields} columns and no header: the time is the fourth, or "
                "named by --columns (in Python columns=[…])"
            )
    if value is None and not implicit:
        raise ValueError(f"there are {fields} fields, and three are needed: row, column, value; {NO_VALUE}")
    return Columns(0, 1, value, fields, time=when)


def by_header(names: Sequence[str], *, implicit: bool = False, time: bool = False, header: bool = True) -> Columns:
    """Columns by their names, such as user, item, rating, timestamp, in any order; what is not known keeps the order
    row, column, value. Raises ``ValueError`` where fewer than three are left.

    With ``implicit`` the value may be missing: each line counts once. ``time``: read the column of times too.
    """
    known = [role_of(name) if name else "ignored" for name in names]
    found = {role: known.index(role) for role in ROLES if role in known}
    when = known.index("time") if time and "time" in known else None
    if time and when is None:
        raise ValueError(
            f"none of the columns {', '.join(names)} is known as a time, and with times every file needs one: call the "
            "column time in its header, or give the names of all four, the time last, as "
            "--columns user,item,rating,when (in Python columns=[…])"
        )
    wanted = [role for role in ROLES if role not in found]
    left = [
        number
        for number, role in enumerate(known)
        if role not in ("ignored", "time") and number not in found.values() and number != when
    ]
    if implicit and "value" in wanted and len(left) < len(wanted):
        wanted.remove("value")
    if len(left) < len(wanted):  # a date may be the row, where nothing else is, and a time what was measured
        left = [number for number, name in enumerate(names) if name and number not in (*found.values(), when)]
        at = wanted.index("value") if "value" in wanted else len(left)
        stamp = names[left[at]] if at < len(left) else ""
        if role_of(stamp) == "time" and plain(stamp) != "time":
            raise ValueError(
                f"{listed(list(names))} are a row, a column and a time, without a value; {NO_VALUE}; where "
                f"{stamp} is what was measured, call it value"
            )
    if len(left) < len(wanted):
        if wanted == ["value"] and len(names) == 2:
            raise ValueError(f"there are 2 fields, and three are needed: row, column, value; {NO_VALUE}")
        raise ValueError(
            f"none of the columns {', '.join(names)} can be the {wanted[-1]}: say which is which, as "
            "--columns user,item,rating (in Python columns=[…]), or that line 1 is no header, --no-header"
        )
    found |= dict(zip(wanted, left, strict=False))
    twice = next((names[at] for at in found.values() if names[at] and names.count(names[at]) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are called {twice!r}: give one of them another name")
    told = tuple(names) if header else None
    return Columns(found["row"], found["column"], found.get("value"), len(names), told, when)


def asked(first: Sequence[str], names: Sequence[str], *, implicit: bool = False, time: bool = False) -> Columns:
    """Columns by the ``names`` that were asked for: those of the header ``first`` where it has all of them, else names
    of the columns in their order, without a header. With ``time`` the fourth of four is the time, whatever its name.

    Raises ``ValueError`` where ``names`` are fewer than two, or more than the columns there are.
    """
    if time and len(names) == 4 and "time" not in map(role_of, names):
        return _timed(first, names, implicit)
    there = [plain(name) for name in first]
    wanted = [plain(name) for name in names]
    if all(name in there for name in wanted):
        at = [there.index(name) for name in wanted]
        if len(names) < 3 <= len(first) and not implicit:
            raise ValueError(_third(names, first))
        given = by_header(list(names), implicit=implicit, time=time)
        value = None if given.value is None else at[given.value]
        when = None if given.time is None else at[given.time]
        return Columns(at[given.row], at[given.column], value, len(first), tuple(first), when)
    if len(names) > len(first):
        raise ValueError(f"{len(names)} columns are named ({', '.join(names)}), and line 1 has {len(first)} fields")
    if len(names) < 3 and not implicit:
        raise ValueError(_third(names, first))
    padded = [*names, *[""] * (len(first) - len(names))]
    return by_header(padded, implicit=implicit, time=time, header=False)


def _third(names: Sequence[str], first: Sequence[str]) -> str:
    """The sentence on too few names for entries with values."""
    named = f"{'1 column is' if len(names) == 1 else f'{len(names)} columns are'} named ({', '.join(names)})"
    more = f"name the column of values too (line 1 is {', '.join(first)}); " if len(first) > 2 else ""
    return f"{named}, and row, column and value are three: {more}{NO_VALUE}"


def asked_of_pairs(first: Sequence[str], names: Sequence[str], *, time: bool = False) -> Columns:
    """The same of pairs to predict: ``names`` are those of entries, and of them row, column and time need be there."""
    there, told = [plain(name) for name in first], _roles(names, time)
    needed = sorted(at for at in (told.row, told.column, told.time) if at is not None)
    if all(plain(names[at]) in there for at in needed):
        place = {at: there.index(plain(names[at])) for at in needed}
        header: tuple[str, ...] | None = tuple(first)
    elif len(first) == len(needed):
        place, header = {at: number for number, at in enumerate(needed)}, None
    else:
        return asked(first, names, implicit=True, time=time)
    when = None if told.time is None else place[told.time]
    return Columns(place[told.row], place[told.column], None, len(first), header, when)


def _roles(names: Sequence[str], time: bool) -> Columns:
    """Positions among ``names`` that were asked for."""
    if time and len(names) == 4 and "time" not in map(role_of, names):
        return replace(by_header(names[:3], implicit=True), time=3)
    return by_header(names, implicit=True, time=time)


def _timed(first: Sequence[str], names: Sequence[str], implicit: bool) -> Columns:
    """The columns of ``names``, the last of which is the time."""
    found = asked(first, names[:3], implicit=implicit)
    there = [plain(name) for name in first]
    if found.header is None and len(first) > 3:
        return replace(found, time=3)
    if found.header is None or plain(names[3]) not in there:
        raise ValueError(absent(names[3], first))
    return replace(found, time=there.index(plain(names[3])))


def absent(name: str, first: Sequence[str]) -> str:
    """The sentence on a name that the header does not have."""
    return f"there is no column {name!r}: the header has {', '.join(first)}"


def role_of(name: str) -> str:
    """The role of a customary name, or an empty text."""
    return "time" if name.lower().endswith("_at") else _ROLE_OF.get(plain(name), "")  # rated_at, created_at


def plain(name: str) -> str:
    """userId, user_id and "User ID" are user; id alone is what it is."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    for ending in ("id", "name", "s"):
        short = letters.removesuffix(ending)
        if letters not in _ROLE_OF and short in _ROLE_OF:
            return short
    return letters


def split_names(columns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of columns, of which a text holds them between commas, as on the command line."""
    if isinstance(columns, str):
        return tuple(name.strip() for name in columns.split(","))
    return None if columns is None else tuple(columns)


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
