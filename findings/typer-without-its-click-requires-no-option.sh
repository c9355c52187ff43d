#!/usr/bin/env bash
# typer 0.16.0 and 0.18.0, click 8.5.1, Python 3.11
#
# Guess: typer 0.16.0 allows any click from 8.0 on, so with a click of today what has no default is still required: a command that
# lacks an option or argument ends with exit code 2 and "Missing option" or "Missing argument".
# Seen: with 0.16.0 the command runs, with None in place of either, and ends with 0. With 0.18.0 both are refused. pip is content
# with either pair. Ask for typer >= 0.18 yourself.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet typer==0.16.0 click==8.5.1
"$place/venv/bin/pip" check
cat >"$place/command.py" <<'PY'
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def write(name: str, out: Annotated[Path, typer.Option("--out")]) -> None:
    print(f"{name} goes to {out!r}")


app()
PY
run() { "$place/venv/bin/python" "$place/command.py" "$@" 2>&1; }
said="$(run table)"
echo "typer 0.16.0, without --out: $said"
[ "$said" = "table goes to None" ]
said="$(run --out file)"
echo "typer 0.16.0, without its argument: $said"
[[ "$said" == "None goes to "* ]]
"$place/venv/bin/pip" install --quiet typer==0.18.0 click==8.5.1
code=0
said="$(run table)" || code=$?
[ "$code" = 2 ]
[[ "$said" == *"Missing option"* ]]
code=0
said="$(run --out file)" || code=$?
[ "$code" = 2 ]
[[ "$said" == *"Missing argument"* ]]
echo "typer 0.18.0: exit code 2, Missing option and Missing argument"
echo "as found"
