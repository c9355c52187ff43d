"""The navigation of the site, read from the tables of index.md: they alone say which pages there are, in which order.

python docs/navigation.py    writes llms.txt
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
LADDER = ("Tutorials", "How-to", "Explanations", "Reference")
NAMES = "Public names"
API = "api"


@dataclass(frozen=True)
class Entry:
    """A page in a table: what it is called there, where it lies, and the question that it answers."""

    name: str
    path: str
    question: str


def index() -> str:
    return (DOCS / "index.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under ``## heading``."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def entries(text: str, heading: str) -> list[Entry]:
    """The pages of one step of the ladder."""
    rows = re.findall(r"(?m)^\| \[(.+?)\]\((.+?)\) \| (.+) \|$", section(text, heading))
    return [Entry(name, path, question) for name, path, question in rows]


def groups(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, public names) of each table of names; a name of a room has the room before it (``zoo.model``)."""
    for part in section(text, NAMES).split("\n### ")[1:]:
        rows = re.findall(r"(?m)^\| (`.*?) \| .* \|$", part)
        yield part.partition("\n")[0], [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]


def slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def toctrees(text: str) -> str:
    """What Sphinx must be told of the tables, and of the pages made from docstrings."""
    trees = []
    for heading in LADDER:
        lines = [f"{entry.name} <{entry.path.removesuffix('.md')}>" for entry in entries(text, heading)]
        trees.append(_tree(heading, lines))
    trees.append(_tree("API", [f"{heading} <{API}/{slug(heading)}>" for heading, _ in groups(text)]))
    return "\n".join(trees)


def _tree(caption: str, lines: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def llms(text: str) -> str:
    """The list of pages for language models, as llmstxt.org describes it."""
    parts = [
        "# rankfold",
        "> A Python library and command line on PyTorch that finds, induces and exploits low-rank structure in deep "
        "networks: it makes a trained network smaller within a budget, trains networks so that they become low-rank, "
        "adapts them by low-rank updates, completes matrices, and shows why networks are low-rank.",
        "Every code block on these pages runs as it stands. `import rankfold as rf`; the way of a matrix is "
        '`rf.profile(model, data)`, `known.plan("flops=0.5")`, `rf.apply_(copy, plan, known)`, `rf.save`, `rf.load`. '
        "Names that end in an underscore change the model that they are given. The command line does the same: "
        "`rankfold compress MODEL --data DATA --budget flops=0.5 -o DIR`.",
    ]
    for heading in LADDER:
        rows = [f"- [{entry.name}]({entry.path}): {entry.question}" for entry in entries(text, heading)]
        parts.append(f"## {heading}\n\n" + "\n".join(rows))
    rows = [f"- {heading}: {', '.join(names)}" for heading, names in groups(text)]
    return "\n\n".join(parts) + f"\n\n## {NAMES}\n\n" + "\n".join(rows) + "\n"


def linked(text: str) -> list[str]:
    """The pages that such a list names, as paths in this folder."""
    return re.findall(r"^- \[[^\]]+\]\(([^)]+\.md)\)", text, re.MULTILINE)


if __name__ == "__main__":
    (DOCS / "llms.txt").write_text(llms(index()), encoding="utf-8")
