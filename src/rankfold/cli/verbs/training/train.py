"""``rankfold train``: one training run from a YAML file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.failure import FAILED, Interrupted
from rankfold.cli.options import Download, Json, ObjectiveName, Restart, Threads
from rankfold.cli.printing import count, print_json, print_table, typed

if TYPE_CHECKING:
    from rankfold.pipeline import TrainResult

_WAIT = 10.0  # seconds

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Put this in place of what the file says; dotted keys reach inside (augment.flip=false). Repeatable.",
        show_default=False,
    ),
]


TrainDevice = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="In place of the key device: cpu, cuda or auto.", show_default=False),
]
TrainPrecision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="In place of the key precision: float32, bfloat16 or auto.",
        show_default=False,
    ),
]


def trained_with(objective: str | None, device: str | None, precision: str | None) -> dict[str, Any]:
    """The keys of a run that options stand for, where they are given."""
    return {"objective": objective, "device": device, "precision": precision}


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML: model, data, depth, out, and the recipe.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the run goes; in place of the key out.")
    ] = None,
    restart: Restart = False,
    download: Download = False,
    objective: ObjectiveName = None,
    device: TrainDevice = None,
    precision: TrainPrecision = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a network, over-parametrised if depth is 2 or more, and leave the ordinary one in DIR.

    The same command resumes after an interruption, and runs on several processes under
    torchrun --nproc-per-node=N -m rankfold train CONFIG. Relative paths start from the current directory.
    """
    from rankfold.pipeline import Tell
    from rankfold.pipeline import train as run
    from rankfold.pipeline.trainings.config import overridden, parse, read
    from rankfold.run.processes.team import world_size
    from rankfold.run.progress import Talk

    quiet = world_size() > 1 and os.environ["RANK"] != "0"
    try:
        values = overridden(read(config), settings or ())
        given = {"out": out and str(out), "download": download or None, "threads": threads}
        given |= trained_with(objective, device, precision)
        values |= {key: value for key, value in given.items() if value is not None}
        asked = parse(values, config)
        with Talk() as talk:
            result = run(asked, restart=restart, tell=Tell(talk.progress, talk.say))
    except (ValueError, OSError):
        if quiet:  # the first process says it, unless torchrun ends it because this one has ended before
            time.sleep(_WAIT)
            raise typer.Exit(FAILED) from None
        raise
    except KeyboardInterrupt:
        raise Interrupted("" if quiet else "The same command continues from the last finished epoch.") from None
    if quiet:
        return
    if as_json:
        print_json(result.to_dict())
        return
    print_result(result, asked.objective)


def print_result(result: TrainResult, objective: str | None = None) -> None:
    """What was reached, what is odd about it, and what can be done next; by the ``objective`` that was asked for."""
    judged = result.validation.judged
    composed = f", {count(result.trained_params)} in factors while training" if result.depth > 1 else ""
    if result.small is not None:
        composed = f", {count(result.small_params or result.trained_params)} in factors"
    how = f"depth {result.depth}"
    if result.ranks:
        how = "low rank from the first step" if result.way is None else f"low rank by {result.way['name']}"
    rows = [
        (f"validation {judged.name}", f"{judged.text}, of epoch {result.best_epoch}"),
        *([] if result.test is None else [(f"test {judged.name}", result.test.judged.text)]),
        ("parameters", f"{count(result.params)}{composed}"),
        ("training", f"{result.seconds:.1f} s, {result.epochs} epochs, seed {result.seed}"),
    ]
    print_table((result.model, f"{result.data}, {how}"), rows, left=(0, 1))
    if result.warning is not None:
        print(f"warning: {result.warning}")
    weights = Path(result.directory) / "model.safetensors"
    print(f"\nmodel: {weights}")
    if result.small is not None:
        print(f"small: {result.small}, the same network in its factors")
        code = result.model if ":" in result.model else None
        asked = typed([("--model", code), ("--to", "onnx"), ("-o", "small.onnx")])
        print(f"next: rankfold export {quote(result.small)} {asked}")
        return
    asked = typed([("--weights", weights), ("--data", result.data), ("--objective", objective)])
    print(f"next: rankfold compress {quote(result.model)} {asked} --budget params=0.5 -o small")
