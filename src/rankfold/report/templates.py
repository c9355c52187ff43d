"""Where the templates of pages are, and how they are filled: text is escaped, what is missing is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def templates() -> Environment:
    """The environment of every page; filters are the page's own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # short commands draw no page

    return Environment(
        loader=PackageLoader("rankfold.report", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
