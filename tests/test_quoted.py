"""Numbers that the pages quote are those that are stored: README and docs against benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- measured: ([\w.-]+) -->\n(.*?)(?:\n\n|\Z)", re.DOTALL)
UNIT = r"(?= ?(?:%|points|s\b|×|times|±))"
NUMBER = re.compile(rf"(?<![\w.,])[−-]?\d+(?:,\d{{3}})*(?:\.\d+)?{UNIT}|(?<=± )\d+\.\d+|\d*\.\d+(?= \|)")


def quotes(text: str) -> Iterator[tuple[str, str]]:
    """(file of results, block of text) of every block behind a mark, up to the next empty line."""
    for match in MARK.finditer(text):
        yield match[1], match[2]


def numbers(block: str) -> list[str]:
    """Measured ones as they are written: per cent, points, seconds, ratios, deviations, decimals in tables."""
    return [found.replace(",", "").replace("−", "-") for found in NUMBER.findall(block)]


def values(stored: Any) -> Iterator[float]:
    """Every number of a file; of a list of numbers mean and deviation too."""
    if isinstance(stored, bool) or stored is None or isinstance(stored, str):
        return
    if isinstance(stored, int | float):
        yield float(stored)
    elif isinstance(stored, list):
        plain = [x for x in stored if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(plain) == len(stored) > 1:
            yield from (fmean(plain), stdev(plain))
        for each in stored:
            yield from values(each)
    else:
        for each in stored.values():
            yield from values(each)


def unknown(block: str, stored: Any) -> list[str]:
    """Numbers of the block that no stored value rounds to, as it is or in per cent."""
    known = list(values(stored))
    missing = []
    for number in numbers(block):
        digits = len(number.partition(".")[2])
        if not any(round(scale * value, digits) == float(number) for value in known for scale in (1, 100)):
            missing.append(number)
    return missing


QUOTED = [(page.name, name, block) for page in PAGES for name, block in quotes(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "name", "block"), QUOTED, ids=[f"{page}-{name}" for page, name, _ in QUOTED])
def test_quoted_numbers_are_stored(page: str, name: str, block: str) -> None:
    file = RESULTS / f"{name}.json"
    assert file.is_file(), f"{page} quotes {name}, which {RESULTS} does not hold"
    assert numbers(block), f"{page}: no number behind the mark of {name}"
    assert unknown(block, json.loads(file.read_text(encoding="utf-8"))) == []


def test_the_readme_marks_what_it_reaches() -> None:
    """Every accuracy of README stands in a block that is compared."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for _, block in quotes(text):
        text = text.replace(block, "")
    assert re.findall(r"\d\d\.\d+ (?:± [\d.]+ )?%", re.sub(r"(?ms)^```.*?^```", "", text)) == []


def test_what_is_stored_says_how_it_was_made() -> None:
    for file in RESULTS.glob("*.json"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        assert stored["command"], file.name
        assert stored["seeds"], file.name


@pytest.mark.parametrize("changed", ["98.35 ± 0.12 %", "98.34 ± 0.13 %", "0.08 points"])
def test_a_number_that_was_copied_wrongly_is_noticed(changed: str) -> None:
    stored = {"accuracy": [0.9831, 0.9847, 0.9847, 0.9824, 0.9823], "drop": 0.07}
    assert unknown("98.34 ± 0.12 %, 98.47 %, 0.07 points", stored) == []
    assert unknown(changed, stored)
