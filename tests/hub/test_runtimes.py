"""The table of runtimes is true of what is installed here: the script that made it runs."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "runtimes.py"))
HERE = ("transformers", "onnxruntime", "OpenVINO", "lm-eval")  # the others have tests of their own


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> object:
    return SCRIPT["Case"](tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize("name", HERE)
def test_a_compressed_model_answers_there_as_in_torch(name: str, case: object) -> None:
    package, run = SCRIPT["RUNTIMES"][name]
    if find_spec(package) is None:
        pytest.skip(f"{name} is not installed")
    assert run(case) < 1e-4


def test_every_runtime_of_the_script_is_in_the_table() -> None:
    page = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    names = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")}
    assert {name.partition(", dense")[0] for name in SCRIPT["RUNTIMES"]} <= names
