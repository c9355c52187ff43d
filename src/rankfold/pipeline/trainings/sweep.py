"""A grid of training runs: each in its own directory, failures as rows, and the table that selects weight decay."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
import pandas as pd

from rankfold.linalg.brief import brief
from rankfold.objectives import Figure
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig, at_key, parse, with_key
from rankfold.pipeline.trainings.inputs import content_of
from rankfold.pipeline.trainings.rundir import FREE, TrainResult, finished
from rankfold.pipeline.trainings.selection import SELECTED, selection
from rankfold.pipeline.trainings.training import train
from rankfold.run.cells import run_cells
from rankfold.run.claim import claimed, holder
from rankfold.run.disk.files import write_atomically
from rankfold.run.disk.foreign import check_replaceable
from rankfold.run.mark import mark
from rankfold.run.progress import Progress, Tell, shown
from rankfold.train import TrainingError
from rankfold.zoo import load_data

_LOOK, _GONE = 10.0, 300.0  # seconds between looks for the sweep; without a sign of it, on another machine
_LONGEST, _TITLE = 255, 100  # bytes of a name that disks take; of one with a digest what comes before it
_ACCURACY = Figure("accuracy", float("nan"), True, "fraction")


@dataclass(frozen=True)
class Sweep:
    """`runs`: one configuration for each combination of the values of `grid`; `jobs` at a time.

    In the order of `grid`, with weight decay and then seeds last.
    """

    grid: Mapping[str, Sequence[Any]]
    runs: tuple[TrainConfig, ...]
    out: Path
    jobs: int

    __repr__ = brief


@dataclass(frozen=True)
class SweepResult:
    """`runs`: a row for each run; `table`: a row for each combination without its seeds (`selection`); `figure`: the
    kind that judges."""

    runs: pd.DataFrame
    table: pd.DataFrame
    out: Path
    figure: Figure = _ACCURACY

    __repr__ = brief

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
        raise ConfigError(f"{source}: key grid is missing: give for example 'grid: {{depth: [1, 3], seed: [0, 1]}}'")
    for key, options in grid.items():
        if not isinstance(options, list) or not options:
            raise ConfigError(f"{source}: grid.{key} must be a list of values, got {options!r}")
        if key in FREE:  # where and how to run is no part of a grid
            raise ConfigError(f"{source}: grid.{key}: give {key} once, outside of grid")
    if base.get("out") is None:
        raise ConfigError(f"{source}: key out is missing: give the directory of the sweep there, or --out DIR")
    base.setdefault("threads", 1)
    keys = sorted(grid, key=lambda key: (key == "seed", key == SELECTED))
    out = Path(base["out"])
    runs: dict[str, TrainConfig] = {}
    for combination in itertools.product(*(grid[key] for key in keys)):
        asked = dict(base)
        for key, value in zip(keys, combination):
            asked = with_key(asked, key, value)
        config = parse(asked, source)
        name = _named(keys, (at_key(config.to_dict(), key) for key in keys))
        if name in runs:
            raise ConfigError(f"{source}: grid: {name} is given twice")
        runs[name] = parse(asked | {"out": str(out / _folder(name, _named(keys, combination), keys))}, source)
    threads = next(iter(runs.values())).threads or 1
    jobs = max(1, joblib.cpu_count() // threads) if jobs is None else jobs
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"{source}: jobs must be a whole number of at least 1, got {jobs!r}")
    return Sweep({key: grid[key] for key in keys}, tuple(runs.values()), out, jobs)


def _named(keys: Sequence[str], values: Iterable[Any]) -> str:
    return ",".join(f"{key}={_cell(value)}" for key, value in zip(keys, values, strict=True))


def _folder(name: str, written: str, keys: Sequence[str]) -> str:
    """By the settings in full; where no disk takes so long a name, as they were written, or else by a digest."""
    fitting = (each for each in (quote(said, safe="=,.+-") for said in (name, written)) if len(each) <= _LONGEST)
    return next(fitting, f"{','.join(keys)[:_TITLE]}-{mark(name)}")


def sweep(
    asked: Sweep, *, scheduler: str | None = None, restart: bool = False, tell: Tell | None = None
) -> SweepResult:
    """Train all runs, `asked.jobs` at a time in processes of this machine, or on the Dask `scheduler`; write the table.

    Finished runs are read back and others resumed, so that the same call goes on after an interruption. A run that
    fails is a row with its reason, and is tried again by the next call. Writes `sweep.csv` (a line for each run) and
    `sweep.json` into `asked.out`. Dask workers must see the same files under the same paths. Raises ValueError
    where no scheduler answers.
    """
    check_replaceable(asked.out, ("sweep.csv", "sweep.json"), lambda held: {"runs", "table"} <= set(held), "sweep.json")
    with shown(tell) as told, claimed(asked.out, what="sweep"):
        return _swept(asked, scheduler, restart, told)


def _swept(asked: Sweep, scheduler: str | None, restart: bool, tell: Tell) -> SweepResult:
    held = None if scheduler is None else holder(asked.out)  # workers of this machine end with this process
    work = _Runs(Path.cwd(), restart, None if held is None else (str(asked.out.absolute()), held.mark))
    outcomes = run_cells(
        asked.runs, work, asked.jobs, what="runs", scheduler=scheduler, failed=str, progress=tell.progress,
        say=tell.say,
    )  # fmt: skip
    kind = next((o.validation.judged for o in outcomes if isinstance(o, TrainResult)), _ACCURACY)
    rows = [_row(asked, *each, kind) for each in zip(asked.runs, outcomes, strict=True)]
    settings = {key: pd.Series([row[key] for row in rows], dtype=object) for key in asked.grid}
    runs = pd.DataFrame(rows).assign(**settings)  # as they were given: of None and 4, pandas makes NaN and 4.0
    table = selection(runs, list(asked.grid), kind.name, kind.higher)
    keys = [key for key in asked.grid if key != "seed"]
    chosen = runs.merge(table[[*keys, "selected"]], on=keys, how="left") if keys else runs.assign(selected=True)
    chosen.loc[~chosen["selected"], f"test_{kind.name}"] = float("nan")
    result = SweepResult(chosen, table, asked.out, replace(kind, value=float("nan")))
    written = chosen.assign(**{key: chosen[key].map(said) for key in asked.grid})
    write_atomically(asked.out / "sweep.csv", written.to_csv(index=False).encode())
    write_atomically(asked.out / "sweep.json", (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return result


@dataclass(frozen=True)
class _Runs:
    """Each run in the directory that its configuration names, seen from ``here``.

    ``sweep``: directory of the sweep and mark of its claim, where runs must look whether it lives; they end, with
    their checkpoints kept, soon after it has. ``known``: what is in data that were looked at.
    """

    here: Path
    restart: bool
    sweep: tuple[str, str] | None = None
    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def name(self, config: TrainConfig) -> str:
        return config.out

    def read(self, config: TrainConfig) -> TrainResult | str | None:
        with suppress(ConfigError):  # a damaged result: what is to be done is said in its row
            return None if self.restart else finished(self._seen(config), lambda: self._content(config))
        return None

    def _content(self, config: TrainConfig) -> Mapping[str, Any]:
        if config.data not in self.known:
            self.known[config.data] = content_of(load_data(config.data, download=config.download))
        return self.known[config.data]

    def do(self, config: TrainConfig, progress: Progress) -> TrainResult | str:
        watched = progress if self.sweep is None else _while_held(*self.sweep, progress)
        return train(self._seen(config), restart=self.restart, tell=Tell(watched))

    def said(self, config: TrainConfig, result: TrainResult | str) -> str:
        if isinstance(result, str):
            return result
        odd = "" if result.warning is None else f" (warning: {result.warning})"
        return f"validation {result.validation.judged}, {result.seconds:.1f} s{odd}"

    def _seen(self, config: TrainConfig) -> TrainConfig:
        return config.model_copy(update={"out": str(self.here / config.out)})


def _while_held(out: str, mark: str, progress: Progress) -> Progress:
    """``progress`` that ends the work once the claim with this ``mark`` is no longer held."""
    looked = time.monotonic()

    def look(what: str, done: int, total: int) -> None:
        nonlocal looked
        if time.monotonic() - looked >= _LOOK:
            looked = time.monotonic()
            found = holder(out, stale=_GONE)
            if found is None or found.mark != mark:
                raise TrainingError(
                    "the sweep that this run belongs to has ended: the same command continues from here"
                )
        progress(what, done, total)

    return look


def _row(asked: Sweep, config: TrainConfig, outcome: TrainResult | str, kind: Figure) -> dict[str, Any]:
    values = config.to_dict()
    names = (f"validation_{kind.name}", "validation_loss", "best_epoch", f"test_{kind.name}", "seconds")
    row = {key: _cell(at_key(values, key)) for key in asked.grid}
    if isinstance(outcome, str):
        return row | {"error": outcome, "warning": None, "directory": config.out, **dict.fromkeys(names)}
    values = outcome.to_dict()
    figures = {name: values.get(name) for name in names}  # data may have no test part
    return row | {"error": None, "warning": outcome.warning, "directory": config.out, **figures}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def said(value: Any) -> str:
    """A value of the grid in `sweep.csv` and in what is printed, as a YAML file has it where there is none."""
    return "null" if value is None else str(value)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))
