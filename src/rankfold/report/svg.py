"""A matplotlib figure as SVG inside a page: colours from the page's style sheet, names of its own, nothing to load."""

import io
import re
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

# Drawn with these, replaced by the custom properties of the same name in the page.
INK, MUTED, RULE, FILL = "#000001", "#000002", "#000003", "#000004"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
_PROPERTIES = {INK: "ink", MUTED: "muted", RULE: "rule", FILL: "fill"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}

_WIDE = 400.0  # points, from which a picture keeps a least width in a narrow window

STYLE: Any = {  # rc parameters
    "svg.fonttype": "none",
    "svg.hashsalt": "rankfold",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,
}


def inline(figure: Figure, identity: str, label: str) -> Markup:
    """SVG markup of `figure`: `identity` keeps its ids apart from other pictures', `label` is read aloud instead."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{identity}-", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*;", "", text)
    for colour, name in _PROPERTIES.items():
        text = text.replace(colour, f"var(--{name})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    wide = ' class="wide"' if width > _WIDE else ""
    opening = f'<svg{wide} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    text = opening + text[text.index(">", text.index("<svg")) + 1 :]
    return Markup(re.sub(r"\s+", " ", text))
