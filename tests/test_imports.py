"""Rooms import one way; a room that reaches upwards is caught."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
        '    "compress | (adapt) | (collapse) | (induce) | (record)",\n    "train",\n',
        '    "train",\n    "compress",\n',
    )
    assert swapped != text
    config = tmp_path / "pyproject.toml"
    config.write_text(swapped, encoding="utf-8")
    result = lint(config, ROOT)
    assert result.returncode != 0
    assert "rankfold.compress.repair.finetune" in result.stdout


@pytest.mark.parametrize("module", ["rankfold.linalg", "rankfold.cli.main"])
def test_light_modules_leave_heavy_ones_alone(module: str) -> None:
    """linalg needs no network module, and --help needs no torch."""
    heavy = {"rankfold.linalg": "torchvision", "rankfold.cli.main": "torch"}[module]
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
