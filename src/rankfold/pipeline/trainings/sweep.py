"""A grid of training runs: each in its own directory, failures as rows, and the table that selects weight decay."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
import pandas as pd

from rankfold.objectives import Figure
from rankfold.pipeline.trainings.config import ConfigError, TrainConfig, at_key, parse, with_key
from rankfold.pipeline.trainings.rundir import FREE, TrainResult, finished
from rankfold.pipeline.trainings.selection import SELECTED, selection
from rankfold.pipeline.trainings.training import train
from rankfold.run.claim import claimed, holder
from rankfold.run.errors import one_line
from rankfold.run.files import write_atomically
from rankfold.run.process import ends_with
from rankfold.run.progress import Progress, Tell, shown
from rankfold.train import TrainingError

# Runs draw from the random state of their process: in one process (Dask workers of several threads) one at a time.
_ALONE = threading.Lock()
_LOOK, _GONE = 10.0, 300.0  # seconds between looks for the sweep; without a sign of it, on another machine
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


@dataclass(frozen=True)
class SweepResult:
    """`runs`: a row for each run; `table`: a row for each combination without its seeds (`selection`); `figure`: the
    kind that judges."""

    runs: pd.DataFrame
    table: pd.DataFrame
    out: Path
    figure: Figure = _ACCURACY

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
    `sweep.json` into `asked.out`. Dask workers must see the same files under the same paths. Raises ConfigError
    where no scheduler answers.
    """
    with shown(tell) as told, claimed(asked.out, what="sweep"):
        return _swept(asked, scheduler, restart, told)


def _swept(asked: Sweep, scheduler: str | None, restart: bool, tell: Tell) -> SweepResult:
    outcomes: dict[int, TrainResult | str] = {}
    for index, config in enumerate(asked.runs):
        with suppress(ConfigError):  # a damaged result: what is to be done is said in its row
            done = None if restart else finished(config)
            if done is not None:
                outcomes[index] = done
    if outcomes:
        tell.say(f"{len(outcomes)} of {len(asked.runs)} runs are finished already")
    todo = [
        (i, c.to_dict() | {"out": str(Path(c.out).absolute())}) for i, c in enumerate(asked.runs) if i not in outcomes
    ]
    tell.progress("runs", len(outcomes), len(asked.runs))
    running = _local(todo, asked.jobs, restart) if scheduler is None else _on_dask(todo, scheduler, restart, asked.out)
    for index, outcome in running:
        outcomes[index] = outcome
        name = Path(asked.runs[index].out).name
        tell.say(f"{len(outcomes)} of {len(asked.runs)}: {name}: {_said(outcome)}")
        tell.progress("runs", len(outcomes), len(asked.runs))
    kind = next((o.validation.judged for o in outcomes.values() if isinstance(o, TrainResult)), _ACCURACY)
    runs = pd.DataFrame([_row(asked, config, outcomes[index], kind) for index, config in enumerate(asked.runs)])
    table = selection(runs, list(asked.grid), kind.name, kind.higher)
    keys = [key for key in asked.grid if key != "seed"]
    chosen = runs.merge(table[[*keys, "selected"]], on=keys, how="left") if keys else runs.assign(selected=True)
    chosen.loc[~chosen["selected"], f"test_{kind.name}"] = float("nan")
    result = SweepResult(chosen, table, asked.out, replace(kind, value=float("nan")))
    write_atomically(asked.out / "sweep.csv", chosen.to_csv(index=False).encode())
    write_atomically(asked.out / "sweep.json", (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return result


def train_one(values: Mapping[str, Any], restart: bool, sweep: tuple[str, str] | None = None) -> TrainResult | str:
    """One run in whatever process this is: its result, or in a line why it failed.

    ``sweep``: directory of the sweep and mark of its claim; the run ends, with its checkpoint kept, soon after the
    sweep has ended.
    """
    with _ALONE:
        try:
            return train(parse(values), restart=restart, tell=Tell() if sweep is None else Tell(_while_held(*sweep)))
        except Exception as error:
            return one_line(error)


def _while_held(out: str, mark: str) -> Progress:
    """Progress that ends the work once the claim with this ``mark`` is no longer held."""
    looked = time.monotonic()

    def look(what: str, done: int, total: int) -> None:
        nonlocal looked
        if time.monotonic() - looked < _LOOK:
            return
        looked = time.monotonic()
        found = holder(out, stale=_GONE)
        if found is None or found.mark != mark:
            raise TrainingError("the sweep that this run belongs to has ended: the same command goes on")

    return look


def _indexed(index: int, values: Mapping[str, Any], restart: bool, parent: int) -> tuple[int, TrainResult | str]:
    ends_with(parent)
    return index, train_one(values, restart)


Todo = Sequence[tuple[int, dict[str, Any]]]


def _local(todo: Todo, jobs: int, restart: bool) -> Iterator[tuple[int, TrainResult | str]]:
    left = dict(todo)
    pool = joblib.Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")
    try:
        for index, outcome in pool(
            joblib.delayed(_indexed)(index, values, restart, os.getpid()) for index, values in todo
        ):
            del left[index]
            yield index, outcome
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        for index in left:
            yield index, "its process was killed, perhaps for want of memory: fewer jobs; the same command goes on"


def _on_dask(todo: Todo, scheduler: str, restart: bool, out: Path) -> Iterator[tuple[int, TrainResult | str]]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ConfigError("--scheduler needs the package distributed: pip install 'rankfold[dask]'") from None
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from None
    held = holder(out)
    mine = None if held is None else (str(out.absolute()), held.mark)
    with client:
        futures = {client.submit(train_one, values, restart, mine, pure=False): index for index, values in todo}
        for future in as_completed(futures):
            failure = future.exception()  # a worker that died; what a run raises is its outcome
            yield futures[future], future.result() if failure is None else f"{type(failure).__name__}: {failure}"


def _row(asked: Sweep, config: TrainConfig, outcome: TrainResult | str, kind: Figure) -> dict[str, Any]:
    values = config.to_dict()
    names = (f"validation_{kind.name}", "validation_loss", "best_epoch", f"test_{kind.name}", "seconds")
    row = {key: _cell(at_key(values, key)) for key in asked.grid}
    if isinstance(outcome, str):
        return row | {"error": outcome, "warning": None, "directory": config.out, **dict.fromkeys(names)}
    values = outcome.to_dict()
    figures = {name: values[name] for name in names}
    return row | {"error": None, "warning": outcome.warning, "directory": config.out, **figures}


def _said(outcome: TrainResult | str) -> str:
    if isinstance(outcome, str):
        return f"failed: {outcome}"
    odd = "" if outcome.warning is None else f" (warning: {outcome.warning})"
    return f"validation {outcome.validation.judged}, {outcome.seconds:.1f} s{odd}"


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))
