"""Notebooks of the first tutorials, made from their pages, without outputs; the tests run the same code on the pages.

python docs/notebooks.py    writes examples/notebooks
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "examples" / "notebooks"
PAGES = ("ten-minutes", "your-own", "language-model")
FENCE = re.compile(r"(?ms)^```(\w[^\n]*)\n(.*?)^```\n?")


def notebook(page: str) -> str:
    """The notebook of a tutorial: text as it is, ``python`` blocks as cells, printed output left out."""
    text = (DOCS / "tutorials" / f"{page}.md").read_text(encoding="utf-8")
    cells, at, prose = [], 0, ""
    for block in FENCE.finditer(text):
        prose += text[at : block.start()]
        at = block.end()
        if block[1] == "python":
            cells += [_cell("markdown", prose), _cell("code", block[2])]
            prose = ""
        elif block[1] != "text output":
            prose += block[0]
    cells.append(_cell("markdown", prose + text[at:]))
    kept = [cell for cell in cells if cell["source"]]
    for number, cell in enumerate(kept):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": kept, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, text: str) -> dict[str, object]:
    if kind == "markdown":  # links lead from the folder of notebooks to the pages
        text = re.sub(r"\]\((\.\./)([^)]+)\)", r"](../../docs/\2)", text)
        text = re.sub(r"\]\(([\w-]+\.md)\)", r"](../../docs/tutorials/\1)", text)
    cell: dict[str, object] = {"cell_type": kind, "id": "", "metadata": {}, "source": text.strip("\n").splitlines(True)}
    return cell if kind == "markdown" else cell | {"execution_count": None, "outputs": []}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        (FOLDER / f"{page}.ipynb").write_text(notebook(page), encoding="utf-8")
