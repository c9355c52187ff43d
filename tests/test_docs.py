"""README, docs and examples: code runs, commands parse, links lead somewhere, and no public name is forgotten."""

from __future__ import annotations

import copy
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import navigation
import notebooks
import pytest
import typer.main

import rankfold
from rankfold.cli.main import VERBS, app, verb
from rankfold.compress import methods
from rankfold.compress.ranks import asked, rules
from rankfold.forms import form
from rankfold.objectives import names as objectives
from rankfold.sites import find

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "tutorials").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = ["compress_your_own_model.py", "look_at_spectra.py"]


@dataclass(frozen=True)
class Block:
    """A fenced block: the words behind the fence, the text inside, and the line on which the text begins."""

    info: tuple[str, ...]
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not (opening := re.match(r" {0,3}(`{3,}|~{3,})\s*(.*)", line)):
            continue
        inside = []
        for _, inner in lines:
            if inner.strip().startswith(opening[1]):
                break
            inside.append(inner)
        yield Block(tuple(opening[2].split()), "\n".join(inside) + "\n", number + 1)


def runnable(page: Path) -> list[tuple[Block, str | None]]:
    """The blocks to run, and what each must print where a block ``text output`` follows."""
    found = list(blocks(page.read_text(encoding="utf-8")))
    return [
        (block, after.text if after is not None and after.info == ("text", "output") else None)
        for block, after in zip(found, [*found[1:], None])
        if block.info == ("python",)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words after ``rankfold`` of every command in a console or shell block; a backslash continues a line."""
    for block in blocks(text):
        if not block.info or block.info[0] not in ("console", "bash", "sh", "shell"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.info[0] == "console" and not line.startswith("$ "):
                continue
            for part in line.removeprefix("$ ").split("&&"):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "rankfold":
                    yield words[1:]


def parse(words: list[str]) -> None:
    """What the command line does with these words before it runs a verb; raises its own usage errors."""
    group: Any = typer.main.get_command(app)
    asks_help = "--help" in words
    words = [word for word in words if word != "--help"]
    if words and words[0] in VERBS:
        verb(words[0]).make_context(words[0], words[1:], resilient_parsing=asks_help)
    else:
        group.make_context("rankfold", words, resilient_parsing=asks_help)


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What a page registers is forgotten at its end."""
    tables = [
        table
        for module in (form, find, methods, asked, rules, objectives)
        for name, table in vars(module).items()
        if isinstance(table, dict | list) and not name.startswith("__")
    ]
    before = [copy.copy(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept) if isinstance(table, dict) else table.extend(kept)


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for block, expected in runnable(page):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        exec(code, names)
        printed = capsys.readouterr().out
        assert expected is None or printed == expected, f"{page.name}, line {block.line}, printed:\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_parse(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        parse(words)


def test_a_wrong_command_is_noticed() -> None:
    page = "```console\n$ .venv/bin/rankfold plan resnet20 --budjet flops=0.5 \\\n    -o plan.json\n```\n"
    (words,) = commands(page)
    with pytest.raises(Exception, match="budjet"):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in headings(file), f"{page.name}: {link}"


def headings(file: Path) -> set[str]:
    """The anchors that forges make of headings."""
    found = re.findall(r"(?m)^#+ +(.+?) *$", file.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_public_name_has_its_page() -> None:
    text = navigation.index()
    names = [name for _, group in navigation.groups(text) for name in group]
    assert sorted(name for name in names if "." not in name) == sorted(rankfold.__all__)
    rows = re.findall(r"(?m)^\| (`.*?) \| (.*) \|$", navigation.section(text, navigation.NAMES))
    assert sum(len(re.findall(r"`[\w.]+`", names)) for names, _ in rows) == len(names)
    for named, links in rows:
        pages = "\n".join((DOCS / link).read_text(encoding="utf-8") for link in re.findall(r"\((.+?)\)", links))
        plain = [name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", named)]
        assert [name for name in plain if not re.search(rf"\b{name}\b", pages)] == [], links


def test_every_page_is_in_the_navigation_once() -> None:
    """What stands in no table of the index is in no menu, and the site does not build."""
    text = navigation.index()
    listed = [entry.path for heading in navigation.LADDER for entry in navigation.entries(text, heading)]
    there = [page.relative_to(DOCS).as_posix() for page in PAGES[1:] if page.name != "index.md"]
    assert sorted(listed) == sorted(there)


def test_the_list_for_language_models_is_that_of_the_index() -> None:
    assert (DOCS / "llms.txt").read_text(encoding="utf-8") == navigation.llms(navigation.index()), (
        "run python docs/navigation.py"
    )


def test_the_pages_that_the_list_names_are_those_of_the_index_and_are_there() -> None:
    """The site puts them beside its own, as they are written."""
    pages = navigation.linked((DOCS / "llms.txt").read_text(encoding="utf-8"))
    listed = [entry.path for heading in navigation.LADDER for entry in navigation.entries(navigation.index(), heading)]
    assert pages == listed
    assert all((DOCS / page).is_file() for page in pages)


@pytest.mark.parametrize("page", notebooks.PAGES)
def test_a_notebook_is_made_of_its_page(page: str) -> None:
    """Its cells are the blocks that run above."""
    text = (notebooks.FOLDER / f"{page}.ipynb").read_text(encoding="utf-8")
    assert text == notebooks.notebook(page), "run python docs/notebooks.py"
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert cells == [block.text.strip("\n") for block, _ in runnable(DOCS / "tutorials" / f"{page}.md")]


SEARCHED = {
    "my model is slower": "My model is slower",
    "accuracy fell": "Accuracy fell",
    "singular Gram": "A matrix of moments is singular (singular Gram)",
    "out of memory": "Out of memory",
    "layer left out": "A layer was left out",
}


@pytest.mark.parametrize("words", SEARCHED)
def test_a_symptom_is_found_by_the_words_one_has_for_it(words: str) -> None:
    """As the search of the site does: a page with all the words, those in a heading first."""
    headings = re.findall(r"(?m)^## (.+)$", (DOCS / "symptoms.md").read_text(encoding="utf-8"))
    asked = set(words.lower().split())
    found = [heading for heading in headings if asked <= set(re.findall(r"\w+", heading.lower()))]
    assert found == [SEARCHED[words]]


def test_every_room_is_on_the_page_inside() -> None:
    """In the order of the contract that the code is held to."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    rooms = [name.strip(" ()") for layer in contract["layers"] for name in layer.split("|")]
    text = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8").partition("## Rooms")[2].partition("\n## ")[0]
    told = re.findall(r"(?m)^\| `(\w+)` \|", text)
    assert sorted(told) == sorted(rooms)
    heights = {name.strip(" ()"): at for at, layer in enumerate(contract["layers"]) for name in layer.split("|")}
    assert [heights[name] for name in told] == sorted(heights[name] for name in told)


def test_every_verb_and_option_is_explained() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name in VERBS:
        assert f"## {name}\n" in text, name
        for parameter in verb(name).params:
            long = [option for option in parameter.opts if option.startswith("--")]
            assert not long or any(option in text for option in parameter.opts), (name, parameter.opts)


def test_the_list_of_commands_is_that_of_the_page() -> None:
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| \[(\w+)\]\(#\w+\) \| (.+) \|$", text)
    told = [(name, does.rstrip(".").lower()) for name, (_, does) in VERBS.items()]
    assert [(name, does.replace("`", "").lower()) for name, does in rows] == told


@pytest.mark.parametrize("name", QUICK)
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out or list(tmp_path.iterdir())  # it says, or leaves, something


def test_every_example_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in EXAMPLES if f"examples/{file.name}" not in text] == []
