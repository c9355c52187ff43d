"""Commands run as a person would type them, in this process."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from rankfold.cli.main import app


def rankfold(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="rankfold")


def succeeded(*arguments: object):
    """The JSON object of a command that must succeed."""
    result = rankfold(*arguments, "--json")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # what the runner has caught, with where it came from
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def failed(*arguments: object) -> str:
    """The one line of a command that must fail with exit code 1."""
    result = rankfold(*arguments)
    assert result.exit_code == 1, (result.exit_code, result.output)
    assert result.stdout == ""
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert result.stderr.splitlines()[-1] == line
    assert "Traceback" not in result.stderr
    return line
