"""Rooms import one way, and none is crowded; a room that reaches upwards or grows too large is caught."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FULL = 16  # files in a folder, beside the __init__.py that says its rule


def lint(config: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", script, "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_contracts_hold() -> None:
    result = lint(ROOT / "pyproject.toml", ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_direction_is_caught(tmp_path: Path) -> None:
    """The same contracts with two rooms exchanged must fail, or they would prove nothing."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    swapped = text.replace(
        '    "compress | (collapse) | (induce) | (record)",\n    "hub",\n    "train",\n',
        '    "train",\n    "compress",\n    "hub",\n',
    )
    assert swapped != text
    config = tmp_path / "pyproject.toml"
    config.write_text(swapped, encoding="utf-8")
    result = lint(config, ROOT)
    assert result.returncode != 0
    assert "rankfold.compress.repair.finetune" in result.stdout


def crowded(source: Path) -> dict[str, int]:
    """How many files each folder holds that holds more than can be taken in at a glance."""
    count = Counter(path.parent for path in source.rglob("*.py") if path.name != "__init__.py")
    return {folder.relative_to(source).as_posix(): files for folder, files in count.items() if files > FULL}


def test_no_folder_is_crowded() -> None:
    assert crowded(ROOT / "src" / "rankfold") == {}


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    for room, files in (("full", FULL), ("full/inner", FULL), ("full/crowded", FULL + 1)):
        (tmp_path / room).mkdir()
        for name in ("__init__", *map(str, range(files))):
            (tmp_path / room / f"{name}.py").touch()
    assert crowded(tmp_path) == {"full/crowded": FULL + 1}


@pytest.mark.parametrize("module", ["rankfold.linalg", "rankfold.cli.main"])
def test_light_modules_leave_heavy_ones_alone(module: str) -> None:
    """linalg needs no network module, and --help needs no torch."""
    heavy = {"rankfold.linalg": "torchvision", "rankfold.cli.main": "torch"}[module]
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


HEAVY = {"sklearn", "pandas", "matplotlib", "tensorly", "joblib", "jinja2", "yaml", "datasets", "transformers", "peft"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}  # two seconds and 200 MB
COMMANDS = {
    "analyze": ("analyze digits-cnn --no-plots", HEAVY | COMPILER | {"scipy"}),
    "analyze with pictures": ("analyze digits-cnn -o spectra", HEAVY - {"matplotlib"} | COMPILER | {"scipy"}),
    "plan": ("plan digits-cnn --weights w.safetensors --budget flops=0.5 -o p.json", HEAVY | COMPILER),
    "show": ("show plan.json", HEAVY | COMPILER | {"scipy"}),
    "evaluate": ("evaluate digits-cnn --weights w.safetensors", HEAVY - {"yaml"} | COMPILER | {"scipy"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, a plan, and a cache that holds the digits already."""
    from safetensors.torch import save_file

    import rankfold as rf
    from rankfold import zoo

    folder = tmp_path_factory.mktemp("commands")
    network = zoo.model("digits-cnn")
    save_file(network.state_dict(), folder / "w.safetensors")
    rf.plan(network, "flops=0.5", "truncate", example=zoo.example_input("digits-cnn")).save(folder / "plan.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKFOLD_CACHE", str(folder / "cache"))
        zoo.load_data("digits")
    return folder


def loaded(place: Path, arguments: str) -> set[str]:
    """The modules that one command has imported at its end."""
    code = (
        "import sys; from rankfold.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=open('modules', 'w'))"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    environment = os.environ | {"RANKFOLD_CACHE": str(place / "cache")}
    subprocess.run(command, check=True, cwd=place, env=environment, capture_output=True)
    return set((place / "modules").read_text().split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_short_command_imports_only_what_it_uses(place: Path, name: str) -> None:
    arguments, absent = COMMANDS[name]
    found = loaded(place, arguments)
    assert "torch" in found
    assert not found & absent


def test_the_public_names_bring_no_slow_library() -> None:
    code = "import rankfold as rf, sys; assert callable(rf.plan); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = set(done.stdout.split())
    assert "torch" in found
    assert not found & (HEAVY | COMPILER | {"scipy"})


def test_rooms_with_names_of_their_own_are_found_without_an_import() -> None:
    lines = (
        "import rankfold as rf",
        "rooms = sorted(rf._ROOMS)",
        "assert all(getattr(rf, room).__name__ == f'rankfold.{room}' for room in rooms) and rooms",
        "assert rf.hub.to_dense and callable(rf.sites)",
        "assert not hasattr(rf, 'nothing')",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
