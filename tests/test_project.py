"""What a repository and a package must bring along."""

import tomllib
from importlib.resources import files
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_types_are_declared_and_packaged() -> None:
    """Type checkers read the hints of a package only where it says that it has them."""
    assert files("rankfold").joinpath("py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/rankfold"]  # every file in it


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_contributing_names_what_ci_runs() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for command in ("ruff check", "ruff format --check", "mypy", "pytest", "sphinx-build -W", ".ci/wheel"):
        assert command in text
        assert command.split()[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_dependency_says_from_which_version_on() -> None:
    """Those that were tried together; docs/versions.md says how."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "test" for name in names]
    others = [name for name in (*project["dependencies"], *extras) if not name.startswith("rankfold[")]  # not our own
    assert [name for name in others if ">=" not in name] == []


def test_the_readme_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in text and extra != "test"] == []
