"""``rankfold sweep``: a grid of training runs, and the table that selects weight decay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.failure import FAILED, stopped
from rankfold.cli.options import Download, Json, ObjectiveName, Restart, Threads
from rankfold.cli.printing import print_json, print_table
from rankfold.cli.verbs.training.train import Settings, TrainDevice, TrainPrecision, trained_with

if TYPE_CHECKING:
    from rankfold.objectives import Figure
    from rankfold.pipeline import SweepResult


def sweep(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="YAML: the keys of a run, and grid: key → list of values.")
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the runs go; in place of the key out.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one for each core.", show_default=False)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Dask scheduler (tcp://host:8786).")
    ] = None,
    restart: Restart = False,
    download: Download = False,
    objective: ObjectiveName = None,
    device: TrainDevice = None,
    precision: TrainPrecision = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train every combination of the values in grid, each in a directory of its own under DIR.

    The same command goes on after an interruption: finished runs are read back, others resumed, failed ones tried
    again. Weight decay is selected by the mean judging figure on validation; that on test is shown of the selected
    alone.
    """
    from rankfold.pipeline import Tell, parse_sweep
    from rankfold.pipeline import sweep as run
    from rankfold.pipeline.trainings.config import overridden, read
    from rankfold.run.processes.team import world_size
    from rankfold.run.progress import Talk

    if world_size() > 1:
        raise ValueError("sweep starts its own processes: run it without torchrun")
    if scheduler is not None:
        check_idle("with --scheduler, whose workers say how many there are", jobs=jobs)
    values = overridden(read(grid), settings or ())
    given = {"out": out and str(out), "jobs": jobs, "download": download or None, "threads": threads}
    given |= trained_with(objective, device, precision)
    values |= {key: value for key, value in given.items() if value is not None}
    asked = parse_sweep(values, grid)
    with Talk() as talk:
        many = f"{len(asked.runs)} runs" if len(asked.runs) > 1 else "1 run"
        talk.say(f"{many} in {asked.out}, {f'{asked.jobs} at a time' if scheduler is None else f'on {scheduler}'}")
        try:
            result = run(asked, scheduler=scheduler, restart=restart, tell=Tell(talk.progress, talk.say))
        except KeyboardInterrupt:
            raise stopped(True) from None
    if as_json:
        print_json(result.to_dict())
    else:
        print_sweep(result)
    if result.runs["error"].notna().all():
        raise typer.Exit(FAILED)


def print_sweep(result: SweepResult) -> None:
    """A row for each combination; the selected ones carry a star and their figure on the test split."""
    from rankfold.pipeline.trainings.sweep import said

    table = result.table
    keys = [str(key) for key in table.columns[: table.columns.get_loc("runs")]]
    lines = []
    for row in table.to_dict("records"):
        odd = [f"{row[what]} of {row['runs']} {how}" for what, how in _ODD.items() if row[what]]
        lines.append(
            [
                *(said(row[key]) for key in keys),
                str(row["runs"] - row["failed"]),
                _with_deviation(result.figure, row["validation_mean"], row["validation_std"]),
                "*" if row["selected"] else "",
                _with_deviation(result.figure, row["test_mean"], row["test_std"]),
                ", ".join(odd),
            ]
        )
    print_table([*keys, "runs", "validation", "", "test", ""], lines, left=(len(keys) + 2, len(keys) + 4))
    if "weight_decay" in keys:
        print(_footnote(result.figure, [key for key in keys if key != "weight_decay"]))
    for row in result.runs.to_dict("records"):
        for what in ("error", "warning"):
            if isinstance(row[what], str):
                print(f"{what}: {Path(str(row['directory'])).name}: {row[what]}")
    print(f"\ntable: {result.out / 'sweep.csv'}, {result.out / 'sweep.json'}")


def _footnote(kind: Figure, others: list[str]) -> str:
    each = f" for each {' and '.join(others)}" if others else ""
    best = f"{'highest' if kind.higher else 'lowest'} mean validation {kind.name}"
    return f"* marks the weight decay chosen{each}: {best}; ± is the deviation over seeds"


_ODD = {"failed": "failed", "warned": "broke down"}


def _with_deviation(kind: Figure, mean: Any, deviation: Any) -> str:
    if mean != mean:
        return ""
    spread = f" ± {100 * deviation:.2f}" if kind.unit == "fraction" else f" ± {deviation:.2g}"
    return replace(kind, value=mean).text + ("" if deviation != deviation else spread)
