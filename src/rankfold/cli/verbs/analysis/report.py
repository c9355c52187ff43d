"""``rankfold report``: several results side by side in one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.options import Json


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR…", help="Two or more directories that compress wrote.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The page.")] = Path("comparison.html"),
    as_json: Json = False,
) -> None:
    """Compare results: budget, figures, cost, curve, and every layer, side by side in one page.

    Reads what compress has kept; runs nothing. Each DIR has a report.html of its own.
    """
    from rankfold.cli.checks import check_is_page
    from rankfold.cli.printing import print_json
    from rankfold.pipeline.comparing import write_comparison

    check_is_page(out, "comparison.html")
    file = write_comparison(directories, out)
    if as_json:
        print_json({"file": str(file), "directories": [str(directory) for directory in directories]})
    else:
        print(f"{len(directories)} results side by side: {file}")
