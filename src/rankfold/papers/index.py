"""What an experiment shows, and how far it was run: the rows of the index, in words that the experiment carries itself.

Nothing here imports torch, so that ``rankfold reproduce --list`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["in full", "in part", "quick only", "not run", "nothing to run"]
STATES: Mapping[State, str] = {
    "in full": "at the paper's sizes, as far as it tells them",
    "in part": "fewer networks, seeds, sizes or epochs, or another setting, which is told",
    "quick only": "its machinery on small data that stand in for the paper's; nothing about the claim",
    "not run": "no command",
    "nothing to run": "a drawing, a list, or numbers of other rows",
}
DOCUMENTS: Mapping[str, str] = {
    "LoRITa": "Structure-Preserving Network Compression Via Low-Rank Induced Training",
    "C-DLN": "Efficient Compression of Overparameterized Deep Models through Low-Dimensional Learning Dynamics",
    "NRC": "Neural Rank Collapse",
    "RG": "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks",
    "talk": "Exploiting Low-Rank Structures in Deep Neural Networks",
}


@dataclass(frozen=True)
class Shown:
    """A table or figure of a document, or a part of one: how far it was run, with seeds, and what is missing."""

    document: str
    what: str
    state: State
    told: str

    def __post_init__(self) -> None:
        if self.document not in DOCUMENTS or self.state not in STATES:
            raise ValueError(f"no such document or state: {self.document!r}, {self.state!r}")


@dataclass(frozen=True)
class Experiment:
    """A command of ``rankfold reproduce``: the function in a module of this package, and what it ``shows``.

    ``about``: networks and data, in a few words.
    """

    name: str
    module: str
    function: str
    about: str
    shows: tuple[Shown, ...]


def rows(experiments: Iterable[Experiment], without: Sequence[Shown]) -> list[dict[str, Any]]:
    """The index: document, what, state, experiment ("" for none), told; in the order of the documents' own numbers."""
    found = [(each.name, shown) for each in experiments for shown in each.shows] + [("", shown) for shown in without]
    documents = list(DOCUMENTS)
    found.sort(key=lambda row: (documents.index(row[1].document), _place(row[1].what)))
    return [
        {"document": each.document, "what": each.what, "state": each.state, "experiment": name, "told": each.told}
        for name, each in found
    ]


def _place(what: str) -> tuple[int, int, str]:
    kind, number = [*what.split(",")[0].split(), "", ""][:2]
    kinds = ("table", "figure", "theorem")
    digits = "".join(c for c in number if c.isdigit() or c == ".").split(".")[0]
    return (kinds.index(kind) if kind in kinds else len(kinds), int(digits or 0), number + what)


def markdown(index: Sequence[Mapping[str, Any]]) -> str:
    """The index as the table that docs/reproductions.md holds, and the states explained under it."""
    lines = ["| document | what | run | command | how far, and what is missing |", "|---|---|---|---|---|"]
    for row in index:
        command = f"`{row['experiment']}`" if row["experiment"] else "–"
        lines.append(f"| {row['document']} | {row['what']} | {row['state']} | {command} | {row['told']} |")
    lines += ["", *(f"*{state}*: {said}." for state, said in STATES.items())]
    return "\n".join(lines) + "\n"


def commands(experiments: Iterable[Experiment]) -> str:
    """The commands as the table that docs/reproductions.md holds."""
    lines = ["| command | networks, data |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{each.name}` | {each.about} |" for each in experiments)]) + "\n"


def written(page: str, blocks: Mapping[str, str]) -> str:
    """``page`` with what stands between `<!-- NAME -->` and `<!-- end of NAME -->` replaced by the block of that name.

    Raises ``ValueError`` for a block that the page has no place for.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, opened, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise ValueError(f"the page has no place between {begin.strip()} and {end}")
        page = before + begin + block + end + after
    return page


def listing(index: Sequence[Mapping[str, Any]]) -> str:
    """The index for a terminal: a block for each document."""
    parts = []
    for document, title in DOCUMENTS.items():
        lines = [f"{document}: {title}"]
        for row in (row for row in index if row["document"] == document):
            lines.append(f"  {row['what']}: {row['state']}" + (f"  ({row['experiment']})" * bool(row["experiment"])))
            lines.append(f"      {row['told']}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
