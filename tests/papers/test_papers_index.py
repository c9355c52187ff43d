"""The index of what was run: every table and figure once, as the documentation has it, from what experiments carry."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from commands import rankfold

from rankfold.papers import EXPERIMENTS, INDEX
from rankfold.papers.collapse.figure_4 import DECAYS, HIDDEN
from rankfold.papers.index import DOCUMENTS, STATES, Shown, commands, listing, markdown, written

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "reproductions.md", ROOT / "benchmarks" / "results"
# what the five documents print, counted by hand; the talk and the recovery guarantees have neither tables nor figures
PRINTED = {
    "LoRITa": {"table": {"1a", "1b", "2", "3", "4", "5", "6"}, "figure": set("123456")},
    "C-DLN": {"table": set("123"), "figure": {str(number) for number in range(1, 23)}},
    "NRC": {"figure": set("12345")},
    "RG": {"theorem": {"3.1", "4.4", "4.9"}},
}


def test_every_table_and_figure_has_a_row_and_no_row_is_of_another() -> None:
    found: dict[str, dict[str, set[str]]] = {}
    for row in INDEX:
        if match := re.match(r"(table|figure|theorem) (\S+?)(?:,|$)", row["what"]):
            found.setdefault(row["document"], {}).setdefault(match[1], set()).add(match[2])
        else:
            assert row["document"] == "talk"
    assert found == PRINTED
    assert {row["document"] for row in INDEX} == set(DOCUMENTS)
    twice = [key for key, count in Counter((row["document"], row["what"]) for row in INDEX).items() if count > 1]
    assert not twice


def test_a_row_without_a_command_has_nothing_to_run_or_says_so() -> None:
    for row in INDEX:
        assert (row["experiment"] == "") == (row["state"] in ("not run", "nothing to run")), row
        assert row["told"]
    with pytest.raises(ValueError, match="no such document or state"):
        Shown("LoRITa", "table 9", "half", "")  # type: ignore[arg-type]


def test_the_page_holds_the_index_and_every_command() -> None:
    """`python benchmarks/index.py` writes both."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = {"commands": commands(EXPERIMENTS.values()), "index": markdown(INDEX)}
    assert written(text, blocks) == text
    changed = [row | {"state": "not run"} if row["what"] == "table 2" else row for row in INDEX]
    assert written(text, {"index": markdown(changed)}) != text
    with pytest.raises(ValueError, match="no place"):
        written(text, {"nowhere": ""})


def test_what_was_not_run_is_counted_as_the_command_has_it() -> None:
    (told,) = (row["told"] for row in INDEX if row["experiment"] == "nrc-figure-5-full")
    assert told == f"width 1568 was not run: {len(HIDDEN) * len(DECAYS)} trainings"


def test_the_command_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = rankfold("reproduce", "--list")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(listing(INDEX))
    assert all(f"  {name}: " in shown.stdout for name in EXPERIMENTS)
    plain = json.loads(rankfold("reproduce", "--list", "--json").stdout)
    assert plain["index"] == INDEX
    assert set(plain["experiments"]) == set(EXPERIMENTS)
    assert {row["state"] for row in plain["index"]} <= set(STATES)
    none = rankfold("reproduce")
    assert none.exit_code == 2
    assert "--list" in none.stderr


def test_what_is_said_of_table_1a_is_what_its_rows_say():
    told = PAGE.read_text().split("<!-- measured: lorita-table-1a -->")[1].split("**In the paper")[0]
    rows = re.findall(r"\| fcn-\d+ \| \d \| \S+ \| ([\d.]+) ± ([\d.]+) % \| ([\d.]+) % \|", told)
    kept = json.loads((RESULTS / "lorita-table-1a.json").read_text())["tables"]["table-1a"]
    digits = {"accuracy": 2, "std": 2, "published": 1}
    assert rows == [tuple(f"{100 * row[key]:.{n}f}" for key, n in digits.items()) for row in kept]
    assert {row["seeds"] for row in kept} == {3}
    assert all(float(theirs) - float(ours) <= 0.3 for ours, _, theirs in rows)
    assert sum(round(float(ours), 1) >= float(theirs) for ours, _, theirs in rows) == 8  # "eight of nine"
