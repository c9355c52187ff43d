"""A grid of training runs: each in its own directory, failures as rows, and the table that selects weight decay."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
import pandas as pd

from rankfold.files import write_atomically
from rankfold.pipeline.tell import Tell
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig, at_key, parse, with_key
from rankfold.pipeline.trainings.rundir import FREE, TrainResult, finished
from rankfold.pipeline.trainings.selection import SELECTED, selection
from rankfold.pipeline.trainings.training import train
from rankfold.report.quantities import percent
from rankfold.run.cells import Progress, run_cells


@dataclass(frozen=True)
class Sweep:
    """`runs`: one configuration for each combination of the values of `grid`; `jobs` at a time.

    In the order of `grid`, with weight decay and then seeds last.
    """

    grid: Mapping[str, Sequence[Any]]
    runs: tuple[TrainConfig, ...]
    out: Path
    jobs: int


@dataclass(frozen=True)
class SweepResult:
    """`runs`: a row for each run; `table`: a row for each combination without its seeds (`selection`)."""

    runs: pd.DataFrame
    table: pd.DataFrame
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """What `rankfold sweep --json` prints and `sweep.json` holds; what is not known is null."""
        return {"out": str(self.out), "runs": _records(self.runs), "table": _records(self.table)}


def parse_sweep(values: Mapping[str, Any], source: str | Path = "grid") -> Sweep:
    """The runs that `values` ask for: keys of a run, `grid` (key → list of values) and `jobs`.

    Every combination is checked here, before any of them runs. Raises ConfigError.
    """
    base = dict(values)
    grid, jobs = base.pop("grid", None), base.pop("jobs", None)
    if not isinstance(grid, dict) or not grid:
        raise ConfigError(f"{source}: key grid is missing; for example 'grid: {{depth: [1, 3], seed: [0, 1]}}'")
    for key, options in grid.items():
        if not isinstance(options, list) or not options:
            raise ConfigError(f"{source}: grid.{key} must be a list of values, got {options!r}")
        if key in FREE:  # where and how to run is no part of a grid
            raise ConfigError(f"{source}: grid.{key}: say {key} once, outside of grid")
    if base.get("out") is None:
        raise ConfigError(f"{source}: key out is missing: the directory of the sweep, or --out DIR")
    base.setdefault("threads", 1)
    keys = sorted(grid, key=lambda key: (key == "seed", key == SELECTED))
    out = Path(base["out"])
    runs: dict[str, TrainConfig] = {}
    for combination in itertools.product(*(grid[key] for key in keys)):
        asked = dict(base)
        for key, value in zip(keys, combination):
            asked = with_key(asked, key, value)
        config = parse(asked, source)
        name = ",".join(f"{key}={_cell(at_key(config.to_dict(), key))}" for key in keys)
        if name in runs:
            raise ConfigError(f"{source}: grid: {name} is there twice")
        runs[name] = parse(asked | {"out": str(out / quote(name, safe="=,.+-"))}, source)
    threads = next(iter(runs.values())).threads or 1
    jobs = max(1, joblib.cpu_count() // threads) if jobs is None else jobs
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"{source}: jobs must be a whole number of at least 1, got {jobs!r}")
    return Sweep({key: grid[key] for key in keys}, tuple(runs.values()), out, jobs)


def sweep(
    asked: Sweep, *, scheduler: str | None = None, restart: bool = False, tell: Tell | None = None
) -> SweepResult:
    """Train all runs, `asked.jobs` at a time in processes of this machine, or on the Dask `scheduler`; write the table.

    Finished runs are read back and others resumed, so that the same call goes on after an interruption. A run that
    fails is a row with its reason, and is tried again by the next call. Writes `sweep.csv` (a line for each run) and
    `sweep.json` into `asked.out`. Dask workers must see the same files under the same paths. Raises ValueError
    where no scheduler answers.
    """
    tell, runner = tell or Tell(), _Runs(Path.cwd(), restart)
    outcomes = run_cells(
        asked.runs, runner, asked.jobs, what="runs", scheduler=scheduler, failed=str, progress=tell.progress,
        say=tell.say,
    )  # fmt: skip
    runs = pd.DataFrame([_row(asked, *each) for each in zip(asked.runs, outcomes, strict=True)])
    table = selection(runs, list(asked.grid))
    keys = [key for key in asked.grid if key != "seed"]
    chosen = runs.merge(table[[*keys, "selected"]], on=keys, how="left") if keys else runs.assign(selected=True)
    chosen.loc[~chosen["selected"], "test_accuracy"] = float("nan")
    result = SweepResult(chosen, table, asked.out)
    write_atomically(asked.out / "sweep.csv", chosen.to_csv(index=False).encode())
    write_atomically(asked.out / "sweep.json", (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return result


@dataclass(frozen=True)
class _Runs:
    """Each run in the directory that its configuration names, seen from ``here``."""

    here: Path
    restart: bool

    def name(self, config: TrainConfig) -> str:
        return config.out

    def read(self, config: TrainConfig) -> TrainResult | str | None:
        with suppress(ConfigError):  # a damaged result: what is to be done is said in its row
            return None if self.restart else finished(self._seen(config))
        return None

    def do(self, config: TrainConfig, progress: Progress) -> TrainResult | str:
        return train(self._seen(config), restart=self.restart, tell=Tell(progress))

    def said(self, config: TrainConfig, result: TrainResult | str) -> str:
        if isinstance(result, str):
            return result
        odd = "" if result.warning is None else f" (warning: {result.warning})"
        return f"validation {percent(result.validation_accuracy, 2)}, {result.seconds:.1f} s{odd}"

    def _seen(self, config: TrainConfig) -> TrainConfig:
        return config.model_copy(update={"out": str(self.here / config.out)})


def _row(asked: Sweep, config: TrainConfig, outcome: TrainResult | str) -> dict[str, Any]:
    values = config.to_dict()
    row = {key: _cell(at_key(values, key)) for key in asked.grid}
    if isinstance(outcome, str):
        return row | {"error": outcome, "warning": None, "directory": config.out, **dict.fromkeys(_FIGURES)}
    figures = {name: getattr(outcome, name) for name in _FIGURES}
    return row | {"error": None, "warning": outcome.warning, "directory": config.out, **figures}


_FIGURES = ("validation_accuracy", "validation_loss", "best_epoch", "test_accuracy", "seconds")


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))
