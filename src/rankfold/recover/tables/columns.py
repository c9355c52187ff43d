"""Which column of a table is the row, the column and the value: by customary names in its header, else by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("row", "column", "value")
NAMES = {
    "row": "row user customer reviewer rater viewer reader listener member person profile subject student patient",
    "column": "column col item movie film product asin book isbn song track artist joke article game restaurant",
    "value": "value rating score stars star overall grade entry count plays",
    "ignored": "timestamp time datetime date day year unixreviewtime index",
}
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Columns:
    """The positions of row, column and value among ``fields`` columns; ``header``: their names, where there are any."""

    row: int
    column: int
    value: int
    fields: int
    header: tuple[str, ...] | None = None

    def remark(self) -> str:
        """What was taken as what, in a sentence."""
        at = (self.row, self.column, self.value)
        others = [number for number in range(self.fields) if number not in at]
        if self.header is None:
            more = f"; {_listed([str(number + 1) for number in others])} ignored" if others else ""
            return f"no header: columns 1, 2, 3 are row, column, value{more}"
        row, column, value = (self.header[number] for number in at)
        more = f"; {_listed([self.header[number] or 'the nameless' for number in others])} ignored" if others else ""
        return f"line 1 taken as a header: {row} is the row, {column} the column, {value} the value{more}"

    def order(self) -> str:
        """The order in which fields are read, for a line that cannot be."""
        role_of = dict(zip((self.row, self.column, self.value), ROLES, strict=True))
        told = ", ".join(role_of.get(number, "ignored") for number in range(self.fields))
        header = "there is no header" if self.header is None else f"by the header {','.join(self.header)}"
        return f"the order is {told}; {header}"


def by_header(names: Sequence[str]) -> Columns:
    """Columns by their names, such as user, item, rating, timestamp, in any order; what is not known keeps the order
    row, column, value. Raises ``ValueError`` where fewer than three are left."""
    known = [_ROLE_OF.get(_plain(name), "") if name else "ignored" for name in names]
    found = {role: known.index(role) for role in ROLES if role in known}
    wanted = [role for role in ROLES if role not in found]
    left = [number for number, role in enumerate(known) if role != "ignored" and number not in found.values()]
    if len(left) < len(wanted):  # a date may be the row, where nothing else is
        left = [number for number, name in enumerate(names) if name and number not in found.values()]
    if len(left) < len(wanted):
        raise ValueError(
            f"of {', '.join(names)} none can be the {wanted[-1]}: call it {wanted[-1]}, or leave line 1 out"
        )
    found |= dict(zip(wanted, left, strict=False))
    return Columns(found["row"], found["column"], found["value"], len(names), tuple(names))


def _plain(name: str) -> str:
    """userId, user_id and "User ID" are user; id alone is what it is."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    for ending in ("id", "name", "s"):
        short = letters.removesuffix(ending)
        if letters not in _ROLE_OF and short in _ROLE_OF:
            return short
    return letters


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
