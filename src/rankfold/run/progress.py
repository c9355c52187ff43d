"""One kind of progress: ``progress(what, done, total)`` often, ``say(sentence)`` at each result.

Long functions take ``progress=None``: in a terminal that shows a bar on standard error, which is gone when the work is
done; elsewhere, in a notebook or a file, nothing. ``RANKFOLD_PROGRESS=0`` shows nothing anywhere, ``=1`` also there.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much in all

_EVERY = 10.0  # seconds between lines about the same piece of work where nothing can be drawn
_lent: ContextVar[Progress | None] = ContextVar("rankfold-lent", default=None)  # to a person's own code
_talking: ContextVar[bool] = ContextVar("rankfold-talking", default=False)  # somebody tells already, or chose silence

P = ParamSpec("P")
R = TypeVar("R")


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


class Judged(Protocol):
    """How good a network is (`rankfold.objectives.Evaluation`)."""

    @property
    def judged(self) -> object: ...


class Finished(Protocol):
    """What is told of an epoch that is done (`rankfold.train.Epoch`)."""

    @property
    def train_loss(self) -> float: ...
    @property
    def validation(self) -> Judged | None: ...
    @property
    def seconds(self) -> float: ...


class Step(Protocol):
    """Where a training is (`rankfold.train.Progress`)."""

    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def batches(self) -> int: ...
    @property
    def finished(self) -> Finished | None: ...


@dataclass(frozen=True)
class Tell:
    """Where a run tells what it does: ``progress(what, done, total)`` and ``say(sentence)``; silent by default."""

    progress: Progress = silent
    say: Callable[[str], None] = lambda sentence: None

    def training(self, what: str) -> Callable[[Step], None]:
        """For ``rankfold.train.fit``: batches as progress, and a sentence for each epoch."""

        def tell(now: Step) -> None:
            self.progress(what, (now.epoch - 1) * now.batches + now.batch, now.epochs * now.batches)
            if now.finished is None:
                return
            end = now.finished
            reached = "" if end.validation is None else f", validation {end.validation.judged}"
            self.say(f"  epoch {now.epoch} of {now.epochs}: loss {end.train_loss:.4f}{reached}, {end.seconds:.1f} s")

        return tell


class Note(UserWarning):
    """A warning that commands tell as a sentence."""


class Talk:
    """A context: ``progress`` and ``say`` on standard error. One bar at a time, gone when its work is done.

    On a terminal bars and sentences, plain lines where it is piped.
    """

    def __init__(self) -> None:
        self._console: Console | None = None
        self.what = ""
        self.last, self.first = 0.0, (0.0, 0)
        self.bar: Bar | None = None

    @property
    def console(self) -> Console:
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    @property
    def tell(self) -> Tell:
        return Tell(self.progress, self.say)

    def __enter__(self) -> Talk:
        from rankfold.batches import LeftOut

        self._before = _talking.set(True)
        show, noted = warnings.showwarning, set[str]()

        def told(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if not issubclass(category, LeftOut | Note):
                show(message, category, *rest, **more)
            elif str(message) not in noted:
                noted.add(str(message))
                self.say(f"note: {message}")

        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        for kind in (LeftOut, Note):
            warnings.simplefilter("default", kind)
        warnings.showwarning = told
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warnings.__exit__(None, None, None)
        _talking.reset(self._before)
        self.clear()

    def say(self, sentence: str) -> None:
        """One line."""
        self.clear()
        self.console.print(sentence, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell how far ``what`` is."""
        if self.console.is_terminal:
            self._draw(what, done, total)
        else:
            self._line(what, done, total)
        if done >= total:
            self.clear()

    def clear(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.what = None, ""

    def _draw(self, what: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        if self.bar is None or what != self.what:
            self.clear()
            self.what = what
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.bar.add_task(what, total=total)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done, total=total)

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self.what:
            self.what, self.last, self.first = what, now, (now, done)
            return
        if now - self.last > _EVERY and done < total:
            self.last, (begun, before) = now, self.first
            left = f", about {duration((now - begun) / (done - before) * (total - done))} left" if done > before else ""
            print(f"{what}: {done} of {total}{left}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """75 → 1 min 15 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def wanted() -> bool:
    """Whether progress is shown where nobody asked: on a terminal, and nobody tells already."""
    asked = os.environ.get("RANKFOLD_PROGRESS", "")
    if _talking.get() or asked == "0" or os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first talks
        return False
    return asked == "1" or bool(sys.stderr and sys.stderr.isatty())


@contextmanager
def shown(tell: Tell | None = None) -> Iterator[Tell]:
    """What tells of the work inside: ``tell`` itself where it is given, else the screen if ``wanted``, else nothing."""
    if tell is None and wanted():
        with Talk() as talk:
            yield talk.tell
        return
    before = _talking.set(True)
    try:
        yield tell or Tell()
    finally:
        _talking.reset(before)


@contextmanager
def lent(progress: Progress | None) -> Iterator[None]:
    """A person's own function is called inside: what it calls of ours without a ``progress`` tells this one."""
    before = _lent.set(progress)
    try:
        yield
    finally:
        _lent.reset(before)


def showing(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with its ``progress=None`` shown on a terminal, and what it calls silent otherwise."""
    return _showing(function, lambda tell: tell.progress)


def showing_epochs(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The same for a function whose ``progress`` takes the steps of a training (`rankfold.train.Progress`)."""
    return lambda function: _showing(function, lambda tell: Tell(tell.progress).training(what))


def _showing(function: Callable[P, R], kind: Callable[[Tell], Any]) -> Callable[P, R]:
    given = inspect.signature(function)

    @functools.wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            progress = given.bind_partial(*args, **kwargs).arguments.get("progress")
        except TypeError:  # says no name: the function's own words do
            return function(*args, **kwargs)
        if progress is not None:
            with shown(Tell()):  # what is told is the caller's matter
                return function(*args, **kwargs)
        theirs = _lent.get()
        if theirs is not None:
            with shown(Tell()):
                return function(*args, **cast(Any, {**kwargs, "progress": kind(Tell(theirs))}))
        if not wanted():
            return function(*args, **kwargs)
        with Talk() as talk:
            return function(*args, **cast(Any, {**kwargs, "progress": kind(talk.tell)}))

    return told
