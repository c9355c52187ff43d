"""Write what the experiments say of themselves into docs/reproductions.md: the table of commands, and the index.

    python benchmarks/index.py

A test holds the page to it (tests/papers/test_papers_index.py).
"""

from pathlib import Path

from rankfold.papers import EXPERIMENTS, INDEX
from rankfold.papers.index import commands, markdown, written

PAGE = Path(__file__).parents[1] / "docs" / "reproductions.md"

if __name__ == "__main__":
    blocks = {"commands": commands(EXPERIMENTS.values()), "index": markdown(INDEX)}
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
