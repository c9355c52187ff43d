"""One runner of cells: each is done once, several at a time, and read back where it is finished."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from rankfold.run.disk.container import read_object
from rankfold.run.disk.files import write_atomically
from rankfold.run.errors import one_line
from rankfold.run.mark import mark
from rankfold.run.processes.process import ends_with
from rankfold.run.progress import Progress, silent

Result = TypeVar("Result")
# Cells draw from the random state of their process: where one has several threads (Dask), one at a time.
_ALONE = threading.RLock()
_LOOK = 0.2  # seconds between looks at what the workers say
_KILLED = "its process was killed, perhaps as memory ran out: give fewer --jobs; the same command continues"


class Work(Protocol[Result]):
    """What is done to a cell, and where it is kept. It is pickled, and so are the cells and the results."""

    def name(self, cell: Any, /) -> str:
        """By which a cell is known: cells of one name are one cell."""

    def read(self, cell: Any, /) -> Result | None:
        """The finished result, None where there is none. ``ValueError`` for a damaged one."""

    def do(self, cell: Any, progress: Progress, /) -> Result:
        """In whatever process this is: leave the result where ``read`` finds it, whole, and return it."""

    def said(self, cell: Any, result: Result, /) -> str:
        """What was reached, in a few words; "" where there is nothing to say."""


@dataclass(frozen=True)
class Failed:
    """In place of a result: why there is none, in one line."""

    sentence: str


def run_cells(
    cells: Sequence[Any],
    work: Work[Result],
    jobs: int = 1,
    *,
    what: str = "cells",
    scheduler: str | None = None,
    failed: Callable[[str], Result] | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Result]:
    """The result of every cell, in the order given; finished ones are read back, each of the others is done once.

    ``jobs``: 1 does them in this process, with the threads it has; more in so many processes of one thread each (-1:
    one for each core), which end when this process does, however it ends (but on Windows, where they are left behind if
    it is killed). With a ``scheduler``, the address of a Dask scheduler, its workers do them instead, which must see
    the same files under the same paths. An interruption loses only the cells at work. ``failed``: what stands in the
    place of a cell that fails or whose process is killed, made of a line that says why; the others go on, and the next
    call tries it again. Without ``failed`` the first error is raised (``RuntimeError`` for a killed process); what is
    finished stays. ``what``: how cells are called in sentences. ``progress`` is told of the cells, and of what happens
    inside one of them (not of those on Dask); ``say`` each result in a sentence. Raises ``ValueError`` for two
    different cells of one name, for a damaged result, and where no scheduler answers.
    """
    names = [work.name(cell) for cell in cells]
    waiting: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if waiting.setdefault(name, cell) != cell:
            raise ValueError(f"two different {what} have the same name {name}: {waiting[name]} and {cell}")
    total = len(waiting)
    results = {name: found for name, cell in waiting.items() if (found := work.read(cell)) is not None}
    if results:
        say(f"{len(results)} of {total} {what} are finished already")
    named = {name: waiting.pop(name) for name in results} | waiting
    progress(what, len(results), total)
    for name, outcome in _outcomes(waiting, work, joblib.effective_n_jobs(jobs), scheduler, failed is None, progress):
        if not isinstance(outcome, Failed):
            results[name], words = outcome, work.said(named[name], outcome)
        elif failed is not None:
            results[name], words = failed(outcome.sentence), f"failed: {outcome.sentence}"
        else:
            raise RuntimeError(f"{name}: {outcome.sentence}")
        if words:
            say(f"{len(results)} of {total}: {Path(name).name}: {words}")
        progress(what, len(results), total)
    return [results[name] for name in names]


Outcomes = Iterator[tuple[str, Any]]  # (name, result or Failed)


def _outcomes(
    left: dict[str, Any], work: Work[Any], jobs: int, scheduler: str | None, strict: bool, progress: Progress
) -> Outcomes:
    """Of each cell of ``left``, as it comes; taken from ``left`` then."""
    do = partial(_done, work, strict)
    if scheduler is None and jobs == 1:
        for name in list(left):
            yield name, do(left.pop(name), progress)

    def pooled(names: Sequence[str], jobs: int) -> Outcomes:
        """Cells of these names in other processes; those whose process was killed stay in ``left``."""
        with _ear() as (ear, word), _pool(jobs, scheduler) as pool:
            mouth = partial(_speak, ear.getsockname(), word)
            futures = {pool.submit(do, left[name], partial(mouth, name)): name for name in names}
            while futures:
                finished, _ = wait(futures, _LOOK, FIRST_COMPLETED)
                heard = _heard(ear, word)
                for name in [name for name in left if name in heard][:1]:
                    progress(*heard[name])
                for future in finished:
                    name, failure = futures.pop(future), future.exception()
                    if isinstance(failure, BrokenExecutor):
                        continue
                    if failure is not None and strict:
                        raise failure
                    del left[name]
                    yield name, future.result() if failure is None else Failed(one_line(failure))

    while left:
        yield from pooled(list(left), min(jobs, len(left)))
        for name in list(left)[:jobs]:  # a process was killed, at one of the first cells left: each again, alone
            yield from pooled([name], 1)
            if left.pop(name, None) is not None:
                yield name, Failed(_KILLED)


def _done(work: Work[Result], strict: bool, cell: Any, progress: Progress) -> Result | Failed:
    """One cell, in this process; read back if another process finished it meanwhile."""
    try:
        with _ALONE:
            found = work.read(cell)
            return work.do(cell, progress) if found is None else found
    except Exception as error:
        if strict:
            raise
        return Failed(one_line(error))


@contextmanager
def _pool(jobs: int, scheduler: str | None) -> Iterator[Executor]:
    if scheduler is None:
        own = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        own["RANKFOLD_PROGRESS"] = "0"  # bars are the parent's
        pool = ProcessPoolExecutor(jobs, initializer=_begin, initargs=(os.getpid(),), env=own)
        try:
            yield pool
        finally:
            pool.shutdown(kill_workers=True)
        return
    try:
        from distributed import Client

        client = Client(scheduler, timeout=10)
    except ImportError:
        raise ValueError("a Dask scheduler needs the package distributed: pip install 'rankfold[dask]'") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler} ({error}): check its address") from None
    with client:
        yield client.get_executor(pure=False)


def _begin(parent: int) -> None:
    """A worker leaves interruptions to its parent, silently, and ends with it."""

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends_with(parent)


@contextmanager
def _ear() -> Iterator[tuple[socket.socket, str]]:
    """Where workers of this machine speak to, by datagrams: what is lost is no harm. And a word that others lack."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        yield ear, token_hex(8)


def _speak(address: tuple[str, int], word: str, name: str, what: str, done: int, total: int) -> None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        mouth.sendto(json.dumps([word, name, what, done, total]).encode(), address)


def _heard(ear: socket.socket, word: str) -> dict[str, list[Any]]:
    """What each said last."""
    heard: dict[str, list[Any]] = {}
    with suppress(BlockingIOError, ValueError, TypeError):
        while True:
            said, name, *told = json.loads(ear.recv(4096))
            if said == word:
                heard[name] = told
    return heard


@dataclass(frozen=True)
class Kept:
    """``function(cell, place, progress)`` → plain values, kept as JSON in ``directory`` under the name of the cell.

    A cell is a frozen dataclass with a ``title``, whose fields are all that decides its result. ``asked`` goes into the
    digest beside them: what the function is called, so that experiments may share cells and a directory; by default its
    module and name. ``pattern``: the file of a name. ``words`` of the values, for people. ``place`` is a directory of
    the cell's own, for what the function wants to keep. Results hold ``case``, the cell; ``cpu_seconds`` and
    ``wall_seconds``; numbers that JSON does not know are None.
    """

    function: Callable[[Any, Path, Progress], Mapping[str, Any]]
    directory: Path
    asked: Mapping[str, Any] | None = None
    pattern: str = "{}/result.json"
    words: Callable[[dict[str, Any]], str] = field(default=lambda values: "")

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", self.directory.absolute())  # the same place for every worker

    def name(self, cell: Any) -> str:
        kind = f"{self.function.__module__}.{self.function.__qualname__}"
        return named(cell, {"kind": kind} if self.asked is None else self.asked)

    def file(self, cell: Any) -> Path:
        return self.directory / self.pattern.format(self.name(cell))

    def read(self, cell: Any) -> dict[str, Any] | None:
        file = self.file(cell)
        if not file.exists():
            return None
        values = read_object(file, "a finished cell", "delete it to compute it again")
        if values.get("case", plain(asdict(cell))) != plain(asdict(cell)):
            raise ValueError(
                f"{file} holds another cell, {values['case']}: give another directory, or delete this file"
            )
        return values

    def do(self, cell: Any, progress: Progress) -> dict[str, Any]:
        began, wall = time.process_time(), time.perf_counter()
        values = self.function(cell, self.directory / self.name(cell), progress)
        times = {"cpu_seconds": time.process_time() - began, "wall_seconds": time.perf_counter() - wall}
        kept = plain({"case": asdict(cell)} | dict(values) | times)
        write_atomically(self.file(cell), (json.dumps(kept, indent=1) + "\n").encode())
        return kept

    def said(self, cell: Any, result: dict[str, Any]) -> str:
        return self.words(result)


def named(cell: Any, asked: Mapping[str, Any]) -> str:
    """Readable, and another one for whatever else was asked differently."""
    return f"{cell.title}-{mark(dict(asked) | asdict(cell))}"


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back, numbers that JSON does not know as None."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)
